"""The drift benchmark: what its streams look like, what it counts, and what it refuses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import PNG, load

from flss_runtime.decision import Decision, Status
from flss_runtime.drift import DriftMonitor, DriftReference

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("matplotlib", reason="needs the extra plot")
drift = load("drift")
REFERENCE = DriftReference((*[0] * 10, 90, *[0] * 9, 910), 0, 15)  # N = 20, one image of eleven rejected


def decision(votes: int) -> Decision:
    accepted = votes >= REFERENCE.min_votes
    status = Status.ACCEPTED if accepted else Status.LOW_VOTE
    return Decision(1 if accepted else None, 1, votes, votes / 20, status)


CLEAN = [decision(10)] * 9 + [decision(20)] * 91
LOST = [decision(10)] * 80 + [decision(20)] * 20


def options(**changed: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"streams": 10, "before": 400, "after": 3000, "after_scenes": 6000, "seed": 0, **changed}
    )


def rows(scene: int = 1, **changed: Any) -> dict[str, Any]:
    monitor = DriftMonitor(REFERENCE, dwell_frames=scene)
    changed_pool = changed.pop("pool", LOST)
    found: dict[str, Any] = drift.run_streams(monitor, CLEAN, changed_pool, scene, options(**changed))
    return found


def test_a_change_is_found_and_its_delay_counted_from_the_change() -> None:
    found = rows()
    assert (found["early"], found["found"]) == (0, 10)
    assert 5 < found["low"] <= found["median"] <= found["high"] < 100
    assert rows() == found, "the same seed, the same streams"
    slower = rows(scene=5)
    assert slower["found"] == 10 and slower["median"] > 3 * found["median"]


def test_what_is_never_found_has_no_delay() -> None:
    found = rows(pool=CLEAN)
    assert (found["found"], found["median"], found["delays"]) == (0, None, [None] * 10)


def test_a_quantile_is_the_least_delay_that_so_many_do_not_exceed() -> None:
    twenty = [float(number) for number in range(1, 21)]
    assert [drift._quantile(twenty, share) for share in (0.05, 0.5, 0.95, 1)] == [1, 10, 19, 20]
    assert [drift._quantile([7.0], share) for share in (0.05, 0.95)] == [7, 7]
    half = [*twenty[:10], *[float("inf")] * 10]
    assert (drift._quantile(half, 0.5), drift._quantile(half, 0.55)) == (10, None)


def test_scenes_show_one_image_each() -> None:
    pool = [decision(votes) for votes in range(21)]
    shown = [each.votes for each in drift._scenes(np.random.default_rng(1), pool, 7, 1000)]
    assert len(shown) == 1000
    changes = np.flatnonzero(np.diff(shown)) + 1
    assert len(set((changes % 7).tolist())) == 1 and len(changes) > 100


def test_false_alarms_are_flagged() -> None:
    quiet = {"kind": "clean", "scene_frames": 1, "reference_images": 1000, "early": 0, "found": 1, "streams": 100}
    assert drift.false_alarm_flags([quiet], 0.01) == []
    (flag,) = drift.false_alarm_flags([quiet | {"found": 9}], 0.01)
    assert "9 of 100 streams" in flag["detail"]
    (flag,) = drift.false_alarm_flags([quiet | {"kind": "blur", "early": 9, "found": 91}], 0.01)
    assert flag["name"] == "false_alarms"


def test_the_picture_shows_what_was_never_found(tmp_path: Path) -> None:
    row = {"scene_frames": 1, "reference_images": 1000}
    some, none = rows() | row | {"kind": "lost"}, rows(pool=CLEAN) | row | {"kind": "clean"}
    result = {
        "artifact": {"bundle": "a.bundle"},
        "config": {
            "streams": 10,
            "false_alarm_rate": 0.01,
        },
        "results": {
            "rows": [none, some],
            "rejected": {"clean": 0.09, "lost": 0.8},
            "references": [{"images": 1000, "reject_rate": 0.09, "interval": [0.06, 0.13]}],
        },
    }
    drift.plot_drift(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_it_runs_on_real_graphs(
    calibrated_bundle: Path,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    labelled_pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = tmp_path / "drift.json"
    few = [
        "--images",
        "12",
        "--steps",
        "1",
        "--streams",
        "2",
        "--before",
        "10",
        "--after",
        "40",
        "--scene",
        "3",
        "--after-scenes",
        "40",
    ]
    inputs = ["--checkpoint", str(tiny_checkpoint), "--data", str(labelled_pictures), *few, "-o", str(result)]
    assert drift.main([str(calibrated_bundle), *inputs]) == 0
    assert "reference of 60 images" in capsys.readouterr().out
    found = json.loads(result.read_text())
    series = {(row["reference_images"], row["scene_frames"]) for row in found["results"]["rows"]}
    assert series == {(60, 1), (60, 3), (30, 1), (30, 3)}
    assert found["config"]["images"]["clean"] == 30 and found["config"]["images"]["PGD 8/255"] == 12
    assert set(found["results"]["rejected"]) == {row["kind"] for row in found["results"]["rows"]}
    assert result.with_suffix(".png").read_bytes().startswith(PNG)

    assert drift.main([str(tiny_bundle), *inputs, "--overwrite"]) == 3
    assert "no calibration that kept its votes" in capsys.readouterr().err
