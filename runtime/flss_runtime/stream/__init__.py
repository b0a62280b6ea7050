"""Frames in, one result each out, in time: what a robot's loop calls instead of the classifier itself."""

from __future__ import annotations

from flss_runtime.stream.backoff import Backoff
from flss_runtime.stream.classifier import StreamClassifier
from flss_runtime.stream.health import StreamHealth, StreamState
from flss_runtime.stream.opening import open_stream
from flss_runtime.stream.record import FrameRecorder, FrameRecords
from flss_runtime.stream.results import Origin, StreamResult, Timing
from flss_runtime.stream.temporal import TemporalVote

__all__ = [
    "Backoff",
    "FrameRecorder",
    "FrameRecords",
    "Origin",
    "StreamClassifier",
    "StreamHealth",
    "StreamResult",
    "StreamState",
    "TemporalVote",
    "Timing",
    "open_stream",
]
