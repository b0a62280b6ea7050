"""Frames come out of bags as they went in, whoever wrote them; damaged ones give what they have and say so."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from mcap.writer import CompressionType
from PIL import Image

from flss_runtime.errors import DataError, EngineUnavailable, UsageError
from flss_runtime.replay import BagFrame, open_frames
from flss_runtime.replay.definitions import COMPRESSED_IMAGE, IMAGE

from .answers import answer
from .drives import (
    FRAMES,
    TOPIC,
    Frames,
    cdr,
    drive_frames,
    image_fields,
    list_files,
    log_time_ns,
    split_bag,
    stamp_ns,
    write_mcap,
    write_messages,
    write_rosbag,
    write_without_index,
)


def read(path: Path, topic: str | None = None) -> tuple[list[BagFrame], list[str]]:
    with open_frames(path, topic) as source:
        return list(source), list(source.damage)


def assert_is_drive(frames: list[BagFrame], expected: Frames = FRAMES, first: int = 0) -> None:
    assert len(frames) == len(expected)
    for number, (frame, pixels) in enumerate(zip(frames, expected, strict=True), first):
        assert frame.error == "" and frame.image is not None
        np.testing.assert_array_equal(frame.image, pixels)
        assert (frame.stamp_ns, frame.log_time_ns) == (stamp_ns(number), log_time_ns(number))
        assert frame.frame_id == f"camera_{number}"


def listed_bag(path: Path) -> Path:
    return list_files(split_bag(path), [f"drive_{number}.db3" for number in (0, 2, 10)])


BAGS: dict[str, Callable[[Path], Path]] = {
    "mcap": lambda here: write_mcap(here / "drive.mcap", FRAMES),
    "mcap between other topics": lambda here: write_mcap(here / "drive.mcap", FRAMES, chatter=True),
    "mcap of compressed images": lambda here: write_mcap(here / "drive.mcap", FRAMES, kind=COMPRESSED_IMAGE),
    "mcap with lz4": lambda here: write_mcap(here / "drive.mcap", FRAMES, compression=CompressionType.LZ4),
    "mcap with the type's short name": lambda here: write_messages(
        here / "drive.mcap", [cdr(IMAGE, image_fields(f, n)) for n, f in enumerate(FRAMES)], kind="sensor_msgs/Image"
    ),
    "mcap without index and chunks": lambda here: write_without_index(here / "drive.mcap", FRAMES),
    "rosbags' mcap folder": lambda here: write_rosbag(here / "drive", FRAMES, "mcap"),
    "rosbags' sqlite folder": lambda here: write_rosbag(here / "drive", FRAMES),
    "an older version": lambda here: write_rosbag(here / "drive", FRAMES, version=8),
    "sqlite, compressed images": lambda here: write_rosbag(here / "drive", FRAMES, kind=COMPRESSED_IMAGE),
    "sqlite, zstd by file": lambda here: write_rosbag(here / "drive", FRAMES, compression="file"),
    "sqlite, zstd by message": lambda here: write_rosbag(here / "drive", FRAMES, compression="message"),
    "mcap, zstd by message": lambda here: write_rosbag(here / "drive", FRAMES, "mcap", compression="message"),
    "a lone .db3": lambda here: next(write_rosbag(here / "drive", FRAMES).glob("*.db3")),
    "a lone .db3.zstd": lambda here: next(write_rosbag(here / "drive", FRAMES, compression="file").glob("*.zstd")),
    "several files": lambda here: split_bag(here / "drive"),
    "several mcap files": lambda here: split_bag(here / "drive", "mcap"),
    "several files with a list": lambda here: listed_bag(here / "drive"),
}


@pytest.mark.parametrize("make", BAGS.values(), ids=BAGS)
def test_frames_come_out_as_they_went_in(make: Callable[[Path], Path], tmp_path: Path) -> None:
    frames, damage = read(make(tmp_path))
    assert_is_drive(frames)
    assert damage == []


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    names = [f"frame_{number}.png" for number in range(11)] + ["more/frame_0.png"]
    for name, frame in zip(names, FRAMES, strict=True):
        Image.fromarray(frame).save(folder / name)
    (folder / "frame_5.png").write_bytes(b"no picture")
    frames, damage = read(folder)
    assert [frame.frame_id for frame in frames] == names and damage == []
    assert "not a picture" in frames[5].error
    assert frames[3].stamp_ns == frames[3].log_time_ns == 100_000_000
    for number in (0, 10, 11):
        np.testing.assert_array_equal(frames[number].image, FRAMES[number])  # type: ignore[arg-type]


def test_memory_holds_one_frame_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    def peak(count: int) -> int:
        path = write_mcap(tmp_path / f"{count}.mcap", drive_frames(count, 120, 160))
        tracemalloc.start()
        with open_frames(path) as source:
            for frame in source:
                assert frame.image is not None
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(120) < 1.2 * peak(30)  # bytes; 120 frames are 7 MB


def write_a_chunk_a_frame(path: Path, frames: Frames) -> Path:
    return write_mcap(path, frames, chunk_size=2000)


@pytest.mark.parametrize("make", [write_a_chunk_a_frame, write_without_index])
def test_a_bag_that_was_cut_off_gives_what_it_has(make: Callable[[Path, Frames], Path], tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mcap", FRAMES).read_bytes()
    found = []
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        path = tmp_path / "cut.mcap"
        path.write_bytes(whole[: int(share * len(whole))])
        frames, damage = read(path)
        assert_is_drive(frames, FRAMES[: len(frames)])
        found.append(len(frames))
        if len(frames) < 12:  # else it was the index that was cut off
            (problem,) = damage
            assert "cut off or damaged at byte" in problem and f"of {int(share * len(whole)):,}" in problem
    assert found == sorted(found) and found[0] >= 1 and 9 <= found[-2] < 12


def test_a_bag_that_lost_its_index_alone_lost_no_frame(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", FRAMES)
    path.write_bytes(path.read_bytes()[:-20])
    frames, damage = read(path)
    assert_is_drive(frames)
    assert damage == []


@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_chunk_costs_its_own_frames_only(indexed: bool, tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", FRAMES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content if indexed else content[:-8])
    frames, damage = read(path)
    numbers = [int(frame.frame_id.removeprefix("camera_")) for frame in frames]
    assert numbers[0] == 0 and numbers[-1] == 11 and 8 <= len(numbers) < 12
    for frame, number in zip(frames, numbers, strict=True):
        np.testing.assert_array_equal(frame.image, FRAMES[number])  # type: ignore[arg-type]
    assert len(damage) == 1 and "damaged chunk" in damage[0]


def test_any_damaged_byte_is_said_or_does_no_harm(tmp_path: Path) -> None:
    whole = write_mcap(tmp_path / "whole.mcap", FRAMES[:4]).read_bytes()
    path = tmp_path / "drive.mcap"
    rng = np.random.default_rng(0)
    for place in rng.choice(np.arange(8, len(whole)), 150, replace=False):
        content = bytearray(whole)
        content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            source = open_frames(path)
        except (DataError, UsageError):
            continue
        with source:
            frames = list(source)
        answer(frames, source.topic, tmp_path / "decisions.mcap")
        damage = source.damage
        for frame in frames:
            shown = any(frame.image is not None and np.array_equal(frame.image, each) for each in FRAMES[:4])
            assert shown or frame.error, place
        assert len(frames) == 4 or damage, place


def test_a_cut_off_sqlite_file_gives_what_it_has(tmp_path: Path) -> None:
    (path,) = write_rosbag(tmp_path / "drive", drive_frames(40, 48, 64)).glob("*.db3")
    whole = path.read_bytes()
    found = []
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole)) // 4096 * 4096 + 100])
        frames, damage = read(path)
        assert_is_drive(frames, drive_frames(40, 48, 64)[: len(frames)])
        assert len(damage) == 1 and f"damaged after message {len(frames)}" in damage[0]
        found.append(len(frames))
    assert found == sorted(found) and found[-1] > 25


@pytest.mark.parametrize("writes_size", [True, False])
def test_a_cut_off_zstd_file_gives_what_it_has(tmp_path: Path, writes_size: bool) -> None:
    frames = drive_frames(40, 48, 64)  # 360 KB: zstd gives back whole blocks of 128 KiB
    whole = write_mcap(
        tmp_path / "whole.mcap", frames, chunk_size=10_000, compression=CompressionType.NONE
    ).read_bytes()
    packed = zstandard.ZstdCompressor(write_content_size=writes_size).compress(whole)
    path = tmp_path / "drive.mcap.zstd"
    path.write_bytes(packed[: int(0.8 * len(packed))])
    found, damage = read(path)
    assert_is_drive(found, frames[: len(found)])
    assert 20 < len(found) < 40
    assert all(problem.startswith(f"{path} ") for problem in damage)
    assert any("is cut off or damaged at byte" in problem for problem in damage)
    assert any(f"of {len(whole):,} bytes of it can be unpacked" in problem for problem in damage) == writes_size


def test_a_zstd_file_of_several_frames_is_one_file(tmp_path: Path) -> None:
    whole = write_mcap(tmp_path / "whole.mcap", FRAMES).read_bytes()
    path = tmp_path / "drive.mcap.zstd"
    path.write_bytes(b"".join(zstandard.compress(part) for part in (whole[:9000], whole[9000:])))
    frames, damage = read(path)
    assert_is_drive(frames)
    assert damage == []


def test_a_bag_is_never_written_to(tmp_path: Path) -> None:
    folder = write_rosbag(tmp_path / "drive", FRAMES)
    (path,) = folder.glob("*.db3")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".db3"}
    folder.chmod(0o555)
    try:
        assert_is_drive(read(folder)[0])
    finally:
        folder.chmod(0o755)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".db3"} == before


def test_a_file_that_the_bag_lists_and_that_is_gone_is_said(tmp_path: Path) -> None:
    folder = listed_bag(tmp_path / "drive")
    (folder / "drive_2.db3").unlink()
    frames, damage = read(folder)
    assert len(frames) == 8 and len(damage) == 1 and "drive_2.db3 is not there" in damage[0]


def test_messages_that_are_no_images_are_frames_with_an_error(tmp_path: Path) -> None:
    good = cdr(IMAGE, image_fields(FRAMES[0], 0))
    strange = cdr(IMAGE, {**image_fields(FRAMES[0], 2), "encoding": "rgb9"})
    short = cdr(IMAGE, {**image_fields(FRAMES[0], 3), "data": b"123"})
    messages = [good, b"", good[:100], strange, short, b"\xff" * 64, good[:3], good]
    frames, damage = read(write_messages(tmp_path / "drive.mcap", messages))
    assert damage == [] and len(frames) == len(messages)
    said = ["", "0 bytes", "100 bytes ends too early", "'rgb9'", "3 bytes", "ffffffff", "not as CDR", ""]
    for frame, words in zip(frames, said, strict=True):
        assert words in frame.error and (frame.image is None) is bool(words)
    assert (frames[3].stamp_ns, frames[3].frame_id) == (stamp_ns(2), "camera_2")  # the header was read


def test_the_topic_is_named_or_the_only_one(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "drive.mcap", FRAMES, chatter=True)
    assert len(read(path, TOPIC)[0]) == 12
    with pytest.raises(UsageError, match=r"(?s)no topic /other.*/camera/image_raw.*Image.*12.*/chatter.*String.*12"):
        read(path, "/other")
    with pytest.raises(UsageError, match="/chatter is of type std_msgs/msg/String, not of images"):
        read(path, "/chatter")


def test_of_several_topics_of_images_one_has_to_be_named(tmp_path: Path) -> None:
    folder = write_rosbag(tmp_path / "drive", FRAMES[:3], topic="/left")
    write_rosbag(tmp_path / "right", FRAMES[3:6], topic="/right")
    (other,) = (tmp_path / "right").glob("*.db3")
    other.rename(folder / "right.db3")
    (folder / "metadata.yaml").unlink()
    with pytest.raises(UsageError, match=r"(?s)several topics of images.*--topic.*/left.*3 messages.*/right"):
        read(folder)
    frames, _ = read(folder, "/right")
    np.testing.assert_array_equal(frames[0].image, FRAMES[3])  # type: ignore[arg-type]


def test_without_its_library_an_mcap_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mcap(tmp_path / "drive.mcap", FRAMES)
    sqlite = write_rosbag(tmp_path / "drive", FRAMES)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mcap", "zstandard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcap", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(EngineUnavailable, match=r"flss-edge\[mcap\]"):
        read(path)
    assert_is_drive(read(sqlite)[0])
