"""The benchmark of the samples in torch: tiny real runs on the CPU, and the checks that must be able to fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_runtime.arms import Arm
from flss_runtime.errors import CheckFailed
from flss_runtime.profiles import PROFILES

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmark_scripts import PNG, load

pytest.importorskip("matplotlib", reason="needs the extra plot")
script, arms, cells, checks = (load(f"torch_inference{part}") for part in ("", "_arms", "_cells", "_checks"))

SHORT = replace(
    PROFILES["quick"], blocks=3, block_s=0.01, visit=(2, 0.0), stream_s=0.02, window_s=0.005, warm_s=(0.01, 0.05)
)
Start = Callable[..., int]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "profile_of", lambda options: SHORT)
    monkeypatch.setattr(arms, "CHECKED_IMAGES", 40)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "secret-folder").mkdir()
    return tmp_path / "secret-folder/torch.json"


@pytest.fixture
def start(tiny_checkpoint: Path, output: Path) -> Start:
    def call(*more: str) -> int:
        sizes = ["--batches", "1,3", "--samples", "1,20", "--precisions", "fp32"]
        code: int = script.main([str(tiny_checkpoint), *sizes, *more, "-o", str(output)])
        return code

    return call


def test_times_all_arms_and_keeps_what_overheads_are_made_of(start: Start, output: Path) -> None:
    assert start("--quick") == 5 and start() == 7
    result = json.loads(output.read_text())
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    assert "secret-folder" not in output.read_text() and not output.with_suffix(script.PARTIAL).exists()
    assert result["command"].startswith("python benchmarks/torch_inference.py tiny.pt --device cpu --batches 1,3")
    assert result["config"]["cuda_graph_left_out"] and result["results"]["copy_gb_per_s"] > 0
    found = result["results"]["cells"]
    assert [(row["batch"], row["precision"], row["failed"]) for row in found] == [(1, "fp32", None), (3, "fp32", None)]
    for row in found:
        timed = {arm["name"]: np.array(arm["block_medians_ms"]) for arm in row["arms"]}
        assert list(timed) == ["deterministic-eager", "n1-eager", "n20-eager"]
        for cost in row["overhead"]:
            arm, base = timed[cost["arm"]], timed["deterministic-eager"]
            assert (cost["baseline"], cost["blocks"]) == ("deterministic-eager", 3)
            assert cost["difference_ms"] == pytest.approx(np.median(arm - base))
            assert cost["percent"] == pytest.approx((np.median(arm / base) - 1) * 100)
            assert cost["interval"][0] <= cost["ratio"] <= cost["interval"][1] and "fused_at_best" not in cost
        for arm in row["arms"]:
            assert arm["kernels"] is None and arm["n"] >= 3 and arm["latency_ms"]["p50"] > 0
            assert arm["decisions"]["images"] == (40 if row["batch"] == 1 else 42)
            assert arm["times_floor"] == pytest.approx(np.median(timed[arm["name"]]) / arm["floor_ms"])


def test_an_arm_that_decides_otherwise_is_not_timed(
    start: Start, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arms, "NOISE_SCALE", 2.5)
    assert start("--allow-invalid") == 1
    assert "n20-eager, batch 1 in fp32, decides otherwise than the model on" in capsys.readouterr().err
    rows = json.loads(output.read_text())["results"]["cells"]
    assert [(row["failed"], row["arms"], row["overhead"]) for row in rows] == [("decides otherwise", [], [])] * 2


@pytest.mark.parametrize(
    "options",
    [
        ("--batches", "0"),
        ("--batches", "1,,8"),
        ("--samples", "ten"),
        ("--precisions", "fp8"),
        ("--precisions", "tf32"),
        ("--threads", "0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    start: Start, output: Path, options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(*options) == 2
    assert options[0] in capsys.readouterr().err and not output.exists()


def test_a_size_without_memory_is_recorded_and_the_rest_goes_on(start: Start, output: Path) -> None:
    assert start("--batches", "1000000000000,2", "--allow-invalid") == 0
    large, small = json.loads(output.read_text())["results"]["cells"]
    assert large["failed"] == "out of memory" and large["detail"] and not large["arms"]
    assert small["failed"] is None and small["arms"]


def test_a_run_that_was_cut_off_goes_on(
    start: Start, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure, kept = cells.measure_cell, output.with_suffix(script.PARTIAL)

    def cut_off(model: Any, images: Any, cell: Any, profile: Any) -> Any:
        if cell.batch == 3:
            raise KeyboardInterrupt
        return measure(model, images, cell, profile)

    monkeypatch.setattr(cells, "measure_cell", cut_off)
    with pytest.raises(KeyboardInterrupt):
        start("--allow-invalid")
    (first,) = json.loads(kept.read_text())["rows"]
    monkeypatch.setattr(cells, "measure_cell", measure)
    assert start("--samples", "1", "--allow-invalid") == 2
    assert "another config" in capsys.readouterr().err
    assert start("--allow-invalid") == 0
    assert "(1 of 2)" not in capsys.readouterr().err and not kept.exists()
    rows = json.loads(output.read_text())["results"]["cells"]
    assert [row["batch"] for row in rows] == [1, 3]
    assert rows[0]["arms"][1]["block_medians_ms"] == first["arms"][1]["block_medians_ms"]


@pytest.fixture
def frames() -> Any:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    return arms.make_frames(images, arms.Cell(5, "fp32", (4, 20), "cpu"), 6)


def test_blocks_hold_every_image_and_where_its_noise_begins(frames: Any) -> None:
    import torch

    parts = [frames.parts(torch.from_numpy(block)) for block in frames.pool.images]
    random = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(torch.cat([pixels for _, pixels in parts]).numpy(), random)
    starts = torch.cat([each for each, _ in parts])
    assert len(starts.unique()) == 40 and 0 <= int(starts.min()) and int(starts.max()) <= len(frames.bank) - 20 * 6


@pytest.mark.parametrize(
    ("precision", "moved", "changed", "refused"),
    [
        ("fp32", 0, 0, False),
        ("fp32", 1, 0, True),  # a vote of 20 is more than a hundredth
        ("fp16", 1, 0, False),
        ("fp16", 2, 1, False),  # one image of 100 is excused, and counted
        ("fp16", 2, 3, True),
    ],
)
def test_what_is_excused_is_counted(precision: str, moved: int, changed: int, refused: bool) -> None:
    choices = np.repeat(np.arange(20) // 15, 100).reshape(20, 100).T  # 15 votes for class 0, 5 for class 1
    answers = np.tile([0, 15], (100, 1))
    answers[: max(1, changed), 1] += moved
    answers[:changed, 0] = 1
    images = np.zeros((100, 8, 8, 3), np.uint8)
    cell = arms.Cell(25, precision, (20,), "cpu")
    frames = arms.make_frames(images, cell, 6)
    given = iter(answers.reshape(4, 25, 2))
    arm = Arm("n20-eager", lambda block: next(given), lambda block: None, lambda: None)
    if refused:
        with pytest.raises(CheckFailed, match="n20-eager, batch 25"):
            checks.check_arm(arm, frames, choices, cell)
        return
    found = checks.check_arm(arm, frames, choices, cell)
    assert (found["images"], found["class_flips"], found["disagreements"]) == (100, changed, changed)
    assert found["vote_flips"] == (moved if not changed else 15 + moved - 5)


def test_bytes_at_least_are_those_counted_by_hand(frames: Any) -> None:
    from flss_edge.model import FLSS, ModelConfig

    network = FLSS(ModelConfig(num_classes=3, width=2, latent_dim=6, image_size=8))
    weights = sum(tensor.numel() for name, tensor in network.state_dict().items() if "num_batches" not in name)
    std_head = 16 * 6 + 6
    found = checks.least_bytes(network, frames, 4)
    assert found == {"weights": 4 * weights, "images": 5 * 192, "noise": 4 * 5 * 4 * 6, "answer": 5 * 16}
    found = checks.least_bytes(network, frames, None)
    assert found == {"weights": 4 * (weights - std_head), "images": 5 * 192, "noise": 0, "answer": 5 * 8}


def test_half_precision_votes_nearly_as_the_model_does(start: Start, output: Path) -> None:
    assert start("--precisions", "fp16", "--allow-invalid") == 0
    for row in json.loads(output.read_text())["results"]["cells"]:
        assert row["failed"] is None
        assert [arm["decisions"]["agreement"] for arm in row["arms"]] == [{"votes": 0.05, "images": 0.02}] * 3


def test_one_fused_kernel_at_best_is_the_baseline_and_what_more_has_to_move() -> None:
    arm = {"way": "graph", "block_medians_ms": [2.0, 4.0, 3.0]}
    few = {"name": "deterministic-graph", "num_samples": None, "least_bytes": {"weights": 1000}}
    many = {"name": "n100-graph", "num_samples": 100, "least_bytes": {"weights": 1500, "noise": 1000}}
    cost = {"arm": "n100-graph", "baseline": "deterministic-graph"}
    row: dict[str, Any] = {"arms": [arm | few, arm | many | {"block_medians_ms": [6.0]}], "overhead": [cost]}
    script._add_floor(row, {"n100-graph": {"kernels": 70.0, "copies": 2.0}}, 1e4, cuda=True)
    assert [each["floor_ms"] for each in row["arms"]] == pytest.approx([100, 250])
    assert [each["kernels"] for each in row["arms"]] == [None, 70]
    assert row["overhead"][0]["fused_at_best"] == pytest.approx({"ms": 153, "percent": 5000})
