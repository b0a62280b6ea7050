"""The scripts that measure training: tiny real runs, and the checks that must be able to fail."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from flss_edge.data import ImageSet
from flss_edge.model import ModelConfig, build_network
from flss_edge.recipes import RECIPES, flss
from flss_edge.trainer import Stopped
from flss_runtime.errors import CheckFailed

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; they import each other as they do when one is started by its path."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    for name in ("training", "recipes"):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        spec.loader.exec_module(sys.modules[spec.name])
    sys.path.remove(str(FOLDER))
    siblings = {path.stem for path in FOLDER.glob("*.py")} | {"benchmark_training", "benchmark_recipes"}
    ours = siblings & (set(sys.modules) - before)
    yield {name.removeprefix("benchmark_"): sys.modules[name] for name in ours}
    for name in ours:
        del sys.modules[name]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of ten classes, each with a brightness of its own."""
    path = tmp_path_factory.mktemp("pictures") / "cifar10-like.npz"
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 300), ("test", 100)):
        labels = np.arange(count) % 10
        pixels = random.integers(0, 100, (count, 32, 32, 3)) + 15 * labels[:, None, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **arrays)
    return path


def timing(output: Path) -> list[str]:
    size = ["--width", "4", "--batch-size", "4", "--blocks", "2", "--updates", "1", "--warm-up", "1"]
    return [*size, "-o", str(output)]


@pytest.fixture(scope="module")
def timed(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result file of a run so short that it is flagged: two blocks are too few for an interval."""
    output = tmp_path_factory.mktemp("secret-folder") / "training.json"
    assert scripts["training"].main(timing(output)) == 5
    return output


def test_times_and_draws_both_paths(timed: Path) -> None:
    result = json.loads(timed.read_text())
    assert timed.with_suffix(".png").read_bytes().startswith(PNG)
    assert {"schema_version", "command", "environment", "config", "checks", "results", "validity"} == set(result)
    assert "secret-folder" not in timed.read_text()
    assert "synthetic" in result["config"]["data"]
    literal, fast = result["results"]["arms"]
    assert (literal["name"], fast["name"], literal["n"], fast["n"]) == ("literal", "fast", 4, 4)
    assert fast["images_per_s"] == pytest.approx(4 / np.median(fast["block_ms"]) * 1e3)
    assert fast["derived_epoch_s"] == pytest.approx(49_000 / fast["images_per_s"])
    (speed_up,) = result["results"]["speed_up"]
    ratios = np.asarray(literal["block_ms"]) / np.asarray(fast["block_ms"])
    assert speed_up["ratio"] == pytest.approx(np.median(ratios))
    assert speed_up["interval"][0] <= speed_up["ratio"] <= speed_up["interval"][1]
    assert "few_blocks" in {item["name"] for item in result["validity"]["flags"]}
    stages = result["results"]["stages_ms"]["median"]
    assert list(stages) == ["augmentation", "attack", "weight perturbation", "first update", "second update"]
    assert all(value > 0 for value in stages.values())


def test_counts_of_the_method_table(timed: Path) -> None:
    """20 passes with all gradients as released; 15 here, ten of them without weight gradients: about 12 units."""
    work = json.loads(timed.read_text())["checks"]["work"]
    assert work["literal"]["counted"] == {"forward": 20, "backward": 20, "with_weight_gradients": 20}
    assert work["fast"]["counted"] == {"forward": 15, "backward": 15, "with_weight_gradients": 5}
    assert work["literal"]["units"] == 20
    assert work["fast"]["units"] == pytest.approx(35 / 3)
    # the arithmetic says the same, apart from the first convolution, whose input gradient is skipped without an attack
    assert work["fast"]["flops"] / work["literal"]["flops"] == pytest.approx(35 / 60, rel=0.01)


def test_another_number_of_passes_is_refused(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    options = scripts["training"]._parse(timing(tmp_path / "unused.json"))
    recipe, data = scripts["training"]._recipe(4), scripts["training"]._data(None, 4)
    arm = scripts["training_arms"].build_arm("fast", recipe, data, options)
    wrong = scripts["training_checks"].passes_by_hand(recipe.config)["fast"] | {"with_weight_gradients": 15}
    with pytest.raises(CheckFailed, match="encoder passes"):
        scripts["training_checks"].count_work(arm.update, arm.trainer, wrong)


def test_unequal_paths_are_not_timed(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(flss, "ADVERSARIAL_PASSES", 2)  # the running statistics then lag behind the released ones
    assert scripts["training"].main(timing(tmp_path / "training.json")) == 1
    assert "does not give the literal path's results" in capsys.readouterr().err
    assert not (tmp_path / "training.json").exists()


def short(pictures: Path, folder: Path, *more: str) -> list[str]:
    fixed = ["--data", str(pictures), "--budget", "toy", "--width", "4", "--test-images", "10"]
    return [*fixed, "--runs", str(folder / "runs"), "-o", str(folder / "recipes.json"), *more]


def test_trains_measures_and_judges_recipes(
    scripts: dict[str, ModuleType], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["standard", "pni", "ccat"]
    arguments = short(pictures, tmp_path, *(f"--only={name}" for name in names))
    assert scripts["recipes"].main(arguments) == 1  # nobody learns anything from 100 images
    result = json.loads((tmp_path / "recipes.json").read_text())
    assert (tmp_path / "recipes.png").read_bytes().startswith(PNG)
    assert set(result["recipes"]) == set(names) == set(RECIPES) - set(result["missing"])
    assert result["recipes"]["pni"]["deviations"]["epochs"] == [160, 1]
    assert result["recipes"]["ccat"]["deviations"]["network.blocks"] == [[3, 3, 3], [2, 2, 2, 2]]
    assert result["recipes"]["standard"]["measured"]["logit_difference"]["root_mean_square"] == 0
    held = {(claim["recipe"], claim["claim"]): claim["holds"] for claim in result["claims"]}
    assert held["pni", "logits of two passes differ, unlike standard training's (root mean square)"] is True
    assert held["pni", "noise scales moved from their initial 0.25 (mean absolute difference)"] is True
    assert held["pni", "clean accuracy is above chance"] is False
    assert [item["name"] for item in result["validity"]["flags"]] == ["toy_budget"]
    assert str(tmp_path) not in (tmp_path / "recipes.json").read_text()

    trained = [(tmp_path / "runs" / name / "best.pt").stat().st_mtime_ns for name in names]
    capsys.readouterr()
    scripts["recipes"].main(arguments)
    assert "epoch 1" not in capsys.readouterr().err  # nothing was trained again
    assert trained == [(tmp_path / "runs" / name / "best.pt").stat().st_mtime_ns for name in names]


def test_a_stopped_recipe_continues(scripts: dict[str, ModuleType], pictures: Path, tmp_path: Path) -> None:
    options: argparse.Namespace = scripts["recipes"]._parse(short(pictures, tmp_path, "--only=standard"))
    with pytest.raises(Stopped):
        scripts["recipes"].run(options, [15])
    state = torch.load(tmp_path / "runs" / "standard" / "state.pt", weights_only=True)
    assert 0 < state["step"] < 2  # of the two mini-batches of 64 and 36 images
    result = scripts["recipes"].run(options, [])
    assert list(result["recipes"]) == ["standard"]


def row(pgd: float, n: int = 1000) -> dict[str, Any]:
    spread = {"root_mean_square": 0.0, "standard_error": 0.0}
    return {"n": n, "clean_accuracy": 0.4, "pgd_accuracy": pgd, "noise_accuracy": {}, "logit_difference": spread}


@pytest.mark.parametrize(("pgd", "holds"), [(0.2, True), (0.03, False), (0.0, False)])
def test_a_claim_needs_two_standard_errors(scripts: dict[str, ModuleType], pgd: float, holds: bool) -> None:
    measured = {"pgd-at": row(pgd), "standard": row(0.02)}
    claims = list(scripts["recipe_claims"].claims_of("pgd-at", measured))
    assert [claim.holds for claim in claims] == [True, holds]
    likely = [(share * 1000 + 2) / 1004 for share in (pgd, 0.02)]
    assert claims[1].standard_error == pytest.approx(math.sqrt(sum(p * (1 - p) / 1004 for p in likely)))


def test_a_claim_without_its_reference_stays_open(scripts: dict[str, ModuleType]) -> None:
    claims = list(scripts["recipe_claims"].claims_of("pgd-at", {"pgd-at": row(0.2)}))
    assert [claim.holds for claim in claims] == [True, None]


def test_untrained_noise_scales_hold_no_claim(scripts: dict[str, ModuleType]) -> None:
    claims = scripts["recipe_claims"]
    network = build_network(ModelConfig(num_classes=10, width=4, blocks=(1,), network="classifier", weight_noise=True))
    test = ImageSet(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4), tuple("abcdefghij"), "black")
    measured = {"pni": claims.measure(RECIPES["pni"], network, test, lambda: None)}
    assert measured["pni"]["noise_scales"]["mean"] == 0.25
    (moved,) = (claim for claim in claims.claims_of("pni", measured) if "moved" in claim.claim)
    assert moved.holds is False


def test_every_recipe_has_a_claim_of_its_own(scripts: dict[str, ModuleType]) -> None:
    """More than learning at all: a new recipe without one would pass unexamined."""
    summary = {"n": 10, "mean": 0.5, "standard_error": 0.01, "min": 0.0, "max": 1.0}
    for name, recipe in RECIPES.items():
        measured = row(0.2) | {"noise_accuracy": {f"{getattr(recipe.config, 'sigma', 0):g}": 0.4}}
        if name == "ccat":
            measured["confidence"] = {"clean": summary, "attacked": summary, "drop": summary}
        claims = list(scripts["recipe_claims"].claims_of(name, {name: measured}))
        assert len(claims) >= (1 if name == "standard" else 2), name
