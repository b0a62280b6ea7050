"""What happened when, in memory that does not grow: single frames at first, then spans of two, four and so on."""

from __future__ import annotations

from typing import Any

import numpy as np

from flss_runtime.decision import Decision

_SPANS = 2048  # more than a picture has columns; even, because pairs are joined
_ACCEPTED, _REJECTED, _UNANSWERED, _ACCEPTED_SHARE, _REJECTED_SHARE = range(5)


class Timeline:
    """Frames in the order they came, `frames_per_span` of them a span.

    Args:
        spans: How many spans there are at most, even.
    """

    def __init__(self, spans: int = _SPANS) -> None:
        self.frames_per_span = 1
        self._frames = 0
        self._starts = np.zeros(spans, np.int64)
        self._sums = np.zeros((spans, 5))
        self._lowest = np.ones(spans)
        self._slowest = np.zeros(spans)

    def add(self, time_ns: int, decision: Decision, latency_ms: float) -> None:
        """Take the next frame.

        Args:
            time_ns: When it was recorded, in nanoseconds.
            decision: What became of it.
            latency_ms: How long that took, in milliseconds.
        """
        span = self._frames // self.frames_per_span
        if span == len(self._starts):
            self._join_pairs()
            span //= 2
        if self._frames % self.frames_per_span == 0:
            self._starts[span] = time_ns
        sums = self._sums[span]
        if decision.top_label is None:
            sums[_UNANSWERED] += 1
        else:
            accepted = decision.accepted
            sums[_ACCEPTED if accepted else _REJECTED] += 1
            sums[_ACCEPTED_SHARE if accepted else _REJECTED_SHARE] += decision.vote_share
            self._lowest[span] = min(self._lowest[span], decision.vote_share)
        self._slowest[span] = max(self._slowest[span], latency_ms)
        self._frames += 1

    def to_json(self) -> list[dict[str, Any]]:
        """Give the spans as JSON values.

        Returns:
            For each span `time_s` since the first frame, the numbers of frames `accepted`, `rejected` and `unanswered`,
            the mean vote shares `accepted_share` and `rejected_share` and the lowest one, `lowest_share`, each None
            where there is no such frame, and `slowest_ms`.
        """
        used = -(-self._frames // self.frames_per_span)
        return [self._span(place) for place in range(used)]

    def _span(self, place: int) -> dict[str, Any]:
        sums = self._sums[place]
        accepted, rejected = int(sums[_ACCEPTED]), int(sums[_REJECTED])
        return {
            "time_s": int(self._starts[place] - self._starts[0]) / 1e9,
            "accepted": accepted,
            "rejected": rejected,
            "unanswered": int(sums[_UNANSWERED]),
            "accepted_share": round(sums[_ACCEPTED_SHARE] / accepted, 4) if accepted else None,
            "rejected_share": round(sums[_REJECTED_SHARE] / rejected, 4) if rejected else None,
            "lowest_share": round(float(self._lowest[place]), 4) if accepted or rejected else None,
            "slowest_ms": round(float(self._slowest[place]), 4),
        }

    def _join_pairs(self) -> None:
        half = len(self._starts) // 2
        self._starts[:half] = self._starts[::2]
        self._sums[:half] = self._sums[::2] + self._sums[1::2]
        self._lowest[:half] = np.minimum(self._lowest[::2], self._lowest[1::2])
        self._slowest[:half] = np.maximum(self._slowest[::2], self._slowest[1::2])
        self._sums[half:], self._lowest[half:], self._slowest[half:] = 0, 1, 0
        self.frames_per_span *= 2
