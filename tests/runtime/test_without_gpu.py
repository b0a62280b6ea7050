"""What TensorRT and CUDA say where their libraries are and no GPU is."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from flss_runtime.engines import cuda, open_engine
from flss_runtime.errors import (
    EngineUnavailable,
    InferenceError,
)

if TYPE_CHECKING:
    from .conftest import TinyModel

if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
    pytest.skip("TensorRT-RTX is not installed: pip install 'flss-edge[tensorrt-rtx]'", allow_module_level=True)


def without_gpu() -> None:
    """Skip where there is one: tests/gpu runs the same calls for real."""
    try:
        cuda.find_device()
    except EngineUnavailable:
        return
    pytest.skip("a GPU is here: see tests/gpu")


def test_without_a_gpu_trt_says_so_and_becomes_nothing_else(tiny: TinyModel) -> None:
    without_gpu()
    for strict in (True, False):
        with pytest.raises(EngineUnavailable, match="no NVIDIA GPU") as caught:
            open_engine(tiny.encoder, "trt", strict=strict)
        assert caught.value.exit_code == 6
        assert "--target" in caught.value.fix


def test_every_call_of_cuda_is_one_that_the_bindings_take(tiny: TinyModel) -> None:
    """Without a driver each gives an error status; a wrong number or type of arguments would be a TypeError."""
    without_gpu()
    bindings = cuda.runtime()
    stream = object.__new__(cuda.Stream)
    stream._cuda, stream._stream = bindings, bindings.cudaStream_t(0)
    kinds = bindings.cudaMemcpyKind
    stream._to_device, stream._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
    stream._on_device = kinds.cudaMemcpyDeviceToDevice
    graph = cuda.Graph(stream._stream)
    graph.executable = bindings.cudaGraphExec_t(0)
    calls = [
        cuda.Stream,
        lambda: cuda.DeviceBuffer(16),
        lambda: cuda.PinnedBuffer(16),
        lambda: stream.copy_in(0, 0, 4),
        lambda: stream.copy_out(0, 0, 4),
        lambda: stream.copy_on_device(0, 0, 4),
        stream.wait,
        lambda: stream.capture().__enter__(),
        graph.launch,
        lambda: cuda.check(bindings.cudaGetDeviceProperties(0)),
        lambda: cuda.check(bindings.cudaGraphInstantiate(bindings.cudaGraph_t(0), 0)),
        lambda: cuda.check(bindings.cudaStreamEndCapture(stream._stream)),
    ]
    for call in calls:
        with pytest.raises(InferenceError, match="CUDA failed"):
            call()
    assert len(bindings.cudaGraphDestroy(bindings.cudaGraph_t(0))) == 1
    for method in (graph.close, graph.close, stream.close, stream.close):
        method()
    assert isinstance(cuda.check(bindings.cudaDriverGetVersion()), int)
