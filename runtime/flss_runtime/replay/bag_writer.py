"""Decisions as an MCAP file that Foxglove and ROS 2 open, with its own message definitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flss_runtime.atomic import atomic_write
from flss_runtime.replay.bags import BagFrame
from flss_runtime.replay.decision_message import decision_values, encode_decision
from flss_runtime.replay.definitions import DECISION, SCHEMAS
from flss_runtime.replay.mcap_recording import require_mcap
from flss_runtime.replay.recordings import Topic
from flss_runtime.stream.results import StreamResult

if TYPE_CHECKING:
    from mcap.writer import Writer

DECISION_TOPIC = "/flss_edge/decision"  # where the ROS 2 node publishes them


class DecisionBag:
    """Takes the decisions of a replay, and the images too where their topic is given."""

    def __init__(self, writer: Writer, class_names: Sequence[str], images: Topic | None) -> None:
        self._writer = writer
        self._class_names = class_names
        self._decisions = self._channel(DECISION_TOPIC, DECISION)
        self._images = None if images is None else self._channel(images.name, images.kind)

    def add(self, frame: BagFrame, result: StreamResult) -> None:
        """Write one decision at the time its image was recorded, with the image's header."""
        message = encode_decision(decision_values(result, self._class_names), frame.stamp_ns, frame.frame_id)
        if self._images is not None and frame.message:
            self._write(self._images, frame, frame.message, result.frame)
        self._write(self._decisions, frame, message, result.frame)

    def _channel(self, topic: str, kind: str) -> int:
        schema = self._writer.register_schema(kind, "ros2msg", SCHEMAS[kind].encode())
        return self._writer.register_channel(topic, "cdr", schema)

    def _write(self, channel: int, frame: BagFrame, message: bytes, number: int) -> None:
        time_ns = frame.log_time_ns
        self._writer.add_message(channel, time_ns, message, publish_time=time_ns, sequence=number)


@contextmanager
def decision_bag(
    path: Path,
    class_names: Sequence[str],
    about: Mapping[str, str],
    *,
    images: Topic | None = None,
    overwrite: bool = False,
) -> Iterator[DecisionBag]:
    """Write decisions to a file that appears when the block ends, or not at all.

    Args:
        path: The .mcap file.
        class_names: Names of the K classes.
        about: What the decisions come from, for the file's metadata "flss_edge".
        images: The topic of the images, to copy them too.
        overwrite: Whether an existing file may be replaced.

    Raises:
        EngineUnavailable: The library is not installed.
        OutputError: The file exists or cannot be written.
    """
    require_mcap()
    from mcap.writer import Writer

    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2", library="flss-edge")
        writer.add_metadata("flss_edge", dict(about))
        yield DecisionBag(writer, class_names, images)
        writer.finish()  # type: ignore[no-untyped-call]
