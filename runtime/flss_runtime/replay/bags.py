"""Frames out of what was recorded: .mcap files, rosbag2 folders and .db3 files, and folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from flss_runtime.errors import DataError, UsageError
from flss_runtime.images import ByteArray
from flss_runtime.replay.cdr import CdrReader
from flss_runtime.replay.definitions import COMPRESSED_IMAGE, IMAGE
from flss_runtime.replay.mcap_recording import McapRecording
from flss_runtime.replay.picture_folder import PictureFolder, natural_order, pictures_in
from flss_runtime.replay.recordings import JoinedRecording, RawMessage, Recording, Topic
from flss_runtime.replay.sqlite_recording import SqliteRecording
from flss_runtime.replay.zstandard_files import ZSTD_MAGIC, decompress, decompressed_file
from flss_runtime.ros_images import image_from_compressed, image_from_ros

_SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_FIX = "pass a .mcap file, a rosbag2 folder or .db3 file, or a folder of pictures"
_END_OF_TIME_NS = 2**63  # in the year 2262
_LAST_STAMP_NS = 2**31 * 1_000_000_000 - 1  # that a header can hold


@dataclass(frozen=True, slots=True)
class BagFrame:
    """One image message.

    Attributes:
        log_time_ns: When it was recorded, in nanoseconds, from 0 to 2**63 - 1.
        stamp_ns: When it was taken, as its header says, in nanoseconds.
        frame_id: Its frame of reference, as its header says.
        image: (H, W, 3) uint8 RGB, not to be written to; None where the message is no image that can be read.
        error: Why there is none, otherwise empty.
        message: The message as it was recorded, in CDR.
    """

    log_time_ns: int
    stamp_ns: int
    frame_id: str
    image: ByteArray | None
    error: str
    message: bytes


class FrameSource:
    """The frames of one topic, in the order they were recorded; iterate once, and close it or use it in a `with`.

    Args:
        recording: What was opened.
        topic: One of its topics, of images.
        undo: Closes its files.
    """

    def __init__(self, recording: Recording, topic: Topic, undo: ExitStack) -> None:
        self.topic = topic
        self._recording = recording
        self._undo = undo
        self._timeless = 0  # messages

    @property
    def damage(self) -> Sequence[str]:
        """What of the bag could not be read so far, and why; complete once all frames were taken."""
        lost = (
            f"{self._timeless:,} of the messages of {self.topic.name} have no time from 1970 to 2262, and are left out"
        )
        return [*self._recording.damage, *([lost] if self._timeless else [])]

    @property
    def share(self) -> float:
        """How much of the bag the frames taken so far are, from 0 to 1."""
        return self._recording.share

    def __iter__(self) -> Iterator[BagFrame]:
        for message in self._recording.messages(self.topic):
            if _is_time(message.log_time_ns):
                yield read_frame(self.topic.kind, message)
            else:
                self._timeless += 1

    def close(self) -> None:
        """Close the files."""
        self._undo.close()

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_frames(path: str | Path, topic: str | None = None) -> FrameSource:
    """Open a recorded drive.

    A bag that was cut off gives what can be read; `FrameSource.damage` then says how far that went.

    Args:
        path: A .mcap or .db3 file, a rosbag2 folder of either, each also as zstd, or a folder of pictures.
        topic: A topic of `sensor_msgs/Image` or `CompressedImage`; None takes the only one.

    Returns:
        The frames; close it.

    Raises:
        UsageError: There is no such topic of images, or none or several to choose from; the message lists them all.
        DataError: The bag cannot be read, holds nothing, or is of ROS 1.
        EngineUnavailable: A library that reads it is not installed.
    """
    with ExitStack() as undo:
        recording = _open(Path(path), undo)
        chosen = _choose(recording.topics, topic, path)
        return FrameSource(recording, chosen, undo.pop_all())


def read_frame(kind: str, raw: RawMessage) -> BagFrame:
    """Read one message of images; what is wrong with it is in the frame's `error`.

    Args:
        kind: "sensor_msgs/msg/Image" or "sensor_msgs/msg/CompressedImage".
        raw: As it was recorded; message by message compression is undone.
    """
    frame = BagFrame(raw.log_time_ns, min(raw.log_time_ns, _LAST_STAMP_NS), "", None, raw.error, raw.data)
    if raw.error:
        return frame
    try:
        if raw.data.startswith(ZSTD_MAGIC):
            frame = replace(frame, message=decompress(raw.data))
        reader = CdrReader(frame.message)
        seconds, nanoseconds = reader.number("int32"), reader.number("uint32")
        if nanoseconds >= 1_000_000_000:
            raise DataError(f"its stamp has {nanoseconds:,} nanoseconds beside its seconds", "record it again")
        frame = replace(frame, stamp_ns=seconds * 1_000_000_000 + nanoseconds, frame_id=reader.text())
        return replace(frame, image=_compressed_image(reader) if kind == COMPRESSED_IMAGE else _image(reader))
    except DataError as error:
        return replace(frame, error=f"{error.problem}; {error.fix}")


def _is_time(value: object) -> bool:
    """Say whether a bag's value is a time: SQLite keeps anything in any column, and MCAP's times have 64 bits."""
    return isinstance(value, int) and 0 <= value < _END_OF_TIME_NS


def _image(reader: CdrReader) -> ByteArray:
    height, width = reader.number("uint32"), reader.number("uint32")
    encoding = reader.text()
    is_bigendian, step = reader.number("uint8"), reader.number("uint32")
    return image_from_ros(encoding, height, width, step, is_bigendian, reader.octets())


def _compressed_image(reader: CdrReader) -> ByteArray:
    form = reader.text()
    return image_from_compressed(form, reader.octets())


def _open(path: Path, undo: ExitStack) -> Recording:
    if not path.exists():
        raise DataError(f"{path} does not exist", _FIX)
    if path.is_dir():
        return _open_folder(path, undo)
    if path.name.endswith(_SUFFIXES):
        return _open_file(path, undo)
    with path.open("rb") as file:
        if file.read(7) == b"#ROSBAG":
            fix = f"convert it: pip install rosbags, then rosbags-convert --src {path} --dst {path.stem}"
            raise DataError(f"{path} is a bag of ROS 1", fix)
    raise DataError(f"{path} is no bag", _FIX)


def _open_file(path: Path, undo: ExitStack) -> Recording:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", "copy or record it again")
    if path.suffix != ".zstd":
        return _open_unpacked(path, path, undo)
    unpacked, missing = undo.enter_context(decompressed_file(path))
    recording = _open_unpacked(unpacked, path, undo)
    return JoinedRecording([recording], [missing]) if missing else recording


def _open_unpacked(path: Path, known_as: Path, undo: ExitStack) -> Recording:
    if path.suffix == ".mcap":
        return McapRecording(path, known_as)
    recording = SqliteRecording(path, known_as)
    undo.callback(recording.close)
    return recording


def _open_folder(folder: Path, undo: ExitStack) -> Recording:
    bags = (file for file in folder.iterdir() if file.name.endswith(_SUFFIXES) and not file.name.startswith("."))
    here = sorted(bags, key=lambda file: natural_order(file.name))
    metadata = folder / "metadata.yaml"
    listed = _listed_files(metadata) if metadata.is_file() else []
    if not here and not listed:
        if not pictures_in(folder):
            raise DataError(f"the folder {folder} holds no bag and no picture", _FIX)
        return PictureFolder(folder)
    names = listed or [file.name for file in here]
    found = {name: _present(folder / name) for name in names}
    present = [file for file in found.values() if file is not None]
    if not present:
        raise DataError(f"the files that {metadata} lists are not there: {', '.join(names)}", "copy the whole folder")
    damage = [
        f"{folder / name} is not there, though metadata.yaml lists it" for name, file in found.items() if file is None
    ]
    known = {name.removesuffix(".zstd") for name in names}  # what was compressed may also lie there unpacked
    damage += [
        f"{file} is left out, for metadata.yaml does not list it"
        for file in here
        if file.name.removesuffix(".zstd") not in known
    ]
    return _join(present, damage, undo)


def _join(files: Sequence[Path], damage: list[str], undo: ExitStack) -> JoinedRecording:
    parts, failed = [], []
    for file in files:
        try:
            parts.append(_open_file(file, undo))
        except DataError as error:  # a recorder that lost power leaves its last file empty
            failed.append(error)
    if not parts:
        raise failed[0]
    return JoinedRecording(parts, [*damage, *(error.problem for error in failed)])


def _present(file: Path) -> Path | None:
    """Return where a listed file is; some versions list a compressed one by its name before."""
    compressed = file.with_name(file.name + ".zstd")
    return next((each for each in (file, compressed) if each.is_file()), None)


def _listed_files(metadata: Path) -> list[str]:
    """Return the file names of a bag in order; where the list is not as rosbag2 writes it, none."""
    block = re.search(r"^\s*relative_file_paths:\s*\n((?:\s*- .*\n?)+)", metadata.read_text("utf-8", "replace"), re.M)
    paths = re.findall(r"- (.*)", block[1]) if block else []
    names = [Path(path.strip().strip("'\"")).name for path in paths]  # early versions name the folder too
    return [name for name in names if name not in ("", "..")]


def _choose(topics: Sequence[Topic], wanted: str | None, path: str | Path) -> Topic:
    if not any(topic.count != 0 for topic in topics):
        raise DataError(f"{path} holds no message", "record it again; a bag that was cut off early has nothing to read")
    listing = "\n".join(f"  {topic.name}  {topic.kind}  {_counted(topic)}" for topic in topics)
    images = [topic for topic in topics if topic.kind in (IMAGE, COMPRESSED_IMAGE)]
    named = [topic for topic in images if topic.name == wanted]
    if wanted is not None and not named:
        others = [topic for topic in topics if topic.name == wanted]
        problem = f"{wanted} is of type {others[0].kind}, not of images" if others else f"{path} has no topic {wanted}"
        raise UsageError(problem, f"choose a topic of images with --topic:\n{listing}")
    candidates = named or [topic for topic in images if not topic.name.endswith("/compressedDepth")]
    if len(candidates) != 1:
        problem = f"{path} has {'several topics' if candidates else 'no topic'} of images"
        raise UsageError(problem, f"name one with --topic:\n{listing}")
    (chosen,) = candidates
    if chosen.serialization != "cdr":
        raise DataError(
            f"{chosen.name} is serialised as {chosen.serialization!r}", "convert the bag to ROS 2: rosbags-convert"
        )
    return chosen


def _counted(topic: Topic) -> str:
    return "an unknown number of messages" if topic.count is None else f"{topic.count:,} messages"


__all__ = ["BagFrame", "FrameSource", "open_frames", "read_frame"]
