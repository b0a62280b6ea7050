"""Engines run one graph each: the protocol, and `open_engine`, which finds the library that implements it."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from flss_runtime.errors import EngineUnavailable, UsageError

Tensors = dict[str, npt.NDArray[Any]]

# Name -> (library it needs, extra that installs it). The order is the order of preference of "auto".
_LIBRARIES = {"ort": ("onnxruntime", "cpu")}
ENGINE_NAMES: tuple[str, ...] = tuple(_LIBRARIES)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of a graph's input or output.

    Attributes:
        dtype: NumPy name of the element type, such as "float32".
        shape: One entry a dimension: its size, or the name of a dimension that is free.
    """

    dtype: str
    shape: tuple[int | str, ...]


class Engine(Protocol):
    """One loaded graph. Not safe for calls from several threads at once."""

    @property
    def name(self) -> str:
        """Name that `open_engine` knows it by, such as "ort"."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What `run` gives."""
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


def open_engine(graph: Path, engine: str = "ort", *, threads: int | None = None) -> Engine:
    """Load a graph into an engine.

    Args:
        graph: ONNX file.
        engine: "ort" (ONNX Runtime on the CPU), or "auto" for the best one present on this machine.
        threads: Threads that share one call's work, >= 1; None takes the physical cores this process may use.

    Returns:
        The engine, ready to run. Close it, or use it as a context manager.

    Raises:
        UsageError: There is no engine of that name, or `threads` is below 1.
        EngineUnavailable: Its library is not installed here.
        BundleError: The graph is missing, or no graph the engine understands.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; an engine needs at least one", "pass threads >= 1, or leave it out")
    if engine == "auto":
        engine = _best_present()
    library = _import_library(engine)
    from flss_runtime.engines.ort import OrtEngine

    return OrtEngine(library, graph, threads=threads)


def engine_status() -> dict[str, str]:
    """Say for each engine whether it can be used here.

    Returns:
        Engine name -> "ort 1.31.0" (name and version of the library), or "absent: " and how to install it.
    """
    status = {}
    for engine in ENGINE_NAMES:
        try:
            status[engine] = f"{engine} {_import_library(engine).__version__}"
        except EngineUnavailable as error:
            status[engine] = f"absent: {error.problem}; {error.fix}"
    return status


def _best_present() -> str:
    for engine in ENGINE_NAMES:
        try:
            _import_library(engine)
        except EngineUnavailable:
            continue
        return engine
    raise EngineUnavailable(
        "no inference engine is installed", "install one, for instance: pip install 'flss-edge[cpu]'"
    )


def _import_library(engine: str) -> ModuleType:
    if engine not in _LIBRARIES:
        close = difflib.get_close_matches(engine, [*ENGINE_NAMES, "auto"], n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"there is no engine {engine!r}{hint}", f"choose one of: {', '.join(ENGINE_NAMES)}, auto")
    module, extra = _LIBRARIES[engine]
    # From 1.29 on, ONNX Runtime's own builds upload usage data unless this is set before the import. A robot's do not,
    # unless whoever runs it sets the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(module)
    # OSError: the package is there, but a shared library it needs is not.
    except (ImportError, OSError) as error:
        raise EngineUnavailable(
            f"engine {engine!r} needs {module}, which cannot be imported ({error})",
            f"pip install 'flss-edge[{extra}]'",
        ) from error
