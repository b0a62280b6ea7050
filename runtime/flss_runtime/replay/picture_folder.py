"""A folder of pictures as a recording: frames in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flss_runtime.images import PICTURE_SUFFIXES
from flss_runtime.replay.cdr import CdrWriter
from flss_runtime.replay.decision_message import write_header
from flss_runtime.replay.definitions import COMPRESSED_IMAGE
from flss_runtime.replay.recordings import RawMessage, Topic

TOPIC_NAME = "/pictures"
FRAMES_PER_S = 30  # pictures have no times; a plot and a player need some


class PictureFolder:
    """Pictures as messages of type `sensor_msgs/CompressedImage`, 30 a second, whose frame_id is the file's name.

    Numbers in names count as numbers: frame_9.png comes before frame_10.png.

    Args:
        folder: Where the pictures are, folders in it included.
    """

    damage: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = sorted(pictures_in(folder), key=lambda file: natural_order(str(file)))
        self.share = 0.0
        self.topics = (Topic(TOPIC_NAME, COMPRESSED_IMAGE, "cdr", len(self._files)),)

    def messages(self, topic: Topic) -> Iterator[RawMessage]:
        """Yield the pictures; one that cannot be read is a message without data."""
        for number, file in enumerate(self._files):
            self.share = number / len(self._files)
            time_ns = number * 1_000_000_000 // FRAMES_PER_S
            try:
                content = file.read_bytes()
            except OSError as error:
                yield RawMessage(time_ns, b"", f"cannot read {file}: {error.strerror}")
                continue
            writer = CdrWriter()
            write_header(writer, time_ns, str(file.relative_to(self._folder)))
            writer.text(file.suffix.lower().removeprefix(".").replace("jpg", "jpeg"))
            writer.octets(content)
            yield RawMessage(time_ns, writer.message())
        self.share = 1.0


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures below a folder, in no particular order."""
    return [file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Give the key by which numbers in names sort as numbers; 01 and 1 are told apart by the name itself."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)], name
