"""ONNX Runtime on a GPU, as far as it goes without one: how it is set up, and its runs with buffers on the host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime.engines import import_library
from flss_runtime.engines.ort import OrtEngine
from flss_runtime.engines.ort_binding import DeviceRuns
from flss_runtime.engines.ort_devices import DEVICES, Device, settings_for

from .test_conformance import images_of

if TYPE_CHECKING:
    from .conftest import TinyModel


def test_runs_on_a_device_keep_their_buffers_apart(tiny: TinyModel) -> None:
    """Buffers of one set of shapes serve no other, and shapes beyond those that are kept are run without."""
    with OrtEngine(import_library("ort"), tiny.encoder, threads=1) as engine:
        runs = DeviceRuns(engine._onnxruntime, engine._session, "cpu")
        for _ in range(2):
            for batch in range(1, 13):
                tensors = images_of(tiny, batch, seed=batch)
                np.testing.assert_allclose(runs.run(tensors)["mean"], tiny.encode(tensors["images"])[0], atol=1e-5)
        assert sorted(shapes[0][0] for shapes in runs._bound) == list(range(1, 9))


def test_the_cuda_provider_keeps_to_float32_and_does_not_search(tiny: TinyModel) -> None:
    settings = settings_for(DEVICES["cuda"], tiny.encoder)
    assert settings["use_tf32"] == "0"
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert settings_for(DEVICES["cpu"], tiny.encoder) == {}


@pytest.mark.parametrize(
    ("device", "option"),
    [("cuda", "enable_cuda_graph"), ("tensorrt", "trt_cuda_graph_enable"), ("tensorrt-rtx", "enable_cuda_graph")],
)
def test_no_provider_captures_graphs_by_a_default_of_its_own(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, option: str
) -> None:
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    assert settings_for(DEVICES[device], tiny.encoder)[option] == "0"


def test_tensors_are_bound_only_where_onnxruntime_itself_can_allocate(tiny: TinyModel) -> None:
    """A plugin stands beside the build for the CPU, whose OrtValue knows no CUDA: a first frame must not find out."""
    assert [name for name, device in DEVICES.items() if device.binds] == ["cuda", "tensorrt"]
    library = import_library("ort")
    if "CUDAExecutionProvider" in library.get_available_providers():
        pytest.skip("this build allocates on the GPU")
    with OrtEngine(library, tiny.encoder, threads=1) as engine:
        runs = DeviceRuns(library, engine._session, DEVICES["tensorrt-rtx"].memory)
        with pytest.raises(Exception, match="CUDA"):
            runs.run(images_of(tiny, 1))


def test_a_plugin_says_its_own_name(tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that names the CPU's provider, which needs no registration, as its own."""
    library = import_library("ort")
    if not hasattr(library, "get_ep_devices"):
        pytest.skip("this onnxruntime takes no plugins")
    (tmp_path / "a_plugin.py").write_text("def get_ep_name(): return 'CPUExecutionProvider'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DEVICES, "tensorrt-rtx", Device("RenamedExecutionProvider", plugin="a_plugin"))
    with OrtEngine(library, tiny.encoder, device="tensorrt-rtx", threads=1) as engine:
        assert engine.device == "CPUExecutionProvider"
        tensors = images_of(tiny, 2)
        for _ in range(2):
            np.testing.assert_allclose(engine.run(tensors)["mean"], tiny.encode(tensors["images"])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("device", "option"), [("tensorrt", "trt_engine_cache_path"), ("tensorrt-rtx", "nv_runtime_cache_path")]
)
def test_what_tensorrt_builds_is_kept_for_that_graph_alone(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, option: str
) -> None:
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    folders = {settings_for(DEVICES[device], graph)[option] for graph in (tiny.encoder, tiny.head)}
    assert len(folders) == 2
    assert all(Path(folder).is_dir() and Path(folder).is_relative_to(tmp_path / "cache") for folder in folders)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert settings_for(DEVICES[device], tiny.encoder) == DEVICES[device].options
