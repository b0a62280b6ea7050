"""The examples run as their first lines say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mcap.reader import make_reader
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LOOP, DRIVE = ROOT / "examples/camera_loop.py", ROOT / "examples/synthetic_drive.py"


def run(script: Path, *arguments: object) -> str:
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_camera_loop_says_something_about_every_picture(calibrated_bundle: Path, labelled_pictures: Path) -> None:
    *lines, last = run(LOOP, calibrated_bundle, labelled_pictures / "cat").splitlines()
    results, actions = lines[::2], lines[1::2]
    assert [int(line.split()[0]) for line in results] == list(range(20))
    assert {line.split()[1] for line in results} <= {"accepted", "low_vote", "deadline"}
    assert len(actions) == 20 and all(line.startswith(("  stop", "  drive: ")) for line in actions)
    assert actions[:3] == ["  stop"] * 3  # three frames are no four of five
    assert last == "  stop", "there are no more pictures"


def test_the_camera_loop_says_that_there_is_no_camera(calibrated_bundle: Path, tmp_path: Path) -> None:
    closed = "class VideoCapture:\n    def __init__(self, number): pass\n    def isOpened(self): return False\n"
    (tmp_path / "cv2.py").write_text(closed)
    command = [sys.executable, str(LOOP), str(calibrated_bundle), "9"]
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 1 and "camera 9 cannot be opened" in done.stderr and "Traceback" not in done.stderr


def test_the_camera_loop_is_a_short_one() -> None:
    code = [line for line in LOOP.read_text().splitlines() if line.strip()]
    assert len(code) <= 30


@pytest.fixture(scope="module")
def shipped_bundle(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint's bundle, calibrated on its own calibration images."""
    from flss_edge.cli import main

    path = tmp_path_factory.mktemp("shipped") / "c10.bundle"
    assert main(["export", str(ROOT / "models/cifar10-w8.pt"), "-o", str(path)]) == 0
    assert main(["calibrate", str(path), "--data", str(cifar10), "--budget", "0.10"]) == 0
    return path


def test_a_synthetic_drive_stops_where_the_votes_fall(shipped_bundle: Path, cifar10: Path, tmp_path: Path) -> None:
    arguments = ("--checkpoint", ROOT / "models/cifar10-w8.pt", "--data", cifar10, "-o", tmp_path)
    told = run(DRIVE, shipped_bundle, *arguments)
    outcome = json.loads((tmp_path / "drive.json").read_text())
    rows = {row["condition"]: row for row in outcome["results"]["conditions"]}
    assert sum(row["frames"] for row in rows.values()) == 576 == len(outcome["results"]["frames"])
    assert all(line.split()[0] in rows for line in told.splitlines())
    for condition in ("noise", "blur"):
        assert rows[condition]["vote_share"] < rows["clear"]["vote_share"]
        rejected = {name: rows[name]["rejected"] / rows[name]["frames"] for name in (condition, "clear")}
        assert rejected[condition] > 1.5 * rejected["clear"]
    assert rows["clear"]["driving_right"] > 0.5
    assert rows["PGD"]["rejected"] / rows["PGD"]["frames"] > 1.5 * rejected["clear"]
    assert rows["PGD"]["driving_right"] < rows["clear"]["driving_right"]
    for condition in ("patch", "PGD"):  # what an attacker wins in spite of the votes is shown, too
        wrong = {name: rows[name]["wrong"] / rows[name]["frames"] for name in (condition, "clear")}
        assert wrong[condition] > 2 * wrong["clear"]
    accepted = [frame["status"] == "accepted" for frame in outcome["results"]["frames"]]
    driving = [frame["driving"] for frame in outcome["results"]["frames"]]
    stopped_by_votes = [place for place in range(5, 576) if sum(accepted[place - 4 : place + 1]) < 4]
    assert len(stopped_by_votes) > 50 and not any(driving[place] for place in stopped_by_votes)
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.size[0] > 1000
    with (tmp_path / "decisions.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None and summary.statistics is not None
    assert summary.statistics.message_count == 2 * 576  # images and decisions
