"""`flss-edge replay` from the outside: what it prints and writes, its exit codes, and what an interrupt leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image

from flss_runtime.replay.definitions import IMAGE

from .runtime.drives import FRAMES as SMALL_FRAMES
from .runtime.drives import TOPIC, cdr, image_fields, write_mcap, write_messages, write_rosbag

ENTRY = "import sys; from flss_edge.cli import main; sys.exit(main())"
Runner = Callable[..., Any]


def pixels_of(file: Path) -> Any:
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.fixture
def drive(tmp_path: Path, labelled_pictures: Path) -> Path:
    """Sixty real pictures of the bundle's classes as a drive."""
    files = sorted(labelled_pictures.rglob("*.png"))
    return write_mcap(tmp_path / "drive.mcap", np.stack([pixels_of(file) for file in files]), chatter=True)


def result_of(run: Runner, *arguments: object, code: int = 0) -> dict[str, Any]:
    done = run("replay", *arguments, "--format", "json")
    assert done.code == code, done.err
    fields: dict[str, Any] = json.loads(done.out)
    return fields


def decisions(path: Path) -> list[Any]:
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        return [ros for _, _, _, ros in reader.iter_decoded_messages(topics=["/flss_edge/decision"])]


def votes(path: Path) -> list[tuple[Any, ...]]:
    return [(each.status, each.top_label, each.votes, each.counter) for each in decisions(path)]


def test_a_drive_becomes_a_table_a_bag_a_report_and_a_picture(
    run: Runner, drive: Path, calibrated_bundle: Path, tmp_path: Path
) -> None:
    bag, report, plot = tmp_path / "out.mcap", tmp_path / "report.json", tmp_path / "timeline.png"
    done = run("replay", drive, calibrated_bundle, "-o", bag, "--report", report, "--plot", plot, "--steady", "3/5")
    assert done.code == 0, done.err
    assert "60 frames of /camera/image_raw in 2.0 s of recording" in done.out
    for written in (bag, report, plot):
        assert f"wrote {written}" in done.err
    with Image.open(plot) as picture:
        assert picture.size[0] > 1000
    fields = json.loads(report.read_text())
    assert fields["schema_version"] == 1 and fields["config"]["topic"] == TOPIC and fields["config"]["seed"] == 0
    results = fields["results"]
    statuses = [each.status for each in decisions(bag)]
    assert results["frames"] == len(statuses) == 60
    assert results["statuses"] == {
        name: statuses.count(code) for name, code in (("accepted", 0), ("low_vote", 1)) if code in statuses
    }
    assert sum(row["frames"] for row in results["classes"]) == 60
    assert results["drift"]["state"] == "insufficient" and "only 60 frames" in results["drift"]["reason"]
    assert results["damage"] == []
    (row, *classes) = [
        line for line in done.out.splitlines() if line.strip().startswith(("all", *("cat", "dog", "fox")))
    ]
    assert row.split()[:2] == ["all", "60"] and len(classes) == len(results["classes"])


def test_the_same_drive_gives_the_same_votes(run: Runner, drive: Path, calibrated_bundle: Path, tmp_path: Path) -> None:
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed", 5)), ("d", ("--sampling", "latent", "--seed", 0))):
        assert run("replay", drive, calibrated_bundle, "-o", tmp_path / f"{name}.mcap", *more).code == 0
    assert votes(tmp_path / "a.mcap") == votes(tmp_path / "b.mcap") == votes(tmp_path / "d.mcap")
    assert votes(tmp_path / "a.mcap") != votes(tmp_path / "c.mcap")


def test_a_recorded_key_gives_the_votes_of_its_run(
    run: Runner, drive: Path, calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    key = tmp_path / "noise.key"
    done = run("predict", calibrated_bundle, labelled_pictures, "--record-key", key, "--format", "json")
    live = [(row["top_class"], row["votes"], row["counter"]) for row in json.loads(done.out)["results"]]
    assert run("replay", drive, calibrated_bundle, "--key", key, "-o", tmp_path / "out.mcap").code == 0
    assert [(each.top_label, each.votes, each.counter) for each in decisions(tmp_path / "out.mcap")] == live


def test_all_formats_say_the_same(run: Runner, drive: Path, calibrated_bundle: Path) -> None:
    results = result_of(run, drive, calibrated_bundle)["results"]
    csv = run("replay", drive, calibrated_bundle, "--format", "csv").out.splitlines()
    assert csv[0] == "class,frames,accepted,rejected,reject_rate,vote_share" and len(csv) == 2 + len(results["classes"])
    assert csv[1].split(",")[:3] == ["all", "60", str(results["statuses"].get("accepted", 0))]
    assert "| all | 60 |" in run("replay", drive, calibrated_bundle, "--format", "md").out


def test_a_folder_of_pictures_and_a_rosbag_folder(
    run: Runner, drive: Path, calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    assert result_of(run, labelled_pictures / "cat", calibrated_bundle)["results"]["frames"] == 20
    bag = write_rosbag(tmp_path / "rosbag", SMALL_FRAMES)
    assert result_of(run, bag, calibrated_bundle, "--topic", TOPIC)["results"]["frames"] == len(SMALL_FRAMES)


def test_a_bag_that_was_cut_off_ends_with_seven_after_all_was_written(
    run: Runner, drive: Path, calibrated_bundle: Path, tmp_path: Path
) -> None:
    drive.write_bytes(drive.read_bytes()[:100_000])
    fields = result_of(run, drive, calibrated_bundle, "-o", tmp_path / "out.mcap", code=7)
    assert 0 < fields["results"]["frames"] == len(decisions(tmp_path / "out.mcap")) < 60
    (damage,) = fields["results"]["damage"]
    assert "cut off or damaged at byte" in damage
    done = run("replay", drive, calibrated_bundle)
    assert done.code == 7 and damage in done.out and damage in done.err


def test_pictures_that_cannot_be_read_are_counted_and_said(
    run: Runner, calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(labelled_pictures / "cat", tmp_path / "pictures")
    (tmp_path / "pictures" / "05.png").write_bytes(b"")
    fields = result_of(run, tmp_path / "pictures", calibrated_bundle, code=7)
    assert fields["results"]["statuses"]["invalid_input"] == 1 and fields["results"]["frames"] == 20
    assert "1 of them could not be read" in " ".join(fields["notes"])


REFUSED: dict[str, tuple[int, str, list[object]]] = {
    "an unknown topic": (
        2,
        r"no topic /other.*--topic.*/camera/image_raw.*sensor_msgs/msg/Image.*60",
        ["--topic", "/other"],
    ),
    "a bag under another suffix": (2, r"name it \.mcap", ["-o", "out.json"]),
    "images without a bag": (2, "-o decisions.mcap", ["--with-images"]),
    "a picture under another suffix": (2, r"end it in \.png", ["--plot", "timeline.txt"]),
    "a report under another suffix": (2, "name it .json", ["--report", "report"]),
    "seed and key": (2, "give the one that the run had", ["--seed", "1", "--key", "drive.mcap"]),
    "a file that is no key": (7, "no noise key", ["--key", "drive.mcap"]),
    "a temporal vote of less than half": (2, "more than half", ["--steady", "1/5"]),
    "a temporal vote in words": (2, "--steady 4/5", ["--steady", "most"]),
    "seed of what has none": (2, "deterministic sampling has no noise", ["--sampling", "deterministic", "--seed", "1"]),
    "an existing bag": (7, "--overwrite", ["-o", "there.mcap"]),
    "an existing picture": (7, "--overwrite", ["--plot", "there.png"]),
    "an uncalibrated number of samples": (3, "not calibrated for N = 7", ["-n", "7"]),
}


@pytest.mark.parametrize(("code", "says", "options"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_ends_with_its_code_and_leaves_nothing(
    code: int,
    says: str,
    options: list[object],
    run: Runner,
    drive: Path,
    calibrated_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.mcap", "there.png"):
        (tmp_path / name).write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    done = run("replay", drive, calibrated_bundle, *options)
    assert done.code == code, done.err
    assert re.search(says, " ".join(done.err.split())), done.err
    assert sorted(tmp_path.iterdir()) == before


IN_ITS_PLACE: dict[str, tuple[str, str, str]] = {
    "the recording": ("drive.mcap", "-o", "drive.mcap"),
    "a link to it": ("drive.mcap", "-o", "link.mcap"),
    "what a link leads to": ("link.mcap", "-o", "drive.mcap"),
    "a file of the folder": ("bag", "-o", "bag/part.mcap"),
    "a new file in the folder": ("bag", "-o", "bag/new.mcap"),
    "a file of a linked folder": ("linked", "--report", "bag/part.json"),
    "what a link in the folder leads to": ("bag", "-o", "drive.mcap"),
    "a picture of the folder": ("pictures", "--plot", "pictures/00.png"),
}


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize(("bag", "option", "target"), IN_ITS_PLACE.values(), ids=IN_ITS_PLACE)
def test_a_recording_is_never_overwritten(
    bag: str,
    option: str,
    target: str,
    more: list[str],
    run: Runner,
    drive: Path,
    calibrated_bundle: Path,
    labelled_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(labelled_pictures / "cat", "pictures")
    Path("bag").mkdir()
    shutil.copy(drive, "bag/part.mcap")
    for link, to in (("link.mcap", "drive.mcap"), ("linked", "bag"), ("bag/last.mcap", "../drive.mcap")):
        Path(link).symlink_to(to)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    done = run("replay", bag, calibrated_bundle, option, target, "--topic", TOPIC, *more)
    assert done.code == 2, done.err
    assert f"{target} is the recording {bag}, or a file in it" in " ".join(done.err.split())
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_bundle_is_found_or_asked_for(
    run: Runner, drive: Path, calibrated_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("replay", drive)
    assert done.code == 2 and "no bundle in" in done.err
    shutil.copytree(calibrated_bundle, tmp_path / "m.bundle")
    assert run("replay", drive).code == 0
    done = run("replay", "m.bundle", drive)
    assert done.code == 2 and "replay BAG m.bundle" in done.err


def test_without_its_library_a_bag_names_the_extra(
    run: Runner, drive: Path, calibrated_bundle: Path, labelled_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcap", None)
    for arguments in ((drive,), (labelled_pictures, "-o", "out.mcap")):
        done = run("replay", arguments[0], calibrated_bundle, *arguments[1:])
        assert done.code == 6 and "pip install 'flss-edge[mcap]'" in done.err
    assert run("replay", labelled_pictures, calibrated_bundle).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_half_written(
    number: signal.Signals, code: int, calibrated_bundle: Path, tmp_path: Path
) -> None:
    message = cdr(IMAGE, image_fields(SMALL_FRAMES[0], 0))
    drive = write_messages(tmp_path / "drive.mcap", [message] * 20_000)
    (tmp_path / "out").mkdir()
    command = ["replay", str(drive), str(calibrated_bundle), "-o", "out/decisions.mcap", "--plot", "out/timeline.png"]
    with subprocess.Popen(
        [sys.executable, "-c", ENTRY, *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("replaying"):
            assert line, "it ended before it began"
        process.send_signal(number)
        told = process.stderr.read()
        assert process.wait(timeout=60) == code, told
    assert "Traceback" not in told
    assert list((tmp_path / "out").iterdir()) == []
