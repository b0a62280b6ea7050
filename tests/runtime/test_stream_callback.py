"""The callback has a thread of the stream's to itself, and can neither stop the stream nor hold it up."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from flss_runtime.errors import UsageError
from flss_runtime.stream import StreamState

from .bundles import random_images
from .moody import Results, moody_image, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle
    from flss_runtime.stream import StreamResult

    from .conftest import TinyModel


def test_it_never_runs_in_the_callers_thread(tiny: TinyModel, moody: Bundle) -> None:
    threads = set()
    with opened(moody, lambda result: threads.add(threading.get_ident())) as stream:
        for work in (30, 0, 0):
            stream.submit(moody_image(tiny, work))
        stream.submit(None)
        stream.classify(moody_image(tiny))
    assert threads and threading.get_ident() not in threads


def test_one_at_a_time(tiny: TinyModel, moody: Bundle) -> None:
    inside, most = [0], [0]

    def slow(result: StreamResult) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1

    with opened(moody, slow) as stream:
        for work in [2, 0, 0] * 20:
            stream.submit(moody_image(tiny, work))
            time.sleep(0.001)
    assert most == [1] and stream.health().pending == 0


@pytest.mark.parametrize("error", [ValueError("no such topic"), SystemExit(3), KeyboardInterrupt()])
def test_its_errors_stop_nothing_and_are_logged_once_a_kind(
    tiny: TinyModel, bundle: Bundle, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def fail(result: StreamResult) -> None:
        seen.append(result.frame)
        raise error

    with caplog.at_level(logging.ERROR, "flss_runtime"), opened(bundle, fail) as stream:
        for image in random_images(tiny, 5):
            assert stream.classify(image).decision.top_label is not None
        health = stream.health()
    assert seen == list(range(5))
    assert (health.callback_errors, health.state) == (5, StreamState.RUNNING)
    assert len([record for record in caplog.records if "callback failed" in record.message]) == 1


def test_it_may_submit_and_ask_for_health(tiny: TinyModel, bundle: Bundle) -> None:
    images, results = random_images(tiny, 30), Results()

    def chain(result: StreamResult) -> None:
        assert stream.health().callback_errors == 0
        if result.frame < 29:
            stream.submit(images[result.frame + 1])
        results(result)

    with opened(bundle, chain) as stream:
        stream.submit(images[0])
        results.wait(30)
        assert stream.health().callback_errors == 0
    assert [result.frame for result in results.all] == list(range(30))


def test_it_may_close(tiny: TinyModel, moody: Bundle) -> None:
    results = Results()

    def last(result: StreamResult) -> None:
        results(result)
        stream.close()

    stream = opened(moody, last)
    stream.submit(moody_image(tiny, 20))
    stream.submit(moody_image(tiny))
    until(lambda: not stream._worker.is_alive() and not stream._clock.is_alive())
    assert sorted(results.statuses()) == [0, 1]
    assert stream.health().state is StreamState.CLOSED
    stream.close()


def test_it_may_not_wait_for_a_result(tiny: TinyModel, bundle: Bundle) -> None:
    image, caught = random_images(tiny, 1)[0], []

    def wait(result: StreamResult) -> None:
        try:
            stream.classify(image)
        except UsageError as error:
            caught.append(error.problem)

    with opened(bundle, wait) as stream:
        stream.classify(image)
    assert len(caught) == 1 and "in on_result" in caught[0]


def test_one_that_hangs_is_a_stall_and_does_not_hold_submit_or_health_up(tiny: TinyModel, bundle: Bundle) -> None:
    free = threading.Event()
    with opened(bundle, lambda result: free.wait(20), stall_s=0.1) as stream:
        stream.submit(random_images(tiny, 1)[0])
        until(lambda: stream.health().state is StreamState.STALLED)
        assert "callback" in stream.health().reason
        start = time.monotonic()
        for image in random_images(tiny, 50):
            stream.submit(image)
        assert time.monotonic() - start < 1
        free.set()
        until(lambda: stream.health().state is StreamState.RUNNING)
    assert stream.health().pending == 0
