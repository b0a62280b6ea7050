"""What a replay comes to: how many frames were answered, how they were, and how long that took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flss_runtime.decision import Status
from flss_runtime.replay.bags import BagFrame
from flss_runtime.replay.latency_histogram import LatencyHistogram
from flss_runtime.replay.timeline import Timeline
from flss_runtime.stream.results import StreamResult

_STAGES = ("fit", "classify", "total")


class ReplaySummary:
    """Counts that grow with the number of classes and not with the number of frames.

    Args:
        class_names: Names of the K classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.timeline = Timeline()
        self._statuses: Counter[Status] = Counter()
        self._gated = self._steady = 0
        self._tops = np.zeros((len(class_names), 2), np.int64)  # accepted, rejected
        self._shares = np.zeros(len(class_names))  # summed
        self._latencies = {stage: LatencyHistogram() for stage in _STAGES}
        self._times_ns: tuple[int, int] | None = None

    def add(self, frame: BagFrame, result: StreamResult) -> None:
        """Count one frame."""
        decision = result.decision
        self._statuses[decision.status] += 1
        self._gated += decision.gated
        self._steady += result.steady is not None
        if decision.top_label is not None:
            self._tops[decision.top_label, 0 if decision.accepted else 1] += 1
            self._shares[decision.top_label] += decision.vote_share
        stages = result.timing.stages_ms()
        for stage, histogram in self._latencies.items():
            latency = stages[stage]
            if latency is not None:
                histogram.add(latency)
        first = frame.log_time_ns if self._times_ns is None else self._times_ns[0]
        self._times_ns = first, frame.log_time_ns
        self.timeline.add(frame.log_time_ns, decision, stages["classify"] or 0.0)

    @property
    def frames(self) -> int:
        """How many frames there were."""
        return self._statuses.total()

    def count(self, status: Status) -> int:
        """Return how many frames ended with a status."""
        return self._statuses[status]

    @property
    def reject_rate(self) -> float | None:
        """The share of the frames that were voted on and rejected; None where none was."""
        rejected = self._statuses[Status.LOW_VOTE]
        voted = self._statuses[Status.ACCEPTED] + rejected
        return rejected / voted if voted else None

    def classes(self) -> list[dict[str, Any]]:
        """Give a row for each class that was the most voted one of some frame, as JSON values."""
        return [
            {
                "class": name,
                "frames": int(accepted + rejected),
                "accepted": int(accepted),
                "rejected": int(rejected),
                "reject_rate": float(rejected / (accepted + rejected)),
                "vote_share": float(share / (accepted + rejected)),
            }
            for name, (accepted, rejected), share in zip(self.class_names, self._tops, self._shares, strict=True)
            if accepted + rejected
        ]

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values; rates are shares, times milliseconds."""
        first_ns, last_ns = self._times_ns or (0, 0)
        return {
            "frames": self.frames,
            "duration_s": (last_ns - first_ns) / 1e9,
            "statuses": {status.value: self._statuses[status] for status in Status if self._statuses[status]},
            "reject_rate": self.reject_rate,
            "gated": self._gated,
            "steady": self._steady,
            "classes": self.classes(),
            "latency_ms": {stage: histogram.to_json() for stage, histogram in self._latencies.items()},
            "frames_per_span": self.timeline.frames_per_span,
            "timeline": self.timeline.to_json(),
        }
