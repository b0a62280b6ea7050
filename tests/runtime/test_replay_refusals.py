"""What is no recording of images is refused with what it is, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flss_runtime.errors import DataError, UsageError
from flss_runtime.replay import open_frames

from .drives import FRAMES, write_mcap, write_messages


def empty_mcap(here: Path) -> Path:
    return write_messages(here / "drive.mcap", [])


def of_words(here: Path) -> Path:
    return write_messages(here / "drive.mcap", [b"\0\1\0\0"], kind="std_msgs/msg/String")


def file_of(here: Path, name: str, content: bytes) -> Path:
    path = here / name
    path.write_bytes(content)
    return path


def database(here: Path) -> Path:
    with sqlite3.connect(here / "other.db3") as made:
        made.execute("CREATE TABLE t (x)")
    return here / "other.db3"


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Path], Path]]] = {
    "nothing there": (DataError, "does not exist", lambda here: here / "none.mcap"),
    "an empty folder": (DataError, "no bag and no picture", lambda here: here),
    "an empty file": (DataError, "0 bytes", lambda here: file_of(here, "a.mcap", b"")),
    "no mcap inside": (DataError, "no MCAP file", lambda here: file_of(here, "a.mcap", b"12345678" * 9)),
    "no sqlite inside": (DataError, "no rosbag2 file", lambda here: file_of(here, "a.db3", b"12345678" * 99)),
    "another database": (DataError, "no rosbag2 file", database),
    "no zstd inside": (DataError, "no zstd file", lambda here: file_of(here, "a.db3.zstd", b"12345678" * 9)),
    "a zstd file larger than any disk": (
        DataError,
        "does not fit into the temporary folder",
        lambda here: file_of(here, "a.db3.zstd", b"\x28\xb5\x2f\xfd\xc0\x58" + (2**60).to_bytes(8, "little")),
    ),
    "a bag of ROS 1": (DataError, "rosbags-convert --src", lambda here: file_of(here, "a.bag", b"#ROSBAG V2.0\n")),
    "another file": (DataError, "is no bag", lambda here: file_of(here, "a.txt", b"hello")),
    "no message": (DataError, "no message", empty_mcap),
    "cut off in its header": (
        DataError,
        "no message",
        lambda here: file_of(here, "b.mcap", write_mcap(here / "a.mcap", FRAMES).read_bytes()[:40]),
    ),
    "no images": (UsageError, "(?s)no topic of images.*String", of_words),
}


@pytest.mark.parametrize(("kind", "says", "make"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_recording_is_refused(
    kind: type[Exception], says: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        open_frames(make(tmp_path))
