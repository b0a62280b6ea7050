"""The results of the last seconds, for the rates and latencies in the diagnostics."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from flss_runtime.decision import Status
from flss_runtime.stream import StreamResult

SPAN_S = 10.0
_KEPT = 4096  # results: above 400 a second the window is shorter than its span
_CODES = {status: code for code, status in enumerate(Status)}


class ResultWindow:
    """Takes results in one thread and sums them up in another; its memory does not grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._delivered = np.zeros(_KEPT, np.int64)
        self._status = np.zeros(_KEPT, np.uint8)
        self._total_ms = np.zeros(_KEPT, np.float32)
        self._count = 0
        self._first: int | None = None

    def add(self, result: StreamResult) -> None:
        """Take the next result."""
        timing, place = result.timing, self._count % _KEPT
        assert timing.delivered is not None
        with self._lock:
            self._delivered[place] = timing.delivered
            self._status[place] = _CODES[result.decision.status]
            self._total_ms[place] = (timing.delivered - timing.submitted) / 1e6
            self._count += 1
            if self._first is None:
                self._first = timing.delivered

    def summary(self) -> dict[str, Any]:
        """Give the last `SPAN_S` seconds.

        Returns:
            "rate_hz" of all results and "answer_hz" of those with a vote; of the latter "latency_p50_ms",
            "latency_p99_ms" and "reject_rate"; "superseded_share" and "missed_share" of all results. None where there
            is nothing to count.
        """
        now = time.monotonic_ns()
        with self._lock:
            used = min(self._count, _KEPT)
            recent = now - self._delivered[:used] <= SPAN_S * 1e9
            delivered, status = self._delivered[:used][recent], self._status[:used][recent]
            total_ms = self._total_ms[:used][recent]
        accepted, rejected = status == _CODES[Status.ACCEPTED], status == _CODES[Status.LOW_VOTE]
        answered = accepted | rejected
        since = int(delivered.min()) if used == _KEPT and recent.all() else self._first
        span_s = SPAN_S if since is None else min(SPAN_S, max(1.0, (now - since) / 1e9))
        p50, p99 = np.percentile(total_ms[answered], [50, 99]).tolist() if answered.any() else (None, None)
        return {
            "rate_hz": len(status) / span_s,
            "answer_hz": int(answered.sum()) / span_s,
            "latency_p50_ms": p50,
            "latency_p99_ms": p99,
            "reject_rate": _share(rejected, int(answered.sum())),
            "superseded_share": _share(status == _CODES[Status.SUPERSEDED], len(status)),
            "missed_share": _share(status == _CODES[Status.DEADLINE], len(status)),
        }


def _share(chosen: Any, total: int) -> float | None:
    return int(chosen.sum()) / total if total else None
