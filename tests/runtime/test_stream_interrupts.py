"""A signal's handler may come in the middle of any call of a stream, and end the program or close the stream there."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime.errors import UsageError
from flss_runtime.stream import FrameRecorder, FrameRecords, StreamClassifier, StreamResult

from .moody import Results, moody_image, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle

    from .conftest import TinyModel

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.timeout(120, method="thread"),
]

SIGNALS = 40
Act = Callable[[StreamClassifier], object]


class Stopped(BaseException):
    """What a handler raises to end a program, as SystemExit and KeyboardInterrupt are."""


def stop(stream: StreamClassifier) -> None:
    raise Stopped


CALLS: dict[str, Act] = {
    "submit": lambda stream: stream.submit(IMAGE),
    "submit no image": lambda stream: stream.submit(None),
    "health": StreamClassifier.health,
}
IMAGE = np.zeros((8, 8, 3), np.uint8)


@contextmanager
def alarm(after_s: float, act: Act, stream: StreamClassifier) -> Iterator[None]:
    """Have a signal come once, outside of callbacks of the garbage collector: what it raises there is ignored."""
    before, collecting = signal.signal(signal.SIGALRM, lambda *_: act(stream)), gc.isenabled()
    try:
        gc.disable()
        signal.setitimer(signal.ITIMER_REAL, after_s)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if collecting:
            gc.enable()


@pytest.mark.parametrize("act", [stop, StreamClassifier.close])
@pytest.mark.parametrize("call", CALLS)
def test_no_result_is_lost_and_nothing_hangs(tiny: TinyModel, moody: Bundle, call: str, act: Act) -> None:
    slow, before = moody_image(tiny, 2), set(threading.enumerate())
    for after_s in np.random.default_rng(0).uniform(1e-4, 2e-3, SIGNALS):
        results = Results()
        stream = opened(moody, results, stall_s=20.0)
        try:
            with stream, alarm(after_s, act, stream):
                stream.submit(slow)
                while stream.health().state != "closed":
                    CALLS[call](stream)
        except (Stopped, UsageError):  # the latter: it is closed
            pass
        assert sorted(results.statuses()) == list(range(stream.health().submitted))
        assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("act", [stop, StreamClassifier.close])
def test_a_close_that_was_interrupted_goes_on(tiny: TinyModel, moody: Bundle, tmp_path: Path, act: Act) -> None:
    """Ctrl-C twice: while the first one's close waits for the frame that runs, or for the record, comes the second."""
    slow = moody_image(tiny, 20)
    for index, after_s in enumerate(np.random.default_rng(0).uniform(1e-5, 2e-2, SIGNALS)):
        results, path = Results(), tmp_path / f"{index}.jsonl"
        stream = opened(moody, results, stall_s=20.0, record=FrameRecorder(path))
        stream.submit(slow)
        until(lambda: stream.health().busy_s is not None or results.all)  # noqa: B023
        with suppress(Stopped), alarm(after_s, act, stream):
            stream.close()
        stream.close()
        assert results.statuses().keys() == {0} and not set(results.statuses().values()) & {"superseded", "fault"}
        assert [frame["frame"] for _, frame in FrameRecords(path)] == [0]


def test_a_close_waits_for_the_callback(tiny: TinyModel, moody: Bundle, tmp_path: Path) -> None:
    """The frame was decided before it gave up waiting for it, so its result counts, and so does its record."""
    called, done, path = threading.Event(), [], tmp_path / "frames.jsonl"

    def callback(result: StreamResult) -> None:
        called.set()
        time.sleep(0.3)
        done.append(result.frame)

    stream = opened(moody, callback, stall_s=0.05, record=FrameRecorder(path))
    stream.submit(moody_image(tiny))
    assert called.wait(30)
    stream.close()
    assert done == [0] and [frame["frame"] for _, frame in FrameRecords(path)] == [0]
