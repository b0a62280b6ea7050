"""Results as `flss_edge_msgs/msg/Decision`: the values of its fields, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flss_runtime.decision import Status
from flss_runtime.replay.cdr import CdrWriter
from flss_runtime.replay.definitions import DECISION_DEFINITION, fields_of
from flss_runtime.stream.results import StreamResult

STATUS_CODES = {status: code for code, status in enumerate(Status)}  # the message's constants; a test compares them
_FIELDS = fields_of(DECISION_DEFINITION)


def decision_values(result: StreamResult, class_names: Sequence[str]) -> dict[str, Any]:
    """Give the value of every field of the message but the header.

    Args:
        result: What became of a frame.
        class_names: Names of the K classes.

    Returns:
        Field -> value of Python's own types; times are NaN where the frame never got that far.
    """
    decision, origin, stages = result.decision, result.origin, result.timing.stages_ms()

    def name_of(label: int | None) -> str:
        return "" if label is None else class_names[label]

    return {
        "status": STATUS_CODES[decision.status],
        "accepted": decision.label is not None,
        "label": name_of(decision.label),
        "label_index": decision.label or 0,
        "top_label": name_of(decision.top_label),
        "votes": decision.votes,
        "num_samples": result.num_samples,
        "vote_share": decision.vote_share,
        "gated": decision.gated,
        "steady_label": name_of(result.steady),
        "reason": decision.reason,
        "frame": result.frame,
        "has_counter": decision.counter is not None,
        "counter": decision.counter or 0,
        "engine": origin.engine,
        "precision": origin.precision,
        "sampling": origin.sampling,
        "bundle_sha256": origin.bundle_sha256,
        **{f"{stage}_ms": _or_nan(stages[stage]) for stage in ("wait", "classify", "total")},
    }


def encode_decision(values: Mapping[str, Any], stamp_ns: int, frame_id: str) -> bytes:
    """Serialise a message.

    Args:
        values: What `decision_values` gave.
        stamp_ns: The image's own time, in nanoseconds.
        frame_id: The image's frame of reference.

    Returns:
        The message in CDR.
    """
    writer = CdrWriter()
    for kind, name in _FIELDS:
        if kind == "std_msgs/Header":
            write_header(writer, stamp_ns, frame_id)
        elif kind == "string":
            writer.text(values[name])
        else:
            writer.number(kind, values[name])
    return writer.message()


def write_header(writer: CdrWriter, stamp_ns: int, frame_id: str) -> None:
    """Write a `std_msgs/Header`."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    writer.number("int32", seconds)
    writer.number("uint32", nanoseconds)
    writer.text(frame_id)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
