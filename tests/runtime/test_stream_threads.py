"""Exactly one result a frame, whoever submits, whatever happens meanwhile, and however the stream ends."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from flss_runtime.decision import Status
from flss_runtime.errors import UsageError
from flss_runtime.stream import Backoff, StreamState

from .moody import Results, moody_image, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.stream import StreamClassifier, StreamResult

    from .conftest import TinyModel


class Schedule:
    """What each of several threads submits and when, by a seed: work, faults, nonsense, pauses."""

    def __init__(self, tiny: TinyModel, seed: int, frames: int) -> None:
        draw = random.Random(seed)
        kinds = [moody_image(tiny), moody_image(tiny, 1), moody_image(tiny, 3), moody_image(tiny, 20), None]
        kinds.append(moody_image(tiny, fails=True))
        self.steps: list[tuple[Any, float]] = [
            (draw.choices(kinds, (50, 20, 15, 2, 8, 5))[0], draw.choice((0, 0, 0.001, 0.003, 0.01)))
            for _ in range(frames)
        ]

    def run(self, stream: StreamClassifier, numbers: list[int]) -> None:
        """Submit until all is submitted or the stream is closed; note the frames that were taken."""
        for image, pause_s in self.steps:
            try:
                numbers.append(stream.submit(image))
            except UsageError:
                return
            if pause_s:
                time.sleep(pause_s)


def compete(stream: StreamClassifier, schedules: list[Schedule], meanwhile: Any = None) -> list[int]:
    """Run the schedules in a thread each, do something meanwhile, and return the frames that were taken."""
    numbers: list[list[int]] = [[] for _ in schedules]
    threads = [
        threading.Thread(target=each.run, args=(stream, taken)) for each, taken in zip(schedules, numbers, strict=True)
    ]
    for thread in threads:
        thread.start()
    if meanwhile is not None:
        meanwhile()
    for thread in threads:
        thread.join()
    return [number for taken in numbers for number in taken]


@pytest.mark.parametrize("deadline_s", [None, 0.005])
@pytest.mark.parametrize("seed", range(3))
def test_exactly_one_result_under_stress(tiny: TinyModel, moody: Bundle, seed: int, deadline_s: float | None) -> None:
    results = Results()
    pause = random.Random(seed + 100)

    def callback(result: StreamResult) -> None:
        results(result)
        if pause.random() < 0.05:
            time.sleep(0.003)
        if pause.random() < 0.02:
            raise OSError("the other end hung up")

    schedules = [Schedule(tiny, 10 * seed + number, 150) for number in range(6)]
    with opened(moody, callback, deadline_s=deadline_s, backoff=Backoff(0.01, 0.02)) as stream:
        stream.submit(moody_image(tiny, fails=True))
        until(lambda: stream.health().restarts == 1)
        numbers = compete(stream, schedules)
        until(lambda: stream.health().pending == 0)
        health = stream.health()
    assert sorted(numbers) == list(range(1, 901))
    statuses = results.statuses()
    assert sorted(statuses) == list(range(901)) and len(results.all) == 901
    counts = {status: list(statuses.values()).count(status.value) for status in Status}
    assert counts == health.results
    nonsense = sum(image is None for each in schedules for image, _ in each.steps)
    assert counts[Status.INVALID_INPUT] == nonsense
    assert counts[Status.SUPERSEDED] > 0 and counts[Status.FAULT] > 0
    assert counts[Status.ACCEPTED] + counts[Status.LOW_VOTE] > 0
    assert (counts[Status.DEADLINE] > 0) == (deadline_s is not None)


@pytest.mark.parametrize("seed", range(8))
def test_exactly_one_result_when_it_is_closed_meanwhile(tiny: TinyModel, moody: Bundle, seed: int) -> None:
    results = Results()
    stream = opened(moody, results, deadline_s=0.02 if seed % 2 else None, backoff=Backoff(0.01, 0.02))

    def close() -> None:
        time.sleep(0.02 + 0.01 * seed)
        stream.close()

    schedules = [Schedule(tiny, 50 + 10 * seed + number, 2000) for number in range(4)]
    numbers = compete(stream, schedules, close)
    assert len(numbers) < 8000, "it was closed in the middle"
    assert sorted(results.statuses()) == sorted(numbers), "all of them by the end of close()"
    assert not stream._worker.is_alive() and not stream._clock.is_alive()
    health = stream.health()
    assert (health.state, health.pending) == (StreamState.CLOSED, 0)


def test_a_flood_is_answered_as_fast_as_the_engine_can(tiny: TinyModel, moody: Bundle) -> None:
    results, image = Results(), moody_image(tiny, 3)
    with opened(moody, results) as stream:
        for _ in range(1000):
            stream.submit(image)
            time.sleep(0.0005)
        until(lambda: stream.health().pending == 0)
    statuses = list(results.statuses().values())
    assert len(statuses) == 1000 and set(statuses) <= {"accepted", "low_vote", "superseded"}
    assert 10 < statuses.count("superseded") < 1000
    assert len(stream._buffers._free) <= 4
    assert results.all[-1].frame == 999 and results.all[-1].decision.status is not Status.SUPERSEDED


class TestClose:
    def test_the_frame_that_runs_is_answered(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        stream = opened(moody, results, stall_s=30.0)
        stream.submit(moody_image(tiny, 60))
        until(lambda: stream.health().busy_s is not None)
        stream.submit(moody_image(tiny))
        stream.close()
        assert results.statuses()[1] == "superseded" and results.statuses()[0] in ("accepted", "low_vote")
        assert "closed" in next(result.decision.reason for result in results.all if result.frame == 1)

    def test_an_engine_that_does_not_come_back_is_left_behind(
        self, tiny: TinyModel, moody: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = Results()
        stream = opened(moody, results, stall_s=0.03)
        stream.submit(moody_image(tiny, 127))
        until(lambda: stream.health().busy_s is not None)
        start = time.monotonic()
        with caplog.at_level(logging.WARNING, "flss_runtime"):
            stream.close()
        assert time.monotonic() - start < 1.1
        assert results.statuses() == {0: "fault"} and "of closing" in results.all[0].decision.reason
        assert "left behind" in caplog.text
        until(lambda: not stream._worker.is_alive())
        assert stream.health().late == 1 and len(results.all) == 1

    def test_the_deadline_holds_until_the_end(self, tiny: TinyModel, moody: Bundle) -> None:
        results = Results()
        stream = opened(moody, results, stall_s=30.0, deadline_s=0.02)
        stream.submit(moody_image(tiny, 127))
        until(lambda: stream.health().busy_s is not None)
        stream.close()
        assert results.statuses() == {0: "deadline"}

    def test_twice_and_from_many_threads(self, tiny: TinyModel, moody: Bundle) -> None:
        stream = opened(moody, Results())
        stream.classify(moody_image(tiny))
        threads = [threading.Thread(target=stream.close) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.close()
        with pytest.raises(UsageError, match="stream is closed"):
            stream.submit(moody_image(tiny))
        with pytest.raises(UsageError, match="stream is closed"):
            stream.classify(moody_image(tiny))

    def test_whoever_waits_for_a_result_gets_one(self, tiny: TinyModel, moody: Bundle) -> None:
        found: list[StreamResult] = []
        stream = opened(moody, Results(), stall_s=0.03)
        stream.submit(moody_image(tiny, 127))
        until(lambda: stream.health().busy_s is not None)
        waiting = threading.Thread(target=lambda: found.append(stream.classify(moody_image(tiny))))
        waiting.start()
        until(lambda: stream.health().submitted == 2)
        stream.close()
        waiting.join(5)
        assert [result.decision.status for result in found] == [Status.SUPERSEDED]

    def test_engines_and_threads_go(self, tiny: TinyModel, moody: Bundle) -> None:
        before = set(threading.enumerate())  # one that an earlier test left hanging may end by itself
        for _ in range(5):
            with opened(moody, Results()) as stream:
                stream.classify(moody_image(tiny))
            assert stream._keeper._classifier is None
        assert set(threading.enumerate()) <= before


def test_health_may_be_asked_from_anywhere_at_any_time(tiny: TinyModel, moody: Bundle) -> None:
    seen: set[str] = set()
    ended = threading.Event()
    stream = opened(moody, Results(), deadline_s=0.02, backoff=Backoff(0.01, 0.02))

    def watch() -> None:
        while not ended.is_set():
            health = stream.health()
            seen.add(health.state.value)
            assert sum(health.results.values()) + health.pending >= health.submitted
            with suppress(UsageError):
                stream.submit(None)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    compete(stream, [Schedule(tiny, 7, 100)])
    stream.classify(moody_image(tiny, fails=True))
    stream.close()
    until(lambda: "closed" in seen)
    ended.set()
    for watcher in watchers:
        watcher.join()
    assert {"running", "closed"} <= seen
