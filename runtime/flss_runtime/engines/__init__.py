"""Engines run one graph each: the protocol, and `open_engine`, which finds the library that implements it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flss_runtime.engines.libraries import engine_status, import_library
from flss_runtime.errors import EngineUnavailable, InferenceError, UsageError

__all__ = [
    "AUTO",
    "ENGINE_NAMES",
    "Engine",
    "EngineSpec",
    "TensorSpec",
    "Tensors",
    "check_tensors",
    "engine_status",
    "import_library",
    "one_line",
    "open_engine",
    "parse_engine",
    "refused",
]

Tensors = dict[str, npt.NDArray[Any]]

_log = logging.getLogger("flss_runtime")

AUTO = "auto"
MOST_THREADS = 512
# Name -> devices it can be asked for, the default one first.
_DEVICES = {
    "ort": ("cpu", "cuda", "tensorrt", "tensorrt-rtx"),
    "openvino": ("cpu", "gpu"),
    "trt": ("gpu",),
}
ENGINE_NAMES: tuple[str, ...] = tuple(_DEVICES)
_fallen_back: set[EngineSpec] = set()
_dtype = cache(np.dtype)  # parsing the name costs more than the comparison


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine and the device it has to run on, written `ENGINE[:DEVICE]`.

    Attributes:
        engine: One of `ENGINE_NAMES`.
        device: One of the devices of that engine, such as "cpu".
    """

    engine: str
    device: str

    def __str__(self) -> str:
        """Write the spec as short as it can be: the engine's default device is left out."""
        return self.engine if self.device == _DEVICES[self.engine][0] else f"{self.engine}:{self.device}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of a graph's input or output.

    Attributes:
        dtype: NumPy name of the element type, such as "float32".
        shape: One entry a dimension: its size, or the name of a dimension that is free.
    """

    dtype: str
    shape: tuple[int | str, ...]

    def fits(self, tensor: npt.NDArray[Any]) -> bool:
        """Tell whether an array has this type, in this machine's byte order, and this shape."""
        if tensor.dtype != _dtype(self.dtype) or len(tensor.shape) != len(self.shape):
            return False
        for size, wanted in zip(tensor.shape, self.shape, strict=True):  # a loop: it runs for every tensor of a frame
            if size != wanted and not isinstance(wanted, str):
                return False
        return True


class Engine(Protocol):
    """One loaded graph. Not safe for calls from several threads at once."""

    @property
    def name(self) -> str:
        """The spec of what runs, as short as it can be written: "ort", "ort:cuda", "openvino", "trt"."""
        ...

    @property
    def library(self) -> str:
        """Library and version that run the graph, such as "onnxruntime 1.32.0"."""
        ...

    @property
    def device(self) -> str:
        """What the graph runs on, in the library's own words and read back from it: "CPUExecutionProvider", "CPU"."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What `run` gives."""
        ...

    def precision(self) -> str:
        """Read back the arithmetic that the graph's convolutions and matrix products run in.

        May cost as much as loading the graph again and a run, so it is not for the way of a frame.

        Returns:
            "fp32", "fp16", "bf16" or "int8", the narrowest of all of them; "none" for a graph without such a layer,
            "unknown" where the library does not tell.

        Raises:
            EngineUnavailable: Layers run elsewhere than on `device`, or nothing could be read back.
        """
        ...

    def run(self, tensors: Tensors) -> Tensors:
        """Run the graph once.

        Args:
            tensors: One array an input, of the dtype and shape `inputs` says. They are read, never written, and not
                kept after the call.

        Returns:
            One array an output; they belong to the caller and stay valid.

        Raises:
            InferenceError: The engine refused the tensors or failed on the way.
        """
        ...

    def close(self) -> None:
        """Free the graph and its threads; closing twice is fine, running afterwards is not."""
        ...

    def __enter__(self) -> Engine:
        """Return the engine itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...


def parse_engine(text: str) -> EngineSpec:
    """Read an engine spec.

    Args:
        text: `ENGINE[:DEVICE]`, such as "ort", "ort:cuda", "openvino" or "trt". "auto" is no engine but a choice:
            `auto.choose_engine` makes a spec of it.

    Raises:
        UsageError: There is no such engine, or it has no such device.
    """
    engine, colon, device = text.partition(":")
    if engine == AUTO:
        raise UsageError(f"{AUTO!r} chooses an engine and takes no device", "leave the device out, or name the engine")
    if engine not in _DEVICES:
        close = difflib.get_close_matches(engine, [*ENGINE_NAMES, AUTO], n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"there is no engine {engine!r}{hint}", f"choose one of: {', '.join(ENGINE_NAMES)}, {AUTO}")
    if not colon:
        return EngineSpec(engine, _DEVICES[engine][0])
    if device not in _DEVICES[engine]:
        known = ", ".join(str(EngineSpec(engine, name)) for name in _DEVICES[engine])
        raise UsageError(f"engine {engine!r} has no device {device!r}", f"choose one of: {known}")
    return EngineSpec(engine, device)


def open_engine(graph: Path, engine: str = "ort", *, threads: int | None = None, strict: bool = True) -> Engine:
    """Load a graph into an engine.

    Args:
        graph: ONNX file.
        engine: `ENGINE[:DEVICE]`, such as "ort" (ONNX Runtime on the CPU), "ort:cuda", "openvino" or "trt"; "auto"
            measures which one is fastest for this graph on this machine.
        threads: Threads that share one call's work on a CPU, >= 1; None takes the physical cores this process may use.
        strict: Whether a device that is missing is an error. If not, the same library runs on the CPU instead, warns
            once on the logger `flss_runtime`, and `name` and `device` say so; "trt" has no CPU to fall back to.

    Returns:
        The engine, ready to run. Close it, or use it as a context manager.

    Raises:
        UsageError: There is no engine of that name, or `threads` is below 1 or above MOST_THREADS.
        EngineUnavailable: Its library is not installed here, or the device is missing.
        BundleError: The graph is missing, or no graph the engine understands.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; an engine needs at least one", "pass threads >= 1, or leave it out")
    if threads is not None and threads > MOST_THREADS:  # a library starts them all, for minutes, and cannot be stopped
        raise UsageError(
            f"threads is {threads}; the most is {MOST_THREADS}", "pass the physical cores, or leave it out"
        )
    if engine == AUTO:
        from flss_runtime.engines.auto import choose_engine

        engine = choose_engine(graph, threads=threads)
    spec = parse_engine(engine)
    try:
        return _open(spec, graph, threads)
    except EngineUnavailable as error:
        on_cpu = EngineSpec(spec.engine, "cpu")
        if strict or spec == on_cpu or "cpu" not in _DEVICES[spec.engine]:
            raise
        opened = _open(on_cpu, graph, threads)
        _warn_once(spec, on_cpu, error.problem)
        return opened


def _open(spec: EngineSpec, graph: Path, threads: int | None) -> Engine:
    library = import_library(spec.engine)
    if spec.engine == "ort":
        from flss_runtime.engines.ort import OrtEngine

        return OrtEngine(library, graph, device=spec.device, threads=threads)
    if spec.engine == "openvino":
        from flss_runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(library, graph, device=spec.device, threads=threads)
    from flss_runtime.engines.trt import TrtEngine

    return TrtEngine(library, graph)


def _warn_once(wanted: EngineSpec, taken: EngineSpec, reason: str) -> None:
    """Say once a process, not once a graph, that something else runs than what was asked for."""
    if wanted not in _fallen_back:
        _fallen_back.add(wanted)
        _log.warning("%s is not available: %s; running on %s instead", wanted, reason, taken)


def check_tensors(inputs: Mapping[str, TensorSpec], tensors: Tensors, library: str) -> None:
    """Refuse tensors that a graph does not take: libraries convert some without a word and misread others.

    Args:
        inputs: What the graph takes.
        tensors: What it is given.
        library: Who refuses, for the message.

    Raises:
        InferenceError: A tensor is missing or of another dtype or shape, or there is one too many.
    """
    if tensors.keys() == inputs.keys():
        for name, spec in inputs.items():
            if not spec.fits(tensors[name]):
                break
        else:
            return
    found = ", ".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
    raise refused(library, f"it was given {found}", inputs)


def refused(library: str, reason: str, inputs: Mapping[str, TensorSpec]) -> InferenceError:
    """Make the error of a run that an engine refused or failed in."""
    expected = ", ".join(f"{name} {spec.dtype} {list(spec.shape)}" for name, spec in inputs.items())
    return InferenceError(
        f"{library} failed: {reason}",
        f"check that the bundle fits this version of flss-edge (flss-edge verify); the graph takes: {expected}",
    )


def one_line(error: BaseException) -> str:
    """Return what a library's exception says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
