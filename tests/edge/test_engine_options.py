"""`--engine` and `--strict` from the outside: what runs, and what the user is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_runtime import engines
from flss_runtime.engines import auto, import_library

Runner = Callable[..., Any]
PROVIDERS = import_library("ort").get_available_providers()
without_tensorrt = pytest.mark.skipif("TensorrtExecutionProvider" in PROVIDERS, reason="TensorRT's provider is here")


def predict(run: Runner, bundle: Path, pictures: Path, *options: str) -> Any:
    (picture, *_) = sorted(pictures.glob("*/*.png"))
    return run("predict", bundle, picture, "--seed", "1", "--format", "json", *options)


@without_tensorrt
def test_a_missing_device_stops_the_command(run: Runner, calibrated_bundle: Path, labelled_pictures: Path) -> None:
    result = predict(run, calibrated_bundle, labelled_pictures, "--engine", "ort:tensorrt")
    assert result.code == 6 and result.out == ""
    assert "TensorrtExecutionProvider" in result.err and "fix: " in result.err


@without_tensorrt
def test_or_falls_back_and_says_so_once(
    run: Runner, calibrated_bundle: Path, labelled_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_fallen_back", set())
    result = predict(run, calibrated_bundle, labelled_pictures, "--engine", "ort:tensorrt", "--no-strict")
    assert result.code == 0
    assert result.err.count("ort:tensorrt is not available") == 1
    assert json.loads(result.out)["results"]


def test_auto_explains_its_choice(
    run: Runner, calibrated_bundle: Path, labelled_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_VISIT_SECONDS", 0.005)
    result = predict(run, calibrated_bundle, labelled_pictures, "--engine", "auto")
    assert result.code == 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("auto: ")]
    assert "ort" in line


def test_every_engine_here_gives_the_same_answers(
    run: Runner, calibrated_bundle: Path, labelled_pictures: Path
) -> None:
    pytest.importorskip("openvino")
    answers = [
        json.loads(run("predict", calibrated_bundle, labelled_pictures, "--seed", "1", "--format", "json", *engine).out)
        for engine in ((), ("--engine", "openvino"))
    ]
    rows = [[(row["decision"], row["status"], row["votes"]) for row in answer["results"]] for answer in answers]
    assert len(rows[0]) == len(rows[1]) == 60
    for one, other in zip(*rows, strict=True):
        assert one[:2] == other[:2] and abs(one[2] - other[2]) <= 1


def test_calibration_records_what_voted(
    run: Runner, tiny_bundle: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    import shutil

    bundle = shutil.copytree(tiny_bundle, tmp_path / "own.bundle")
    assert run("calibrate", bundle, "--data", labelled_pictures, "--split", "test").code == 0
    (entry,) = json.loads((bundle / "policy.json").read_text())["calibrations"]
    version = import_library("ort").__version__
    assert entry["engine"] == f"ort (onnxruntime {version}, CPUExecutionProvider, fp32)"


def test_the_help_names_everything_that_auto_tries(run: Runner) -> None:
    (said,) = re.findall(
        r"or auto for the fastest of (.*?) on this machine", " ".join(run("prepare", "--help").out.split())
    )
    assert set(said.replace(" and ", ", ").split(", ")) == set(auto._CANDIDATES)
