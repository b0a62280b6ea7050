"""Waiting in a way that a signal's handler may interrupt at any moment, end, or do itself."""

from __future__ import annotations

import time
from collections.abc import Callable

_STEP_S = 0.002


def wait_until(true: Callable[[], bool], limit_s: float) -> bool:
    """Look again and again until something is true, and return whether it is.

    Without a lock, for events, queues with a limit and `Thread.join` have locks in Python: a handler that comes while
    one is taken waits for itself; and up to Python 3.12 a `join` that a handler ends takes the thread for ended.

    Args:
        true: Asked every 2 ms, by the calling thread.
        limit_s: How long at most, in seconds.
    """
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(_STEP_S)
    return True
