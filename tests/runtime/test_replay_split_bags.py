"""A bag of several files is read file by file; one that is damaged or missing costs its own frames only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flss_runtime.errors import DataError
from flss_runtime.replay import BagFrame, open_frames

from .drives import FRAMES, TOPIC, list_files, split_bag, write_rosbag, write_without_index

SUFFIXES = {"sqlite3": ".db3", "mcap": ".mcap"}


def read(path: str | Path, topic: str | None = None) -> tuple[list[BagFrame], list[str]]:
    with open_frames(path, topic) as source:
        return list(source), list(source.damage)


def numbers(frames: list[BagFrame]) -> list[int]:
    assert all(frame.error == "" for frame in frames)
    return [int(frame.frame_id.removeprefix("camera_")) for frame in frames]


@pytest.fixture(params=SUFFIXES)
def storage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bag(storage: str, tmp_path: Path) -> Path:
    return split_bag(tmp_path / "drive", storage)


def test_the_share_that_was_read_never_falls_and_ends_at_one(storage: str, bag: Path) -> None:
    with open_frames(bag) as source:
        shares = [source.share, *(source.share for _ in source), source.share]
        assert list(source.damage) == []
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    for read_before in (0, 4, 8):
        assert read_before <= 12 * shares[read_before + 1] <= read_before + 4
    if storage == "sqlite3":  # chunks are coarser
        assert shares[1:-1] == pytest.approx([number / 12 for number in range(1, 13)])


def test_the_share_of_a_file_without_index_begins_at_nothing_and_ends_at_one(tmp_path: Path) -> None:
    path = write_without_index(tmp_path / "drive.mcap", FRAMES)
    for content in (path.read_bytes(), path.read_bytes()[:-4000]):
        path.write_bytes(content)
        with open_frames(path) as source:
            shares = [source.share, *(source.share for _ in source), source.share]
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and 0.3 < shares[6] < 0.7


def test_a_file_without_the_topic_is_passed_over(storage: str, bag: Path, tmp_path: Path) -> None:
    write_rosbag(tmp_path / "other", FRAMES[:2], storage, topic="/other")
    (made,) = (tmp_path / "other").glob("*" + SUFFIXES[storage])
    made.rename(bag / f"drive_1{made.suffix}")
    with open_frames(bag, TOPIC) as source:
        assert numbers(list(source)) == list(range(12))
        assert list(source.damage) == [] and source.share == 1


@pytest.mark.parametrize("content", [b"", b"12345678" * 99], ids=["empty", "of something else"])
def test_a_file_that_cannot_be_opened_costs_its_own_frames_only(storage: str, bag: Path, content: bytes) -> None:
    suffix = SUFFIXES[storage]
    (bag / f"drive_10{suffix}").write_bytes(content)
    frames, damage = read(bag)
    assert numbers(frames) == list(range(8))
    assert len(damage) == 1 and f"drive_10{suffix}" in damage[0]
    for number in (0, 2):
        (bag / f"drive_{number}{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=f"drive_0{suffix}"):
        read(bag)


def test_a_compressed_file_that_cannot_be_opened_costs_its_own_frames_only(tmp_path: Path) -> None:
    bag = split_bag(tmp_path / "drive", compression="file")
    (bag / "drive_2.db3.zstd").write_bytes(b"12345678")
    frames, damage = read(bag)
    assert numbers(frames) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert len(damage) == 1 and "drive_2.db3.zstd is no zstd file" in damage[0]


def test_names_that_are_no_files_are_ignored(bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [file.name for file in bag.iterdir()]
    monkeypatch.chdir(bag)
    for listed in (["''", ".", "..", "/", "a/..", *names], ["", "."]):
        list_files(bag, listed)
        frames, damage = read(".")
        assert sorted(numbers(frames)) == list(range(12)) and damage == []


def test_a_file_that_is_not_listed_is_said(storage: str, bag: Path) -> None:
    suffix = SUFFIXES[storage]
    list_files(bag, [f"drive_0{suffix}", f"drive_2{suffix}"])
    frames, damage = read(bag)
    assert numbers(frames) == list(range(8))
    assert len(damage) == 1 and f"drive_10{suffix} is left out" in damage[0]


def test_an_unpacked_file_beside_the_listed_one_is_no_damage(tmp_path: Path) -> None:
    packed = write_rosbag(tmp_path / "drive", FRAMES, compression="file")
    (unpacked,) = write_rosbag(tmp_path / "unpacked" / "drive", FRAMES).glob("*.db3")
    (name,) = (file.name for file in packed.glob("*.zstd"))
    shutil.copy(unpacked, packed / name.removesuffix(".zstd"))
    (packed / "._drive.db3").write_bytes(b"of macOS")
    frames, damage = read(packed)
    assert numbers(frames) == list(range(12)) and damage == []
