"""Recorded drives, written by other libraries than the one under test: mcap, mcap_ros2 and rosbags."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from mcap_ros2.writer import Writer as Ros2Writer
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter
from rosbags.typesys import Stores, get_typestore

from flss_runtime.replay.definitions import COMPRESSED_IMAGE, IMAGE, SCHEMAS

TOPIC = "/camera/image_raw"
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 33_333_333
DELAY_NS = 5_000_000  # from taking an image to recording it
TYPES = get_typestore(Stores.ROS2_JAZZY)
Frames = npt.NDArray[np.uint8]


def drive_frames(count: int = 12, height: int = 24, width: int = 32, seed: int = 0) -> Frames:
    """Frames that do not compress to nothing, (count, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


FRAMES = drive_frames()


def stamp_ns(number: int) -> int:
    return START_NS + number * PERIOD_NS


def log_time_ns(number: int) -> int:
    return stamp_ns(number) + DELAY_NS


def header(number: int) -> dict[str, Any]:
    seconds, nanoseconds = divmod(stamp_ns(number), 10**9)
    return {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": f"camera_{number}"}


def image_fields(frame: Frames, number: int) -> dict[str, Any]:
    height, width = frame.shape[:2]
    size = {"height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0, "step": 3 * width}
    return {"header": header(number), **size, "data": frame.tobytes()}


def compressed_fields(frame: Frames, number: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return {"header": header(number), "format": "rgb8; png compressed bgr8", "data": stream.getvalue()}


FIELDS = {IMAGE: image_fields, COMPRESSED_IMAGE: compressed_fields}


def write_mcap(
    path: Path, frames: Frames, *, topic: str = TOPIC, kind: str = IMAGE, chatter: bool = False, **options: Any
) -> Path:
    """A .mcap file by mcap_ros2, with a topic of strings in between if wanted."""
    with path.open("wb") as file:
        writer = Ros2Writer(file, **{"chunk_size": 8000, **options})
        schema = writer.register_msgdef(kind, SCHEMAS[kind])
        words = writer.register_msgdef("std_msgs/msg/String", "string data")
        for number, frame in enumerate(frames):
            if chatter:
                writer.write_message("/chatter", words, {"data": f"word {number}"}, log_time_ns(number) - 1)
            message = FIELDS[kind](frame, number)
            writer.write_message(topic, schema, message, log_time_ns(number), stamp_ns(number))
        writer.finish()
    return path


def cdr(kind: str, fields: dict[str, Any]) -> bytes:
    """One message as rosbags serialises it."""
    of_type = TYPES.types
    stamp = of_type["builtin_interfaces/msg/Time"](**fields["header"]["stamp"])
    made = of_type["std_msgs/msg/Header"](stamp=stamp, frame_id=fields["header"]["frame_id"])
    data = np.frombuffer(fields["data"], np.uint8)
    return bytes(TYPES.serialize_cdr(of_type[kind](**{**fields, "header": made, "data": data}), kind))


def write_messages(
    path: Path,
    messages: Sequence[bytes],
    *,
    kind: str = IMAGE,
    topic: str = TOPIC,
    times: Sequence[int] = (),
    **options: Any,
) -> Path:
    """A .mcap file of messages that are given as bytes, whatever they are, recorded at times that may be given too."""
    with path.open("wb") as file:
        writer = McapWriter(file, **options)
        writer.start(profile="ros2")
        schema = writer.register_schema(kind, "ros2msg", SCHEMAS.get(kind, "").encode())
        channel = writer.register_channel(topic, "cdr", schema)
        for number, message in enumerate(messages):
            writer.add_message(channel, times[number] if times else log_time_ns(number), message, stamp_ns(number))
        writer.finish()
    return path


def write_without_index(path: Path, frames: Frames) -> Path:
    """A .mcap file as simple as the format allows: no chunks and no list of contents."""
    options: dict[str, Any] = {
        "use_chunking": False,
        "compression": CompressionType.NONE,
        "index_types": IndexType.NONE,
    }
    none = {"repeat_channels": False, "repeat_schemas": False, "use_statistics": False, "use_summary_offsets": False}
    return write_messages(
        path, [cdr(IMAGE, image_fields(frame, n)) for n, frame in enumerate(frames)], **options, **none
    )


def write_rosbag(
    path: Path,
    frames: Frames,
    storage: str = "sqlite3",
    *,
    compression: str = "none",
    kind: str = IMAGE,
    topic: str = TOPIC,
    version: Any = 9,
    first: int = 0,
) -> Path:
    """A rosbag2 folder by rosbags, with a topic of strings beside."""
    writer = RosbagWriter(path, version=version, storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        words = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=TYPES)
        images = writer.add_connection(topic, kind, typestore=TYPES)
        text = TYPES.serialize_cdr(TYPES.types["std_msgs/msg/String"](data="word"), "std_msgs/msg/String")
        for number, frame in enumerate(frames, first):
            writer.write(words, log_time_ns(number) - 1, text)
            writer.write(images, log_time_ns(number), cdr(kind, FIELDS[kind](frame, number)))
    return path


def split_bag(path: Path, storage: str = "sqlite3", **options: Any) -> Path:
    """Three files of one bag, more than nine apart in their numbers."""
    for part, (number, start) in enumerate(((0, 0), (2, 4), (10, 8))):
        write_rosbag(path / f"part{part}", FRAMES[start : start + 4], storage, first=start, **options)
        (made,) = (file for file in (path / f"part{part}").iterdir() if file.suffix != ".yaml")
        made.rename(path / made.name.replace(f"part{part}", f"drive_{number}"))
        shutil.rmtree(path / f"part{part}")
    return path


def list_files(folder: Path, names: Sequence[str]) -> Path:
    """List the files of a bag as rosbag2 lists them."""
    lines = "".join(f"    - {name}\n" for name in names)
    (folder / "metadata.yaml").write_text(
        f"rosbag2_bagfile_information:\n  version: 5\n  relative_file_paths:\n{lines}  duration:\n"
    )
    return folder
