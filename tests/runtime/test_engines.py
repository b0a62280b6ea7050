from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flss_runtime.engines import TensorSpec, engine_status, open_engine
from flss_runtime.engines.ort import physical_cores
from flss_runtime.errors import BundleError, EngineUnavailable, InferenceError, UsageError

if TYPE_CHECKING:
    from .conftest import TinyModel


def encoder_input(tiny: TinyModel, batch: int = 2) -> dict[str, Any]:
    shape = (batch, 3, tiny.spec.height, tiny.spec.width)
    return {"images": np.random.default_rng(0).random(shape, np.float32)}


@pytest.mark.parametrize("engine", ["ort", "auto"])
def test_runs_what_the_graph_says(tiny: TinyModel, engine: str) -> None:
    with open_engine(tiny.encoder, engine, threads=1) as encoder:
        assert encoder.name == "ort"
        assert encoder.inputs == {"images": TensorSpec("float32", ("B", 3, 8, 8))}
        assert encoder.outputs == {name: TensorSpec("float32", ("B", 16)) for name in ("mean", "std")}
        for batch in (1, 2, 5):
            tensors = encoder_input(tiny, batch)
            out = encoder.run(tensors)
            mean, std = tiny.encode(tensors["images"])
            np.testing.assert_allclose(out["mean"], mean, atol=1e-5)
            np.testing.assert_allclose(out["std"], std, rtol=1e-5)


def test_head_specs_name_their_types(tiny: TinyModel) -> None:
    with open_engine(tiny.head, threads=1) as head:
        assert head.inputs["noise"] == TensorSpec("float32", ("NB", "N", 16))
        assert head.outputs["choices"] == TensorSpec("int64", ("B", "N"))


def test_outputs_belong_to_the_caller(tiny: TinyModel) -> None:
    with open_engine(tiny.encoder, threads=1) as encoder:
        first = encoder.run(encoder_input(tiny))["mean"]
        kept = first.copy()
        encoder.run({"images": np.zeros_like(encoder_input(tiny)["images"])})
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable
    np.testing.assert_array_equal(first, 0)


def test_read_only_and_strided_inputs_are_fine(tiny: TinyModel) -> None:
    images = encoder_input(tiny)["images"]
    with open_engine(tiny.encoder, threads=1) as encoder:
        expected = encoder.run({"images": images})["mean"]
        frozen = images.copy()
        frozen.flags.writeable = False
        np.testing.assert_array_equal(encoder.run({"images": frozen})["mean"], expected)
        np.testing.assert_array_equal(encoder.run({"images": np.repeat(images, 2, axis=3)[..., ::2]})["mean"], expected)


def test_threads_and_provider_are_what_was_asked_for(tiny: TinyModel) -> None:
    with open_engine(tiny.encoder, threads=2) as encoder:
        options = encoder._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert encoder.provider == "CPUExecutionProvider"  # type: ignore[attr-defined]
    with open_engine(tiny.encoder) as encoder:
        assert encoder.threads == physical_cores() >= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_below_one_are_refused(tiny: TinyModel, threads: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        open_engine(tiny.encoder, threads=threads)


@pytest.mark.parametrize("name", ["rt", "orrt", "tflite", ""])
def test_unknown_engines_are_refused(tiny: TinyModel, name: str) -> None:
    with pytest.raises(UsageError, match="there is no engine") as caught:
        open_engine(tiny.encoder, name)
    assert "ort" in caught.value.fix
    assert ("did you mean" in caught.value.problem) == (name in ("rt", "orrt"))


def test_an_absent_library_names_its_extra(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for engine in ("ort", "auto"):
        with pytest.raises(EngineUnavailable) as caught:
            open_engine(tiny.encoder, engine)
        assert "flss-edge[cpu]" in caught.value.fix
        assert caught.value.exit_code == 6
    assert engine_status()["ort"].startswith("absent: ")
    assert "flss-edge[cpu]" in engine_status()["ort"]


def test_status_names_the_version() -> None:
    status = engine_status()
    assert status == {"ort": f"ort {sys.modules['onnxruntime'].__version__}"}


def test_bad_graphs_are_bundle_errors(tiny: TinyModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = tiny.encoder.read_bytes()
    for name, damaged in {"empty": b"", "text": b"hello", "half": content[: len(content) // 2]}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="cannot load") as caught:
            open_engine(path)
        assert str(path) in caught.value.problem
    with pytest.raises(BundleError, match="does not exist"):
        open_engine(tmp_path / "absent.onnx")
    with pytest.raises(BundleError, match="does not exist"):
        open_engine(tmp_path)
    assert capfd.readouterr().err == ""  # the library's own complaints stay away


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"image": np.zeros((1, 3, 8, 8), np.float32)},
        {"images": np.zeros((1, 3, 8, 9), np.float32)},
        {"images": np.zeros((1, 8, 8, 3), np.float32)},
        {"images": np.zeros((1, 3, 8, 8), np.float64)},
        {"images": np.zeros((3, 8, 8), np.float32)},
    ],
)
def test_wrong_tensors_are_inference_errors(
    tiny: TinyModel, tensors: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with open_engine(tiny.encoder, threads=1) as encoder:
        with pytest.raises(InferenceError, match="onnxruntime failed") as caught:
            encoder.run(tensors)
        assert "images float32 ['B', 3, 8, 8]" in caught.value.fix
        assert "\n" not in caught.value.problem
        assert encoder.run(encoder_input(tiny))["mean"].shape == (2, 16)  # the engine survives
    assert capfd.readouterr().err == ""


def test_a_closed_engine_says_so(tiny: TinyModel) -> None:
    encoder = open_engine(tiny.encoder, threads=1)
    encoder.close()
    encoder.close()
    with pytest.raises(InferenceError, match="closed"):
        encoder.run(encoder_input(tiny))


def test_importing_the_runtime_imports_no_engine() -> None:
    code = (
        "import sys, flss_runtime, flss_runtime.classifier, flss_runtime.engines.ort, flss_runtime.images\n"
        "heavy = {'onnxruntime', 'PIL', 'torch', 'onnx', 'typer', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_the_engine_keeps_usage_data_here_unless_told_otherwise(before: str | None, after: str) -> None:
    code = (
        "import os\nfrom flss_runtime.engines import engine_status\n"
        "engine_status()\nprint(os.environ['ORT_DISABLE_TELEMETRY'], end='')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == after


def test_public_names_exist() -> None:
    package = importlib.import_module("flss_runtime")
    assert set(package._HOME) == set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense
