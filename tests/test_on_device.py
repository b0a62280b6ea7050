"""The script that measures a device for us: what it leaves out, and one run of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/on_device.py"


@pytest.fixture(scope="module")
def on_device() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("on_device", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_folders_are_taken_out(on_device: ModuleType, tmp_path: Path) -> None:
    scrub = on_device.Scrubber(tmp_path / "secret" / "c10.bundle", None)
    said = f"{tmp_path}/secret/c10.bundle/encoder.onnx, {Path.home()}/.cache/flss-edge, in {tmp_path}/secret"
    assert scrub(said) == "c10.bundle/encoder.onnx, .cache/flss-edge, in ."


def test_a_failed_run_has_a_row_too(on_device: ModuleType) -> None:
    run = {"engine": "trt", "precision": "fp16", "verify": {"exit": 6}, "bench": {"exit": 6, "error": "no GPU"}}
    assert list(on_device.row_of(run)) == ["trt", "fp16", "-", "exit 6", "-", "-", "-", "-", "-"]


def test_engines_that_do_not_work_here_are_refused(on_device: ModuleType) -> None:
    assert on_device.chosen(None, ["ort", "openvino"]) == ["ort", "openvino"]
    assert on_device.chosen("trt,ort", ["ort", "openvino"]) == ["ort"]
    with pytest.raises(on_device.FLSSError, match="trt"):
        on_device.chosen("trt", ["ort"])


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import on_device, engines; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(SCRIPT.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.slow
def test_without_a_bundle_the_shipped_checkpoint_is_exported(on_device: ModuleType, tmp_path: Path) -> None:
    bundle = on_device.load_bundle(on_device.export_shipped(tmp_path))
    assert tuple(on_device.precisions_of(bundle)) == on_device.SHIPPED_PRECISIONS == ("fp32", "fp16")
    assert "too few for int8" in on_device.__doc__


@pytest.mark.slow
def test_a_device_is_measured(calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--engines", "openvino", "--precisions", "fp32", "--profile", "quick", "--data", str(labelled_pictures)]
    command = [sys.executable, str(SCRIPT), str(calibrated_bundle), *options, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    result = json.loads(text)
    (run,) = result["runs"]
    assert run["verify"]["results"]["facts"]["device"] == "CPU"
    assert run["verify_data"]["results"]["flips"][0]["images"] == 60
    assert run["bench"]["exit"] == 0 and run["bench"]["results"]["arms"][-1]["latency_ms"]["p50"] > 0
    assert {"engines", "devices", "clocks"} <= set(result["doctor"]) and result["environment"]["cpu"]
    for folder in (tmp_path, calibrated_bundle.parent, labelled_pictures.parent, Path.home()):
        assert str(folder) not in text
    assert "| openvino | fp32 | fp32 |" in done.stderr
