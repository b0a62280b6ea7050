"""Frames of a drive taken to what a replay makes of them, with answers that nobody computed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flss_runtime.decision import Decision, Status, unanswered
from flss_runtime.replay import BagFrame, ReplaySummary
from flss_runtime.replay.bag_writer import decision_bag
from flss_runtime.replay.recordings import Topic
from flss_runtime.stream import Origin, StreamResult, Timing

ORIGIN = Origin("ort", "fp32", "latent", "tiny.bundle", "ab" * 32, 2.0)
ACCEPTED = Decision(0, 0, 100, 1.0, Status.ACCEPTED)


def answer(frames: Iterable[BagFrame], images: Topic, target: Path) -> dict[str, Any]:
    """Write an answer to each frame and the frame itself to a bag, and return the summary as JSON has it."""
    summary = ReplaySummary(["cat"])
    with decision_bag(target, ["cat"], {}, images=images, overwrite=True) as bag:
        for number, frame in enumerate(frames):
            decision = unanswered(Status.INVALID_INPUT, frame.error) if frame.image is None else ACCEPTED
            result = StreamResult(number, frame.stamp_ns, None, decision, None, 100, Timing(0), ORIGIN)
            summary.add(frame, result)
            bag.add(frame, result)
    fields: dict[str, Any] = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    return fields
