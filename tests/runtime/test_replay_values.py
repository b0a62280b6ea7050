"""Times, stamps and names that no recorder writes and a damaged or foreign file has: said, and no traceback."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image

from flss_runtime.errors import UsageError
from flss_runtime.replay import BagFrame, open_frames
from flss_runtime.replay.bag_writer import DECISION_TOPIC
from flss_runtime.replay.definitions import IMAGE
from flss_runtime.replay.picture_folder import natural_order

from .answers import answer
from .drives import FRAMES, cdr, image_fields, log_time_ns, write_messages, write_rosbag

GOOD = cdr(IMAGE, image_fields(FRAMES[0], 0))


def answered(path: Path) -> tuple[list[BagFrame], list[str], list[Any]]:
    """Return the frames, the damage and the headers of the decisions about them."""
    target = path.with_name("decisions.mcap")
    with open_frames(path) as source:
        frames = list(source)
        fields = answer(frames, source.topic, target)
        damage = list(source.damage)
    assert fields["frames"] == len(frames) == len(fields["timeline"])
    with target.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        headers = [ros.header for _, _, _, ros in reader.iter_decoded_messages(topics=[DECISION_TOPIC])]
    assert len(headers) == len(frames)
    return frames, damage, headers


def test_messages_recorded_at_no_time_are_left_out_and_said(tmp_path: Path) -> None:
    times = [0, 2**63, 2**31 * 10**9, 2**63 - 1, 2**64 - 1]
    frames, damage, headers = answered(
        write_messages(tmp_path / "drive.mcap", [GOOD, GOOD, b"", b"", GOOD], times=times)
    )
    assert [frame.log_time_ns for frame in frames] == [0, 2**31 * 10**9, 2**63 - 1]
    assert len(damage) == 1 and "2 of the messages of /camera/image_raw have no time" in damage[0]
    assert {header.stamp.sec for header in headers[1:]} == {2**31 - 1}  # the last that a header can hold


@pytest.mark.parametrize(("seconds", "nanoseconds"), [(12, 10**9), (2**31 - 1, 2**32 - 1), (-(2**31), 2**32 - 1)])
def test_a_stamp_with_too_many_nanoseconds_is_an_error_of_its_frame(
    seconds: int, nanoseconds: int, tmp_path: Path
) -> None:
    fields = image_fields(FRAMES[0], 0)
    fields["header"]["stamp"] = {"sec": seconds, "nanosec": nanoseconds}
    frames, damage, _ = answered(write_messages(tmp_path / "drive.mcap", [GOOD, cdr(IMAGE, fields), GOOD]))
    assert damage == [] and [bool(frame.error) for frame in frames] == [False, True, False]
    assert f"{nanoseconds:,} nanoseconds" in frames[1].error and frames[1].stamp_ns == log_time_ns(1)


@pytest.mark.parametrize("seconds", [-(2**31), -1, 2**31 - 1])
def test_every_stamp_that_a_header_can_hold_is_handed_on(seconds: int, tmp_path: Path) -> None:
    fields = image_fields(FRAMES[0], 0)
    fields["header"]["stamp"] = {"sec": seconds, "nanosec": 999_999_999}
    frames, damage, (header,) = answered(write_messages(tmp_path / "drive.mcap", [cdr(IMAGE, fields)]))
    assert damage == [] and frames[0].error == ""
    assert (header.stamp.sec, header.stamp.nanosec) == (seconds, 999_999_999)


def sqlite_bag(here: Path, change: str) -> Path:
    """A bag whose tables take anything, as SQLite's do unless told otherwise, after a change."""
    (path,) = write_rosbag(here / "drive", FRAMES).glob("*.db3")
    with sqlite3.connect(path) as database:
        for table in ("topics", "messages"):
            database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            database.execute(f"CREATE TABLE {table} AS SELECT * FROM old_{table}")
        database.execute(change)
    database.close()
    return path


IMAGES = "topic_id = (SELECT id FROM topics WHERE name = '/camera/image_raw')"


@pytest.mark.parametrize("value", ["NULL", "'soon'", "-1", "1.5", "x'00'", "1e30"])
def test_times_in_sqlite_that_are_none_are_left_out_and_said(value: str, tmp_path: Path) -> None:
    change = f"UPDATE messages SET timestamp = {value} WHERE {IMAGES} AND id % 3 = 0"
    frames, damage, _ = answered(sqlite_bag(tmp_path, change))
    assert len(frames) == 8 and not any(frame.error for frame in frames)
    assert len(damage) == 1 and "4 of the messages of /camera/image_raw have no time" in damage[0]


@pytest.mark.parametrize("value", ["NULL", "'text'", "5"])
def test_data_in_sqlite_that_are_none_are_an_error_of_their_frame(value: str, tmp_path: Path) -> None:
    change = f"UPDATE messages SET data = {value} WHERE {IMAGES} AND id % 3 = 0"
    frames, damage, _ = answered(sqlite_bag(tmp_path, change))
    assert len(frames) == 12 and damage == [] and sum(bool(frame.error) for frame in frames) == 4


@pytest.mark.parametrize("column", ["name", "type", "serialization_format"])
@pytest.mark.parametrize("value", ["NULL", "x'ff'"])
def test_topics_in_sqlite_without_a_name_are_left_out_and_said(column: str, value: str, tmp_path: Path) -> None:
    path = sqlite_bag(tmp_path, f"UPDATE topics SET {column} = {value} WHERE name = '/chatter'")
    frames, damage, _ = answered(path)
    assert len(frames) == 12 and len(damage) == 1 and "has a topic whose name, type and serialisation" in damage[0]
    with pytest.raises(UsageError, match="no topic /other"):
        open_frames(path, "/other")


def test_a_picture_whose_name_is_no_text_has_question_marks_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    try:
        with (folder / os.fsdecode(b"bild_\xff.png")).open("wb") as file:
            Image.fromarray(FRAMES[0]).save(file, "PNG")
    except OSError:
        pytest.skip("this file system has no such names")
    frames, damage, headers = answered(folder)
    assert damage == [] and frames[0].error == "" and frames[0].image is not None
    assert frames[0].frame_id == headers[0].frame_id == "bild_?.png"


def test_names_with_the_same_numbers_have_an_order() -> None:
    assert natural_order("frame_01.png") < natural_order("frame_1.png") < natural_order("frame_2.png")
