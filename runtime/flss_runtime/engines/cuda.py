"""The little of CUDA's runtime that engines need: memory, one stream, graphs. Every call is checked.

Threading: a `Stream` and what was made with it belong to one thread at a time. Graphs are captured in thread-local
mode, so other threads may use CUDA meanwhile. The device is number 0 of those that `CUDA_VISIBLE_DEVICES` leaves.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import EngineUnavailable, InferenceError

_INSTALL = "pip install 'flss-edge[tensorrt]' (or [tensorrt-rtx]); on a Jetson see docs/jetson.md"


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name, its compute capability as "sm86", and the newest CUDA version the driver runs, as "13.0"."""

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


@lru_cache(maxsize=1)
def runtime() -> Any:
    """Import CUDA's runtime bindings.

    Raises:
        EngineUnavailable: They are not installed, or are older than 12.6.1, the first of this name.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        problem = f"engine 'trt' needs cuda-python 12.6.1 or later, which cannot be imported ({error})"
        raise EngineUnavailable(problem, _INSTALL) from error


def find_device() -> Device:
    """Return the GPU that engines run on.

    Raises:
        EngineUnavailable: There is none, or its driver is missing or too old.
    """
    cuda = runtime()
    error, count = cuda.cudaGetDeviceCount()
    if error or not count:
        reason = cuda.cudaGetErrorString(error)[1].decode() if error else "no device is visible"
        raise EngineUnavailable(
            f"engine 'trt' finds no NVIDIA GPU here: {reason}",
            "check nvidia-smi and the container's --gpus option; without a GPU only "
            "flss-edge prepare --engine trt --target sm86 (or another) works",
        )
    properties = check(cuda.cudaGetDeviceProperties(0))
    version = check(cuda.cudaDriverGetVersion())
    capability = f"sm{properties.major}{properties.minor}"
    return Device(properties.name.decode(), capability, f"{version // 1000}.{version % 1000 // 10}")


def check(result: tuple[Any, ...]) -> Any:
    """Return what a call of CUDA's runtime gave beside its status.

    Raises:
        InferenceError: The call failed.
    """
    if result[0]:
        text = runtime().cudaGetErrorString(result[0])[1].decode()
        raise InferenceError(
            f"CUDA failed: {text} ({result[0].name})", "check nvidia-smi for memory and errors, then start again"
        )
    return result[1] if len(result) == 2 else None


class DeviceBuffer:
    """Memory of the GPU, aligned to at least 256 bytes.

    Args:
        size: Bytes; 0 becomes 1, because an address is needed all the same.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        self.address: int = check(runtime().cudaMalloc(self.size))

    def close(self) -> None:
        """Free it; closing twice is fine."""
        if self.address:
            runtime().cudaFree(self.address)
            self.address = 0


class PinnedBuffer:
    """Memory of the host that the GPU reads and writes directly.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        self.address: int = check(runtime().cudaMallocHost(self.size))
        self.bytes = np.frombuffer(memoryview((ctypes.c_uint8 * self.size).from_address(self.address)), np.uint8)

    def view(self, start: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return part of it as an array that shares its memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        array: npt.NDArray[Any] = self.bytes[start : start + size].view(dtype).reshape(shape)
        return array

    def close(self) -> None:
        """Free it: no view may be used from here on; closing twice is fine."""
        if self.address:
            runtime().cudaFreeHost(self.address)
            self.address = 0


class Stream:
    """An order of work on the GPU, and copies in it. Host memory has to stay alive until `wait`."""

    def __init__(self) -> None:
        cuda = runtime()
        self._cuda = cuda
        self._stream: Any = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)
        self._to_device = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._on_device = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def copy_in(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes from the host to the device."""
        check(self._cuda.cudaMemcpyAsync(target, source, size, self._to_device, self._stream))

    def copy_out(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes from the device to the host."""
        check(self._cuda.cudaMemcpyAsync(target, source, size, self._to_host, self._stream))

    def copy_on_device(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes on the device."""
        check(self._cuda.cudaMemcpyAsync(target, source, size, self._on_device, self._stream))

    def wait(self) -> None:
        """Block until everything is done."""
        check(self._cuda.cudaStreamSynchronize(self._stream))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record what the body puts on the stream instead of doing it; the graph can be launched afterwards.

        Raises:
            InferenceError: Something in the body cannot be recorded.
        """
        cuda = self._cuda
        graph = Graph(self._stream)
        check(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            yield graph
        except BaseException:
            status, broken = cuda.cudaStreamEndCapture(self._stream)  # else the stream stays in capture mode
            if not status:
                cuda.cudaGraphDestroy(broken)
            raise
        recorded = check(cuda.cudaStreamEndCapture(self._stream))
        try:
            graph.executable = check(cuda.cudaGraphInstantiate(recorded, 0))
        finally:
            cuda.cudaGraphDestroy(recorded)

    def close(self) -> None:
        """Give it up; closing twice is fine."""
        if self._stream is not None:
            self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None


class Graph:
    """Recorded work that one call starts; it refers to the memory it was recorded with."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.executable: Any = None

    def launch(self) -> None:
        """Put the recorded work on its stream."""
        check(runtime().cudaGraphLaunch(self.executable, self._stream))

    def close(self) -> None:
        """Free it; closing twice is fine."""
        if self.executable is not None:
            runtime().cudaGraphExecDestroy(self.executable)
            self.executable = None
