"""Every frame is on record, a crash costs a line, and with the key each decision can be made again."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime.errors import DataError, OutputError, UncalibratedError, UsageError
from flss_runtime.noise import KeyedNoise, SystemNoise, read_key
from flss_runtime.opening import open_classifier
from flss_runtime.stream import FrameRecorder, FrameRecords

from .bundles import random_images
from .moody import Results, opened, until

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle

    from .conftest import TinyModel


def recorded(tiny: TinyModel, bundle: Bundle, path: Path, frames: int = 5) -> Path:
    with opened(bundle, Results(), record=FrameRecorder(path)) as stream:
        for number, image in enumerate(random_images(tiny, frames)):
            stream.classify(image, stamp=1000 + number)
    return path


def test_one_line_a_frame(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    results = Results()
    with opened(bundle, results, record=FrameRecorder(tmp_path / "frames.jsonl")) as stream:
        for image in [*random_images(tiny, 20), None]:
            stream.classify(image, stamp=5)
    records = FrameRecords(tmp_path / "frames.jsonl")
    headers, frames = zip(*records, strict=True)
    assert [frame["frame"] for frame in frames] == list(range(21)) and records.cut == 0
    assert list(frames) == [json.loads(json.dumps(result.to_json(bundle.class_names))) for result in results.all]
    header = headers[0]
    assert header["origin"]["bundle_sha256"] == bundle.digest and header["class_names"] == list(bundle.class_names)
    assert header["policy"]["num_samples"] == 40 and header["library"].startswith("onnxruntime ")
    assert header["schema_version"] == 1 and header["numpy"] == np.__version__
    assert str(tmp_path) not in (tmp_path / "frames.jsonl").read_text(), "where things lie is nobody's business"


def test_with_the_key_every_decision_can_be_made_again(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    images, noise = random_images(tiny, 12), SystemNoise(record_key=tmp_path / "key")
    with opened(bundle, Results(), noise=noise, record=FrameRecorder(tmp_path / "frames.jsonl")) as stream:
        for image in images:
            stream.classify(image)
    for number, (_, frame) in reversed(list(enumerate(FrameRecords(tmp_path / "frames.jsonl")))):
        again = KeyedNoise(read_key(tmp_path / "key"), frame["counter"])
        with open_classifier(bundle, noise=again, threads=1) as classifier:
            (decision,) = classifier.classify(images[number])
        assert (decision.label, decision.top_label, decision.votes) == tuple(
            frame[name] for name in ("label", "top_label", "votes")
        )


def test_a_file_is_continued_and_each_stream_has_its_header(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    for _ in range(2):
        recorded(tiny, bundle, path, 3)
    pairs = list(FrameRecords(path))
    assert [frame["frame"] for _, frame in pairs] == [0, 1, 2, 0, 1, 2]
    assert pairs[0][0] is not pairs[3][0]


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_line_that_was_cut_off_is_told_and_left_out(
    tiny: TinyModel, bundle: Bundle, tmp_path: Path, lost: int
) -> None:
    path = recorded(tiny, bundle, tmp_path / "frames.jsonl", 3)
    path.write_bytes(path.read_bytes()[:-lost])
    records = FrameRecords(path)
    assert [frame["frame"] for _, frame in records] == ([0, 1, 2] if lost == 1 else [0, 1])
    assert records.cut == (lost > 1)
    recorded(tiny, bundle, path, 2)  # goes on after it, on a line of its own
    assert [frame["frame"] for _, frame in records] == ([0, 1, 2] if lost == 1 else [0, 1]) + [0, 1]
    assert records.cut == (lost > 1)


def test_it_is_on_disk_within_a_second_or_so(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    with opened(bundle, Results(), record=FrameRecorder(path)) as stream:
        stream.classify(random_images(tiny, 1)[0])
        start = time.monotonic()
        until(lambda: path.read_bytes().count(b"\n") == 2)  # the header's, and the frame's
        assert time.monotonic() - start < 5  # on a busy machine
        assert [frame["frame"] for _, frame in FrameRecords(path)] == [0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_stops_nothing(
    tiny: TinyModel, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "frames.jsonl"
    link.symlink_to("/dev/full")
    with (
        caplog.at_level(logging.ERROR, "flss_runtime"),
        opened(bundle, Results(), record=FrameRecorder(link)) as stream,
    ):
        for image in random_images(tiny, 3):
            assert stream.classify(image).decision.top_label is not None
        until(lambda: stream.health().record_lost == 3)
        stream.classify(random_images(tiny, 1)[0])
        assert stream.health().record_lost == 4, "the next one waits for the disk, too"
    assert stream.health().record_lost == 4
    assert len([record for record in caplog.records if "cannot be recorded" in record.message]) == 1


def test_a_stamp_of_numpy_is_a_stamp_and_a_fraction_is_none(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    path, image = tmp_path / "frames.jsonl", random_images(tiny, 1)[0]
    with opened(bundle, Results(), record=FrameRecorder(path)) as stream:
        assert type(stream.classify(image, stamp=np.int64(7)).stamp) is int
        for wrong in (1.5, "soon", np.float64(2)):
            with pytest.raises(UsageError, match="the stamp is"):
                stream.submit(image, stamp=wrong)  # type: ignore[arg-type]
        assert stream.health().submitted == 1, "a refused frame is none"
    assert [frame["stamp"] for _, frame in FrameRecords(path)] == [7]


def test_a_line_that_cannot_be_written_costs_no_other_one(
    tiny: TinyModel, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, results = tmp_path / "frames.jsonl", Results()
    with opened(bundle, results) as stream:
        for number, image in enumerate(random_images(tiny, 4)):
            stream.classify(image, stamp=number)
    recorder = FrameRecorder(path, {"record_key": "drive.key"})
    recorder.begin({})
    for result in results.all:
        odd = result.frame in (1, 2)
        recorder.write(replace(result, stamp=np.int64(1)) if odd else result)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "flss_runtime"):
        recorder.close()
    assert [(header["record_key"], frame["frame"]) for header, frame in FrameRecords(path)] == [
        ("drive.key", 0),
        ("drive.key", 3),
    ]
    assert recorder.lost == 2
    assert ["int64" in record.message for record in caplog.records] == [True], "said, and said once"


def test_what_is_no_json_is_refused_before_a_frame_comes(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    path = recorded(tiny, bundle, tmp_path / "frames.jsonl", 2)
    recorder = FrameRecorder(path, {"bag": tmp_path})
    with pytest.raises(UsageError, match="no JSON"):
        opened(bundle, Results(), record=recorder)
    assert len(list(FrameRecords(path))) == 2


def test_a_recorder_is_for_one_stream(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    recorder = FrameRecorder(tmp_path / "frames.jsonl")
    with opened(bundle, Results(), record=recorder) as stream:
        with pytest.raises(UsageError, match="one for each stream"):
            opened(bundle, Results(), record=recorder)
        stream.classify(random_images(tiny, 1)[0])
    assert [frame["frame"] for _, frame in FrameRecords(tmp_path / "frames.jsonl")] == [0], "it was not closed"
    with pytest.raises(UsageError, match="one for each stream"):
        opened(bundle, Results(), record=recorder)


def test_after_the_end_frames_are_counted_as_lost(tiny: TinyModel, bundle: Bundle, tmp_path: Path) -> None:
    recorder = FrameRecorder(tmp_path / "frames.jsonl")
    results = Results()
    with opened(bundle, results, record=recorder) as stream:
        stream.classify(random_images(tiny, 1)[0])
        recorder.close()
        stream.classify(random_images(tiny, 1)[0])
        assert stream.health().record_lost == 1
    recorder.close()


class TestRefusals:
    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent" / "frames.jsonl"):
            with pytest.raises(OutputError, match="cannot write"):
                FrameRecorder(path)

    def test_what_is_no_record(self, tmp_path: Path) -> None:
        for name, content in (("empty", b""), ("text", b"hello\nworld\n"), ("binary", bytes(range(256)))):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match="no record of frames"):
                list(FrameRecords(tmp_path / name))
        (tmp_path / "headless").write_text('{"frame": 0}\n')
        with pytest.raises(DataError, match="does not begin with a header"):
            list(FrameRecords(tmp_path / "headless"))
        with pytest.raises(DataError, match="cannot read"):
            list(FrameRecords(tmp_path / "absent"))

    @pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
    def test_a_stream_that_does_not_open_closes_its_record(self, bundle: Bundle, tmp_path: Path) -> None:
        recorder = FrameRecorder(tmp_path / "frames.jsonl")
        with pytest.raises(UncalibratedError):
            opened(bundle, Results(), num_samples=3, record=recorder)
        recorder.close()
        assert not [link for link in Path("/proc/self/fd").iterdir() if "frames.jsonl" in str(link.resolve())]
