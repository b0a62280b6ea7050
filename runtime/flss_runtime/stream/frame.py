"""A submitted frame on its way to its result."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import numpy.typing as npt

from flss_runtime.decision import Decision
from flss_runtime.stream.results import StreamResult

NEVER = 2**63 - 1
"""A deadline, in nanoseconds, that does not come."""

Pixels = npt.NDArray[Any]


class Frame:
    """What the threads of a stream hand each other; whoever settles it decides its result, once.

    Attributes:
        number: Of the submission, from 0.
        stamp: The source's own time in nanoseconds, or None.
        source: What the caller wants back with the result.
        submitted: When the submission began, `time.monotonic_ns`.
        deadline: When a result is due, on the same clock; `NEVER` without deadline.
        pixels: The copy of the image; None once its buffer was given back.
        started: When its turn came; None before.
        fitted: When it had its size; None before.
        decided: When the classifier had decided; None before.
        num_samples: Latent samples that voted; 0 where nothing did.
        decision: Its result's; None until it is settled.
        settled: Whether nobody else may decide its result any more.
        delivered: Whether the callback was called with it.
        box: Where a caller waits for the result; None where none does.
    """

    __slots__ = (
        "box",
        "deadline",
        "decided",
        "decision",
        "delivered",
        "fitted",
        "num_samples",
        "number",
        "pixels",
        "settled",
        "source",
        "stamp",
        "started",
        "submitted",
    )

    def __init__(
        self,
        stamp: int | None,
        source: object,
        submitted: int,
        deadline: int,
        box: SimpleQueue[StreamResult] | None = None,
    ) -> None:
        self.number = -1
        self.stamp = stamp
        self.source = source
        self.submitted = submitted
        self.deadline = deadline
        self.pixels: Pixels | None = None
        self.started: int | None = None
        self.fitted: int | None = None
        self.decided: int | None = None
        self.num_samples = 0
        self.decision: Decision | None = None
        self.settled = False
        self.delivered = False
        self.box = box
