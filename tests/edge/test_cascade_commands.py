"""The commands with a cascade: export and evaluate --gate, calibrate, verify, inspect, predict, bench."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.model import Classifier, ModelConfig, build_network
from flss_runtime.benchmark import run_benchmark
from flss_runtime.bundle import load_bundle, store_calibration
from flss_runtime.images import read_image
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.profiles import PROFILES

Runner = Callable[..., Any]


def _save_gate(path: Path, names: tuple[str, ...], size: int = 32, weight_noise: bool = False) -> Path:
    """Write a classifier of three classes that looks at the colour of a picture, but not very sharply."""
    config = ModelConfig(
        num_classes=len(names),
        width=4,
        image_size=size,
        network="classifier",
        blocks=(1,),
        weight_noise=weight_noise,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = build_network(config).eval()
        assert isinstance(network, Classifier)
        nn.init.normal_(network.fc.weight, std=3)
    save_checkpoint(path, Checkpoint(network, names, training={"config": {"recipe": "ccat"}}))
    return path


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_gate(tmp_path_factory.mktemp("gate") / "ccat.pt", ("cat", "dog", "fox"))


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flss_edge.cli import main

    target = tmp_path_factory.mktemp("exported") / "cascade.bundle"
    assert main(["export", str(tiny_checkpoint), "--gate", str(gate), "-o", str(target), "-n", "30"]) == 0
    return target


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(exported, tmp_path / "cascade.bundle"))


def test_calibrate_stores_both_thresholds(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    refused = run("predict", bundle, labelled_pictures)
    assert refused.code == 3 and "not calibrated" in refused.err
    done = run("calibrate", bundle, "--data", labelled_pictures, "--split", "test", "--format", "json")
    assert done.code == 0, done.err
    row = json.loads(done.out)["results"][0]
    stored = load_bundle(bundle).calibrations[0]
    assert row["gate"] == stored["gate"] and row["min_confidence"] == stored["gate"]["min_confidence"]
    assert stored["gate"]["kept"] == stored["gate"]["correct"] - stored["gate"]["correct"] // 100
    assert f"{stored['gate']['confident']} of 60 images" in done.err
    table = run("calibrate", bundle, "--data", labelled_pictures, "--split", "test").out
    assert "min confidence" in table
    assert run("predict", bundle, labelled_pictures).code == 0


def test_predict_says_which_way_each_decision_was_made(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    files = sorted(labelled_pictures.rglob("*.png"))
    loaded = load_bundle(bundle)
    entry = {"num_samples": 30, "noise_scale": 2.0, "mode": "latent", "min_votes": 20}
    for threshold in (0.5, None):
        if threshold is None:  # the second time: half of the pictures
            threshold = float(np.median(_confidence(loaded, files)))
        loaded = store_calibration(loaded, {**entry, "gate": {"min_confidence": threshold}})
    with open_classifier(loaded, noise=SeededNoise(3)) as classifier:
        expected = classifier.classify([read_image(file, loaded.input) for file in files])
    done = run("predict", bundle, labelled_pictures, "--seed", "3", "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    names = loaded.class_names
    assert [(row["gated"], row["votes"], row["decision"]) for row in found["results"]] == [
        (each.gated, each.votes, "rejected" if each.label is None else names[each.label]) for each in expected
    ]
    assert {row["gated"] for row in found["results"]} == {True, False}
    assert found["config"]["min_confidence"] == threshold
    rows = list(csv.DictReader(io.StringIO(run("predict", bundle, files[0], "--seed", "3", "--format", "csv").out)))
    assert rows[0]["gated"] == str(expected[0].gated)


def _confidence(bundle: Any, files: list[Path]) -> Any:
    from flss_runtime.decision import SmoothingPolicy, confidences

    policy = SmoothingPolicy(30, 2.0, min_confidence=0.0)
    with open_classifier(bundle, policy=policy, noise=SeededNoise(3)) as classifier:
        return confidences(classifier.gate_logits([read_image(file, bundle.input) for file in files]))


def test_without_gate_the_table_has_no_such_column(
    run: Runner, calibrated_bundle: Path, labelled_pictures: Path
) -> None:
    picture = next(labelled_pictures.rglob("*.png"))
    rows = csv.DictReader(io.StringIO(run("predict", calibrated_bundle, picture, "--format", "csv").out))
    assert rows.fieldnames is not None and "gated" not in rows.fieldnames
    found = json.loads(run("predict", calibrated_bundle, picture, "--format", "json").out)
    assert found["results"][0]["gated"] is False and found["config"]["min_confidence"] is None
    assert "gate" not in run("inspect", calibrated_bundle).out
    assert "gate" not in run("verify", calibrated_bundle).out


def test_inspect_shows_the_gate(run: Runner, bundle: Path, gate: Path) -> None:
    shown = run("inspect", bundle).out
    assert load_checkpoint(gate).sha256 in shown and "gate.onnx, fp32" in shown
    entry = {"num_samples": 30, "noise_scale": 2.0, "mode": "latent", "min_votes": 20}
    store_calibration(load_bundle(bundle), entry)
    assert "min_votes 20, no threshold for the gate" in run("inspect", bundle).out
    store_calibration(load_bundle(bundle), {**entry, "gate": {"min_confidence": 0.75}})
    assert "min_confidence 0.75, min_votes 20" in run("inspect", bundle).out


def test_verify_replays_the_gate(
    run: Runner, bundle: Path, tiny_checkpoint: Path, gate: Path, labelled_pictures: Path
) -> None:
    wide = ("--budget", 0.05)  # so few images cannot show less
    done = run("verify", bundle, *wide, "--format", "json")
    assert done.code == 0, done.err
    results = json.loads(done.out)["results"]
    assert "gate_logits" in results["golden"]["tensor_differences"]
    assert "gate_confidence" in results["reference"]["tensor_differences"]
    assert "gate confidence differs" in run("verify", bundle).out
    both = ("--checkpoint", tiny_checkpoint, "--data", labelled_pictures, *wide)
    assert run("verify", bundle, *both, "--gate", gate).code == 0
    missing = run("verify", bundle, *both)
    assert missing.code == 2 and "--gate" in missing.err


def test_verify_finds_another_gate(run: Runner, bundle: Path, tiny_checkpoint: Path, labelled_pictures: Path) -> None:
    other = _save_gate(bundle.parent / "other.pt", ("cat", "dog", "fox"))
    checkpoint = load_checkpoint(other)
    with torch.no_grad():
        checkpoint.model.fc.bias += torch.tensor([0.0, 1.0, 0.0])
    save_checkpoint(other, checkpoint)
    arguments = ("--checkpoint", tiny_checkpoint, "--data", labelled_pictures, "--gate", other)
    done = run("verify", bundle, *arguments)
    assert done.code == 1 and "gate_logits differs" in done.err


def test_verify_refuses_a_gate_that_compares_nothing(
    run: Runner, bundle: Path, calibrated_bundle: Path, tiny_checkpoint: Path, gate: Path, labelled_pictures: Path
) -> None:
    alone = run("verify", bundle, "--gate", gate)
    assert alone.code == 2 and "--gate was given without --checkpoint" in alone.err
    arguments = ("--checkpoint", tiny_checkpoint, "--data", labelled_pictures, "--gate", gate)
    plain = run("verify", calibrated_bundle, *arguments)
    assert plain.code == 2 and "without a gate in the bundle" in plain.err


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_gates_that_do_not_fit_are_refused(
    run: Runner, tiny_checkpoint: Path, labelled_pictures: Path, tmp_path: Path, command: str
) -> None:
    target = tmp_path / "refused"
    other = _save_gate(tmp_path / "other.pt", ("cat", "dog", "owl"))
    large = _save_gate(tmp_path / "large.pt", ("cat", "dog", "fox"), size=64)
    noisy = _save_gate(tmp_path / "noisy.pt", ("cat", "dog", "fox"), weight_noise=True)
    images = ("--data", labelled_pictures, "--calibration", labelled_pictures, "--budget", "0.2")
    arguments = {"export": ("-o", target), "evaluate": (*images, "--folder", target)}[command]
    for gate, message in (
        (other, "the gate knows 3 classes (cat, dog, owl)"),
        (large, "the gate takes images of 64 pixels"),
        (noisy, "the gate's checkpoint draws noise for its weights"),
        (tiny_checkpoint, "the gate's checkpoint holds an FLSS network"),
        (tmp_path / "absent.pt", "does not exist"),
    ):
        done = run(command, tiny_checkpoint, "--gate", gate, *arguments)
        assert done.code == 3 and message in done.err and "fix: " in done.err, done.err
        assert not target.exists()


def test_a_damaged_gate_is_exit_3(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    graph = bundle / "gate.onnx"
    graph.write_bytes(graph.read_bytes()[:-7])
    for command in (("inspect", bundle), ("verify", bundle), ("predict", bundle, labelled_pictures)):
        done = run(*command)
        assert done.code == 3 and "gate.onnx" in done.err


def test_bench_runs_the_gate(bundle: Path) -> None:
    profile = replace(
        PROFILES["quick"], processes=1, blocks=2, block_s=0.02, stream_s=0.05, stage_frames=20, batches=()
    )
    result = run_benchmark(bundle, threads=1, arms=("n30",), profile=profile)
    assert "gate" in result.results["stages_ms"]["n30"]
    assert "gate" in result.artifact["graphs_sha256"]
