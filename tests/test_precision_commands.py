"""`--precision` on the command line, from export to bench."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flss_runtime.bundle import load_bundle

from .conftest import Run

Runner = Callable[..., Run]


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, labelled_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flss_edge.cli import main

    path = tmp_path_factory.mktemp("exported") / "several.bundle"
    options = ["-o", str(path), "--data", str(labelled_pictures), "--precision", "fp16,int8"]
    assert main(["export", str(tiny_checkpoint), *options]) == 0
    return path


def test_export_says_what_each_changes(
    run: Runner, tiny_checkpoint: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.bundle"
    result = run("export", tiny_checkpoint, "-o", target, "--data", labelled_pictures, "--precision", "fp32,int8")
    assert (result.code, result.out) == (0, f"{target}\n")
    assert "EXPORT PASSED" in result.err and "int8 on the same images" in result.err
    assert f"flss-edge verify {target} --precision int8" in result.err
    assert load_bundle(target).precisions() == ("fp32", "int8")
    assert load_bundle(target).manifest["data"]["quantization"] == "pictures:all:fit"


def test_mistakes_are_refused_before_anything_is_read(run: Runner, tiny_checkpoint: Path, tmp_path: Path) -> None:
    without = run("export", tiny_checkpoint, "-o", tmp_path / "a.bundle", "--precision", "int8")
    assert without.code == 2 and "int8 needs real images" in without.err and "--data" in without.err
    unknown = run("export", tiny_checkpoint, "-o", tmp_path / "a.bundle", "--precision", "fp8")
    assert unknown.code == 2 and "'fp8'" in unknown.err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_it(run: Runner, calibrated_bundle: Path, labelled_pictures: Path) -> None:
    result = run("predict", calibrated_bundle, labelled_pictures, "--precision", "int8")
    assert result.code == 6 and "in fp32, not in int8" in result.err and "--precision int8" in result.err
    assert run("predict", calibrated_bundle, labelled_pictures, "--precision", "fp8").code == 2


def test_calibrate_predict_and_bench_take_it(
    run: Runner, exported: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "own.bundle"
    shutil.copytree(exported, bundle)
    data = ["--data", labelled_pictures, "--split", "test", "--budget", "0.3"]
    assert run("calibrate", bundle, *data, "--precision", "int8").code == 0
    assert "int8" in load_bundle(bundle).calibrations[0]["engine"]
    result = run("predict", bundle, labelled_pictures, "--precision", "int8", "--seed", "1", "--format", "json")
    assert result.code == 0
    assert json.loads(result.out)["config"]["precision"] == "int8"
    options = ["--profile", "quick", "--allow-invalid", "-n", "5", "--threads", "1", "--format", "json"]
    measured = json.loads(run("bench", bundle, "--precision", "int8", *options).out)
    assert measured["config"]["precision"] == "int8"
    assert measured["config"]["engine_facts"]["precision"] == {"encoder": "int8", "head": "fp32"}


def test_calibrate_and_bench_refuse_another_precision_than_asked_for(
    run: Runner, exported: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    """ONNX Runtime computes fp16 graphs in float32 on the CPU."""
    bundle = tmp_path / "own.bundle"
    shutil.copytree(exported, bundle)
    calibrate = ("calibrate", bundle, "--data", labelled_pictures, "--split", "test", "--budget", "0.3")
    options = ("--profile", "quick", "--allow-invalid", "-n", "5", "--threads", "1", "--format", "json")
    for command in (calibrate, ("bench", bundle, *options)):
        refused = run(*command, "--precision", "fp16")
        assert refused.code == 6 and "runs the fp16 graph of the encoder in fp32" in refused.err
        assert "--no-strict" in refused.err
    assert load_bundle(bundle).calibrations == load_bundle(exported).calibrations
    done = run(*calibrate, "--precision", "fp16", "--no-strict", "--format", "json")
    assert done.code == 0 and any("no gain here" in note for note in json.loads(done.out)["notes"])
    timed = run("bench", bundle, *options, "--precision", "fp16", "--no-strict")
    assert timed.code == 0 and any("no gain here" in note for note in json.loads(timed.out)["notes"])
