"""A signal's handler may come in the middle of any call of a stream, and end the program or close the stream there."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime.errors import UsageError
from flss_runtime.stream import StreamClassifier

from .moody import Results, moody_image, opened

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle

    from .conftest import TinyModel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

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
    before = signal.signal(signal.SIGALRM, lambda *_: act(stream))
    gc.disable()
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("act", [stop, StreamClassifier.close])
@pytest.mark.parametrize("call", CALLS)
def test_no_result_is_lost_and_nothing_hangs(tiny: TinyModel, moody: Bundle, call: str, act: Act) -> None:
    slow = moody_image(tiny, 2)
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
        # Its own thread waited for all; or, where the handler closed it in mid-call, somebody else has to.
        if act is not stop:
            stream.close()
        assert sorted(results.statuses()) == list(range(stream.health().submitted))
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("flss-stream")]
