from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime import engines
from flss_runtime.bundle_engines import refuse_precision
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import ENGINE_NAMES, EngineSpec, TensorSpec, engine_status, open_engine, parse_engine
from flss_runtime.engines.cores import physical_cores
from flss_runtime.engines.precision import is_heavy, narrowest
from flss_runtime.errors import EngineUnavailable, InferenceError, UsageError
from flss_runtime.machine import logical_cores
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

from .bundles import NOISE_SCALE, NUM_SAMPLES, write_tiny
from .test_conformance import ABSENT, images_of

if TYPE_CHECKING:
    from .conftest import TinyModel

needs_openvino = pytest.mark.skipif("openvino" in ABSENT, reason=f"no OpenVINO: {ABSENT.get('openvino')}")
MISSING = [name for name in ("ort:cuda", "ort:tensorrt", "ort:tensorrt-rtx", "openvino:gpu") if name in ABSENT]


@pytest.mark.parametrize(
    ("text", "engine", "device", "short"),
    [
        ("ort", "ort", "cpu", "ort"),
        ("ort:cpu", "ort", "cpu", "ort"),
        ("ort:cuda", "ort", "cuda", "ort:cuda"),
        ("ort:tensorrt-rtx", "ort", "tensorrt-rtx", "ort:tensorrt-rtx"),
        ("openvino", "openvino", "cpu", "openvino"),
        ("openvino:gpu", "openvino", "gpu", "openvino:gpu"),
        ("trt", "trt", "gpu", "trt"),
    ],
)
def test_a_spec_names_engine_and_device(text: str, engine: str, device: str, short: str) -> None:
    assert parse_engine(text) == EngineSpec(engine, device)
    assert str(parse_engine(text)) == short


@pytest.mark.parametrize("name", ["rt", "orrt", "tflite", "", "ORT", " ort"])
def test_unknown_engines_are_refused(tiny: TinyModel, name: str) -> None:
    with pytest.raises(UsageError, match="there is no engine") as caught:
        open_engine(tiny.encoder, name)
    assert "ort, openvino, trt, auto" in caught.value.fix
    assert ("did you mean" in caught.value.problem) == (name in ("rt", "orrt", " ort"))


@pytest.mark.parametrize("name", ["ort:", "ort:gpu", "openvino:throughput", "openvino:cuda", "trt:dla", "ort:cpu:0"])
def test_unknown_devices_are_refused(tiny: TinyModel, name: str) -> None:
    with pytest.raises(UsageError, match="has no device") as caught:
        open_engine(tiny.encoder, name, strict=False)  # a name that means nothing is no device that is missing
    assert name.partition(":")[0] in caught.value.fix


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_below_one_are_refused(tiny: TinyModel, threads: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        open_engine(tiny.encoder, threads=threads)


def test_specs_name_types_and_free_dimensions(tiny: TinyModel) -> None:
    with open_engine(tiny.head, threads=1) as head:
        assert head.inputs["noise"] == TensorSpec("float32", ("NB", "N", 16))
        assert head.outputs["choices"] == TensorSpec("int64", ("B", "N"))


def test_a_tensor_fits_its_spec_or_not() -> None:
    spec = TensorSpec("float32", ("B", 3, 8))
    assert spec.fits(np.zeros((1, 3, 8), np.float32))
    assert spec.fits(np.zeros((9, 3, 8), np.float32))
    assert not spec.fits(np.zeros((1, 3, 9), np.float32))
    assert not spec.fits(np.zeros((3, 8), np.float32))
    assert not spec.fits(np.zeros((1, 3, 8), np.float64))
    assert not spec.fits(np.zeros((1, 3, 8), ">f4"))  # the other byte order has another meaning in memory


@pytest.mark.parametrize("engine", MISSING)
def test_a_missing_device_is_an_error(tiny: TinyModel, engine: str) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(tiny.encoder, engine)
    assert caught.value.exit_code == 6
    assert caught.value.fix


@pytest.mark.parametrize("engine", MISSING)
def test_a_missing_device_falls_back_when_told_so_and_says_it_once(
    tiny: TinyModel, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "_fallen_back", set())
    caplog.set_level(logging.WARNING, "flss_runtime")
    cpu = engine.partition(":")[0]
    if cpu == "openvino" and "absent" in engine_status()["openvino"]:
        pytest.skip("no OpenVINO, so no CPU of it either: pip install 'flss-edge[openvino]'")
    for graph in (tiny.encoder, tiny.head, tiny.encoder):
        with open_engine(graph, engine, strict=False) as opened:
            assert opened.name == cpu
            assert opened.device == {"ort": "CPUExecutionProvider", "openvino": "CPU"}[cpu]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{engine} is not available: ")
    assert record.getMessage().endswith(f"running on {cpu} instead")


@pytest.mark.skipif("trt" not in ABSENT, reason="TensorRT is here")
@pytest.mark.parametrize("strict", [True, False])
def test_tensorrt_never_becomes_something_else(tiny: TinyModel, strict: bool) -> None:
    with pytest.raises(EngineUnavailable):
        open_engine(tiny.encoder, "trt", strict=strict)


def test_an_absent_library_names_its_extra(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module, extra in (("ort", "onnxruntime", "cpu"), ("openvino", "openvino", "openvino")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EngineUnavailable) as caught:
            open_engine(tiny.encoder, name, strict=False)
        assert f"flss-edge[{extra}]" in caught.value.fix
        assert engine_status()[name].startswith("absent: ")
        assert f"flss-edge[{extra}]" in engine_status()[name]
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(tiny.encoder, "auto")
    assert "flss-edge[cpu]" in caught.value.fix


def test_status_names_the_versions() -> None:
    status = engine_status()
    assert tuple(status) == ENGINE_NAMES
    assert status["ort"] == f"ort {sys.modules['onnxruntime'].__version__}"
    assert "openvino" in ABSENT or status["openvino"].removeprefix("openvino ").replace(".", "").isdigit()


def test_threads_of_onnxruntime(tiny: TinyModel) -> None:
    with open_engine(tiny.encoder, threads=2) as encoder:
        options = encoder._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert encoder.device == "CPUExecutionProvider"
    with open_engine(tiny.encoder) as encoder:
        assert encoder.threads == physical_cores() >= 1  # type: ignore[attr-defined]


@needs_openvino
def test_openvino_computes_in_float32_for_one_image_at_a_time(tiny: TinyModel) -> None:
    with open_engine(tiny.encoder, "openvino", threads=2) as encoder:
        settings = encoder._compiled.get_property  # type: ignore[attr-defined]
        assert str(settings("PERFORMANCE_HINT")).endswith("LATENCY")
        assert str(settings("EXECUTION_MODE_HINT")).endswith("ACCURACY")
        assert settings("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert settings("INFERENCE_NUM_THREADS") == min(2, logical_cores())
        assert settings("ENABLE_CPU_PINNING") is False


@needs_openvino
def test_openvino_hint_and_cache(tiny: TinyModel, tmp_path: Path) -> None:
    from flss_runtime.engines.openvino import OpenVinoEngine

    expected = None
    for cached in (False, True):
        library = engines.import_library("openvino")
        with OpenVinoEngine(library, tiny.encoder, threads=1, hint="throughput", cache=tmp_path) as engine:
            assert str(engine._compiled.get_property("PERFORMANCE_HINT")).endswith("THROUGHPUT")
            assert engine._compiled.get_property("LOADED_FROM_CACHE") is cached
            assert engine.precision() == "fp32"
            found = engine.run(images_of(tiny, 2))["mean"]
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found, expected)
    assert list(tmp_path.iterdir())


def test_precisions_have_one_name_whatever_the_library_calls_them() -> None:
    assert narrowest(["float", "uint8", "float16"]) == "int8"
    assert narrowest(["f32", "f16"]) == "fp16"
    assert narrowest(["f32", "bf16", "f16"]) == "bf16"
    assert narrowest(["float32"]) == "fp32"
    assert narrowest([]) == "none"
    assert narrowest(["float32", "float8e4m3fn"]) == "unknown"
    heavy = ["Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "MatMul", "QGemm", "FusedMatMul", "FullyConnected"]
    assert all(map(is_heavy, [*heavy, "fully_connected", "Convolution", "GroupConvolution"]))
    assert not any(map(is_heavy, ["Convert", "Cast", "Relu", "Reorder", "ArgMax"]))


def test_a_profile_that_cannot_be_written_is_no_precision(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(tiny.encoder, threads=1) as encoder:
        monkeypatch.setattr("tempfile.tempdir", "/nonexistent/folder")
        with pytest.raises(EngineUnavailable, match="cannot be read back") as caught:
            encoder.precision()
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize("engine", [name for name in ("ort", "openvino") if name not in ABSENT])
def test_a_classifier_says_what_it_runs_on(tiny: TinyModel, tmp_path: Path, engine: str) -> None:
    bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
    policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0)
    with open_classifier(bundle, engine, policy=policy, noise=SeededNoise(0), threads=1) as classifier:
        facts = classifier.engine_facts()
        assert facts["engine"] == engine
        assert facts["library"].startswith({"ort": "onnxruntime ", "openvino": "openvino "}[engine])
        assert facts["device"] == {"ort": "CPUExecutionProvider", "openvino": "CPU"}[engine]
        assert facts["precision"] == facts["graphs"] == {"encoder": "fp32", "head": "fp32"}


@pytest.mark.parametrize("engine", MISSING[:1])
def test_a_classifier_is_strict_unless_told_otherwise(tiny: TinyModel, tmp_path: Path, engine: str) -> None:
    bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
    policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0)
    with pytest.raises(EngineUnavailable):
        open_classifier(bundle, engine, policy=policy)
    with open_classifier(bundle, engine, policy=policy, strict=False) as classifier:
        assert classifier.engine_facts()["device"] == "CPUExecutionProvider"


def test_wrong_tensors_name_the_library(tiny: TinyModel) -> None:
    with open_engine(tiny.encoder, threads=1) as encoder, pytest.raises(InferenceError, match="onnxruntime failed"):
        encoder.run({})


def test_importing_the_runtime_imports_no_engine() -> None:
    code = (
        "import sys, flss_runtime, flss_runtime.classifier, flss_runtime.engines.ort, flss_runtime.images\n"
        "import flss_runtime.engines.openvino, flss_runtime.engines.auto\n"
        "heavy = {'onnxruntime', 'openvino', 'PIL', 'torch', 'onnx', 'typer', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnxruntime_keeps_usage_data_here_unless_told_otherwise(before: str | None, after: str) -> None:
    code = (
        "import os\nfrom flss_runtime.engines import engine_status\n"
        "engine_status()\nprint(os.environ['ORT_DISABLE_TELEMETRY'], end='')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == after


@needs_openvino
@pytest.mark.parametrize("first", ["encoder", "head"])
def test_signals_still_arrive_after_openvino_engines_close(tiny: TinyModel, first: str) -> None:
    """Freed cores left the thread an alternate signal stack in freed memory; any signal ended the process with -11."""
    script = (
        "import signal, sys\nfrom pathlib import Path\nfrom flss_runtime.engines import open_engine\n"
        "engines = {name: open_engine(Path(path), 'openvino', threads=1)"
        " for name, path in zip(('encoder', 'head'), sys.argv[2:])}\n"
        "engines.pop(sys.argv[1]).close()\nengines.popitem()[1].close()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    command = [sys.executable, "-c", script, first, str(tiny.encoder), str(tiny.head)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=_default_sigint)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def _default_sigint() -> None:
    """Undo what a shell does to processes in the background: they ignore SIGINT, and so would Python."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_openvino
def test_openvino_keeps_usage_data_here(tmp_path: Path) -> None:
    """Imported as it is, OpenVINO writes an identifier into the home directory and starts a thread that uploads."""
    code = (
        "import sys, threading\nfrom flss_runtime.engines import import_library\nimport_library('openvino')\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')], threading.active_count())\n"
        "import openvino\nprint(openvino.convert_model.__name__)"  # the rest of it is all there
    )
    # Its own rule: where CI is set it sends nothing, and the test would show nothing.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["[] 1", "convert_model"]
    assert list(tmp_path.iterdir()) == []


def test_public_names_exist() -> None:
    package = importlib.import_module("flss_runtime")
    assert set(package._HOME) == set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


def test_a_hundred_thousand_threads_are_refused_before_they_start(tiny: TinyModel) -> None:
    with pytest.raises(UsageError, match="the most is 512"):
        open_engine(tiny.encoder, threads=100_000)


def test_auto_takes_no_device(tiny: TinyModel) -> None:
    with pytest.raises(UsageError, match="takes no device"):
        open_engine(tiny.encoder, "auto:cpu")


@pytest.mark.parametrize("engine", ["trt", "ort:tensorrt", "ort:tensorrt-rtx"])
def test_tensorrt_is_given_no_unsigned_integers(engine: str) -> None:
    with pytest.raises(EngineUnavailable, match="has no int8") as caught:
        refuse_precision(engine, "int8")
    assert "fp16" in caught.value.fix
    refuse_precision(engine, "fp16")
    for other in ("ort", "ort:cuda", "openvino"):
        refuse_precision(other, "int8")
