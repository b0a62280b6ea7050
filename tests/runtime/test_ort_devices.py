"""ONNX Runtime on a GPU, as far as it goes without one: how it is set up, and its runs with buffers on the host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flss_runtime.engines import import_library
from flss_runtime.engines.ort import OrtEngine
from flss_runtime.engines.ort_binding import DeviceRuns
from flss_runtime.engines.ort_devices import DEVICES, settings_for

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
        ids = [buffers._options.get_run_config_entry("gpu_graph_id") for buffers in runs._bound.values()]
        assert ids == [str(number) for number in range(1, 9)]  # one captured graph for each


def test_the_cuda_provider_keeps_to_float32_and_does_not_search(tiny: TinyModel) -> None:
    settings = settings_for(DEVICES["cuda"], tiny.encoder, cuda_graph=False)
    assert settings["use_tf32"] == "0"
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert "enable_cuda_graph" not in settings
    assert settings_for(DEVICES["cuda"], tiny.encoder, cuda_graph=True) == {**settings, "enable_cuda_graph": "1"}
    assert settings_for(DEVICES["cpu"], tiny.encoder, cuda_graph=True) == {}


@pytest.mark.parametrize(
    ("device", "option"), [("tensorrt", "trt_engine_cache_path"), ("tensorrt-rtx", "nv_runtime_cache_path")]
)
def test_what_tensorrt_builds_is_kept_for_that_graph_alone(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, option: str
) -> None:
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    folders = {settings_for(DEVICES[device], graph, cuda_graph=False)[option] for graph in (tiny.encoder, tiny.head)}
    assert len(folders) == 2
    assert all(Path(folder).is_dir() and Path(folder).is_relative_to(tmp_path / "cache") for folder in folders)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert settings_for(DEVICES[device], tiny.encoder, cuda_graph=False) == {}
