"""Every frame has a result by its deadline, whatever the engine does; fewer samples only with their own threshold."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from flss_runtime.decision import Status
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.stream import StreamState, TemporalVote

from .moody import Results, moody_image, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.stream import StreamResult

    from .conftest import TinyModel

# Milliseconds past the deadline that a machine under test may add; benchmarks/stream.py measures what it really is.
SLACK_MS = 100
LONG = 127  # work that takes a few hundred milliseconds
DEADLINE_S = 0.03


@pytest.fixture(scope="module")
def long_s(tiny: TinyModel, moody: Bundle) -> float:
    """What a frame of `LONG` work takes here at least, in seconds."""
    times = []
    with open_classifier(moody, threads=1) as classifier:
        for _ in range(3):
            start = time.monotonic()
            classifier.classify(moody_image(tiny, LONG))
            times.append(time.monotonic() - start)
    assert min(times) > 2 * DEADLINE_S, "nothing would be late"
    return min(times)


def total_ms(result: StreamResult) -> float:
    total = result.timing.stages_ms()["total"]
    assert total is not None
    return total


def test_a_frame_that_runs_too_long_has_its_result_on_time(tiny: TinyModel, moody: Bundle) -> None:
    results = Results()
    with opened(moody, results, deadline_s=DEADLINE_S) as stream:
        stream.submit(moody_image(tiny, LONG))
        (result,) = results.wait(1)
        assert stream.health().busy_s is not None, "the engine still runs"
        assert result.decision.status is Status.DEADLINE and "not decided within" in result.decision.reason
        assert result.timing.started is not None and result.timing.decided is None
        assert DEADLINE_S * 1e3 <= total_ms(result) < DEADLINE_S * 1e3 + SLACK_MS
        until(lambda: stream.health().busy_s is None)
        health = stream.health()
        assert (health.late, health.deadline_streak) == (1, 1)
        until(lambda: stream.classify(moody_image(tiny)).decision.top_label is not None)
        assert stream.health().deadline_streak == 0
    assert len(results.all) == stream.health().submitted


def test_a_frame_whose_turn_does_not_come_is_never_run(tiny: TinyModel, moody: Bundle) -> None:
    results = Results()
    with opened(moody, results, deadline_s=DEADLINE_S) as stream:
        stream.submit(moody_image(tiny, LONG))
        until(lambda: stream.health().busy_s is not None)
        stream.submit(moody_image(tiny, LONG))
        first, second = results.wait(2)
        assert (first.frame, second.frame) == (0, 1)
        assert second.decision.status is Status.DEADLINE and "turn did not come" in second.decision.reason
        assert second.timing.started is None and total_ms(second) < DEADLINE_S * 1e3 + SLACK_MS
        until(lambda: stream.health().busy_s is None)
        assert stream.health().late == 1, "the second one was not run"


def test_classify_returns_by_the_deadline(tiny: TinyModel, moody: Bundle) -> None:
    with opened(moody, Results(), deadline_s=DEADLINE_S) as stream:
        for work in (LONG, 0):
            start = time.monotonic()
            result = stream.classify(moody_image(tiny, work))
            assert time.monotonic() - start < DEADLINE_S + SLACK_MS / 1e3
            assert result.decision.status is Status.DEADLINE, "the second one waits for the first one's engine"


def test_without_deadline_a_frame_takes_as_long_as_it_takes(tiny: TinyModel, moody: Bundle) -> None:
    with opened(moody, Results()) as stream:
        result = stream.classify(moody_image(tiny, LONG))
    assert result.decision.top_label is not None and total_ms(result) > DEADLINE_S * 1e3


def test_a_hanging_engine_ends_the_agreement_under_a_fast_camera(tiny: TinyModel, moody: Bundle) -> None:
    """Each frame is superseded before its deadline: no frame says that anything is wrong, but the votes are old."""
    results = Results()
    with opened(moody, results, deadline_s=5.0, steady=TemporalVote(3, 2, max_age_s=0.05)) as stream:
        surest = max(range(10), key=lambda seed: stream.classify(moody_image(tiny, seed=seed)).decision.votes)
        answers = (stream.classify(moody_image(tiny, seed=surest)) for _ in range(100))
        agreed = next(answer for answer in answers if answer.steady is not None)
        long = stream.submit(moody_image(tiny, LONG))
        until(lambda: stream.health().busy_s is not None)
        while long not in [each.frame for each in results.all if each.decision.status is not Status.SUPERSEDED]:
            stream.submit(moody_image(tiny))
            time.sleep(0.003)
    came = [each.frame for each in results.all].index(long)
    old = agreed.timing.submitted + 60_000_000
    hanging = [each for each in results.all[:came] if each.decision.status is Status.SUPERSEDED]
    steady = [each.steady for each in hanging if each.timing.submitted > old]
    assert steady and set(steady) == {None}


def test_deadlines_are_met_while_submitters_compete(tiny: TinyModel, moody: Bundle) -> None:
    results = Results()
    with opened(moody, results, deadline_s=DEADLINE_S) as stream:

        def run(seed: int) -> None:
            for number in range(20):
                stream.submit(moody_image(tiny, 30 * (number % 5), seed=seed))
                time.sleep(0.01)

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.wait(80)
    assert sorted(results.statuses()) == list(range(80))
    assert max(map(total_ms, results.all)) < DEADLINE_S * 1e3 + SLACK_MS
    health = stream.health()
    assert health.results[Status.DEADLINE] > 0 and sum(health.results.values()) == 80


def test_a_stalled_engine_is_told_and_comes_back(tiny: TinyModel, moody: Bundle, long_s: float) -> None:
    results = Results()
    with opened(moody, results, deadline_s=long_s / 20, stall_s=long_s / 3) as stream:
        assert stream.health().state is StreamState.RUNNING
        stream.submit(moody_image(tiny, LONG))
        until(lambda: stream.health().state is StreamState.STALLED)
        assert "engine has been running" in stream.health().reason
        assert results.wait(1)[0].decision.status is Status.DEADLINE
        until(lambda: stream.health().state is StreamState.RUNNING)


class TestFewerSamples:
    def test_where_there_is_time_all_samples_vote(self, tiny: TinyModel, moody: Bundle) -> None:
        noise = SeededNoise(0)
        noise.counter = 12  # opening took the first ones
        with open_classifier(moody, noise=noise, threads=1) as classifier:
            expected = [classifier.classify(moody_image(tiny, seed=seed))[0] for seed in range(6)]
        with opened(moody, Results(), deadline_s=30.0, reduced_samples=5) as stream:
            found = [stream.classify(moody_image(tiny, seed=seed)) for seed in range(6)]
        assert {result.num_samples for result in found} == {40}
        assert [result.decision for result in found] == expected

    def test_where_there_is_not_the_reduced_policy_decides(self, tiny: TinyModel, moody: Bundle) -> None:
        noise = SeededNoise(0)
        noise.counter = 12  # opening took the first ones
        with open_classifier(moody, num_samples=5, noise=noise, threads=1) as classifier:
            expected = [classifier.classify(moody_image(tiny, seed=seed))[0] for seed in range(6)]
        with opened(moody, Results(), deadline_s=30.0, reduced_samples=5) as stream:
            budget, found = stream._keeper._budget, []
            for seed in range(6):
                budget._usual = 10**12  # nanoseconds: as if all samples took far longer than the deadline
                found.append(stream.classify(moody_image(tiny, seed=seed)))
        assert {result.num_samples for result in found} == {5}
        assert [result.decision for result in found] == expected, "with the threshold of 5 samples"

    def test_slow_frames_lead_there_and_fast_ones_back(self, tiny: TinyModel, moody: Bundle) -> None:
        with opened(moody, Results(), deadline_s=30.0, reduced_samples=20) as stream:
            seen = [stream.classify(moody_image(tiny)).num_samples]
            budget = stream._keeper._budget
            for _ in range(3):
                budget.took(budget._full, 60 * 10**9)
            seen += [stream.classify(moody_image(tiny)).num_samples for _ in range(40)]
        assert seen == [40] + [20] * 30 + [40] * 10, "until the first of the three is forgotten"
