"""What a robot's operator sees: how the stream fares, and whether the camera's world still is the calibration's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from flss_runtime.decision import Status
from flss_runtime.drift import DRIFTING
from flss_runtime.stream import Origin, StreamHealth, StreamState

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE

_STREAK = 5  # deadlines missed in a row: nothing is being decided any more
_MANY = 0.1  # of the last results


def stream_level(
    health: StreamHealth, window: Mapping[str, Any], silent_s: float | None, stale_after_s: float
) -> tuple[bytes, str]:
    """Judge a stream that should be answering; the worst that is true counts.

    Args:
        health: As the stream says.
        window: As `ResultWindow.summary`, and in the same time "unpublished" results and "unrecorded" frames.
        silent_s: Since the last image, or since activation; None where the node is not active.
        stale_after_s: After so long without an image the status is stale; 0: never.

    Returns:
        The level, and why.
    """
    if health.state is not StreamState.RUNNING:
        return ERROR, f"{health.state}: {health.reason}" if health.reason else str(health.state)
    if silent_s is None:
        return STALE, "inactive: no image is looked at"
    if 0 < stale_after_s < silent_s:
        return STALE, f"no image for {silent_s:.0f} s"
    if health.deadline_streak >= _STREAK:
        return ERROR, f"{health.deadline_streak} deadlines missed in a row"
    if window["unpublished"] or window["unrecorded"]:
        return WARN, f"{window['unpublished']} results not published, {window['unrecorded']} frames not recorded"
    for share, what in (("missed_share", "missed their deadline"), ("superseded_share", "were superseded")):
        if (window[share] or 0) > _MANY:
            return WARN, f"{window[share]:.0%} of the images {what}"
    answer_hz, p50 = window["answer_hz"], window["latency_p50_ms"]
    return OK, "no image decided lately" if p50 is None else f"{answer_hz:.1f} decisions a second, {p50:.1f} ms"


def stream_status(
    node: str, level: bytes, message: str, health: StreamHealth, window: Mapping[str, Any], origin: Origin
) -> DiagnosticStatus:
    """Return the status of a node's stream with its figures; the node by its fully qualified name."""
    values = {
        **window,
        "state": health.state.value,
        "submitted": health.submitted,
        "pending": health.pending,
        **{status.value: health.results.get(status, 0) for status in Status},
        "frame_age_s": health.frame_age_s,
        "answer_age_s": health.answer_age_s,
        "deadline_streak": health.deadline_streak,
        "late": health.late,
        "restarts": health.restarts,
        "next_try_s": health.next_try_s,
        "callback_errors": health.callback_errors,
        "callback_max_ms": health.callback_max_ms,
        "record_lost": health.record_lost,
        "engine": origin.engine,
        "precision": origin.precision,
        "sampling": origin.sampling,
        "bundle": origin.bundle,
        "bundle_sha256": origin.bundle_sha256,
    }
    return _status(f"{node}: stream", origin.bundle, level, message, values)


def drift_status(node: str, report: Mapping[str, Any], bundle: str) -> DiagnosticStatus:
    """Return the status of a node's drift monitor, from its report.

    A reference that cannot serve is a warning, for somebody asked for the monitor; too few frames so far are none.
    """
    level = WARN if report["state"] == DRIFTING or report["fix"] else OK
    message = ": ".join(part for part in (report["state"], report["reason"], report["fix"]) if part)
    values = {key: value for key, value in report.items() if key not in ("shares", "reason", "fix")}
    for name, share in report["shares"].items():
        values[f"{name}, now"], values[f"{name}, reference"] = share["now"], share["reference"]
    return _status(f"{node}: drift", bundle, level, message, values)


def unconfigured_status(node: str, problem: str) -> DiagnosticStatus:
    """Return the status of a node without a stream; `problem` is why it has none, empty where nobody asked for one."""
    if problem:
        return _status(f"{node}: stream", "", ERROR, f"not configured: {problem}", {})
    return _status(f"{node}: stream", "", STALE, "not configured", {})


def _status(name: str, bundle: str, level: bytes, message: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=bundle, values=pairs)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
