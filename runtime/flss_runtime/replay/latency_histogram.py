"""Latencies in memory that does not grow: counts by size, each within one percent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flss_runtime.latency import MIN_FRAMES, percentile_name

_FINEST_MS = 1e-3
_RATIO = 1.01
_BINS = 2100  # up to 20 minutes
_STATED = (50.0, 90.0, 99.0)


class LatencyHistogram:
    """How many latencies there were of each size."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._highest = 0.0

    def add(self, latency_ms: float) -> None:
        """Count one, in milliseconds."""
        place = math.ceil(math.log(max(latency_ms, _FINEST_MS) / _FINEST_MS) / math.log(_RATIO))
        self._counts[min(place, _BINS - 1)] += 1
        self._highest = max(self._highest, latency_ms)

    def percentile(self, percentile: float) -> float | None:
        """Return the size that a share of the latencies does not exceed, at most 1 % too high, in milliseconds.

        Args:
            percentile: In (0, 100].

        Returns:
            None where there are too few latencies to state it (`latency.MIN_FRAMES`).
        """
        total = int(self._counts.sum())
        if total < MIN_FRAMES.get(percentile, 1):
            return None
        place = int(np.searchsorted(self._counts.cumsum(), math.ceil(total * percentile / 100)))
        return self._highest if place == _BINS - 1 else min(_FINEST_MS * _RATIO**place, self._highest)

    def to_json(self) -> dict[str, Any]:
        """Give n, p50, p90, p99 (None: too few) and the highest as JSON values, in milliseconds."""
        stated = {percentile_name(each): self.percentile(each) for each in _STATED}
        total = int(self._counts.sum())
        return {"n": total, **stated, "max": self._highest if total else None}
