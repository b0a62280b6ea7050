"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from flss_runtime.engines import Tensors, TensorSpec
from flss_runtime.errors import BundleError, EngineUnavailable, InferenceError

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OrtEngine:
    """One graph in one ONNX Runtime session; use `open_engine` to get one.

    Args:
        library: The imported onnxruntime.
        graph: ONNX file.
        threads: Threads of one call, the caller's included; None takes the physical cores this process may use.

    Raises:
        BundleError: The file is missing or no graph that this version of ONNX Runtime can run.
        EngineUnavailable: The session runs on something else than the CPU provider.
    """

    name = "ort"

    def __init__(self, library: ModuleType, graph: Path, *, threads: int | None = None) -> None:
        self.threads = threads or physical_cores()
        if not graph.is_file():
            raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
        try:
            self._session: Any = library.InferenceSession(
                str(graph), _session_options(library, self.threads), providers=[_PROVIDER]
            )
        # ONNX Runtime's exceptions have no common base but Exception.
        except Exception as error:
            raise BundleError(
                f"onnxruntime {library.__version__} cannot load {graph}: {_one_line(error)}",
                "export the bundle again; if it is newer than this onnxruntime, upgrade that: "
                "pip install --upgrade 'flss-edge[cpu]'",
            ) from error
        self.provider = ", ".join(self._session.get_providers())
        if self.provider != _PROVIDER:
            raise EngineUnavailable(
                f"onnxruntime runs {graph} on {self.provider}, but {_PROVIDER} was asked for",
                "reinstall it: pip install --force-reinstall 'flss-edge[cpu]'",
            )
        self.inputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_inputs()}
        self.outputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_outputs()}
        self._output_names = list(self.outputs)

    def run(self, tensors: Tensors) -> Tensors:
        """Run the graph once; see `Engine.run`.

        Raises:
            InferenceError: A tensor has the wrong name, dtype or shape, the session failed, or the engine is closed.
        """
        if self._session is None:
            raise InferenceError("the engine is closed", "open a new one with open_engine()")
        try:
            return dict(zip(self._output_names, self._session.run(self._output_names, tensors), strict=True))
        except Exception as error:  # as above: no common base
            expected = ", ".join(f"{name} {spec.dtype} {list(spec.shape)}" for name, spec in self.inputs.items())
            raise InferenceError(
                f"onnxruntime failed: {_one_line(error)}",
                f"check that the bundle fits this version of flss-edge (flss-edge verify); the graph takes: {expected}",
            ) from error

    def close(self) -> None:
        """Free the session and its threads."""
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def physical_cores() -> int:
    """Count the physical cores this process may use, at least 1.

    Hyperthreads of one core share its arithmetic units, and more threads than that cost time. A container's CPU quota
    counts too: threads above it are stopped for the rest of each scheduling period.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in usable:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:  # no such file in some containers and on other systems
            siblings.add(str(cpu))
    return max(1, min(len(siblings), _quota()))


def _quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no control groups, or no quota ("max")
        return os.cpu_count() or 1


def _session_options(library: ModuleType, threads: int) -> Any:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    # Threads that go on spinning after a call starve the other graph's session: the encoder ran 3-5 times slower.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors arrive as exceptions; the library's own lines on stderr repeat them
    return options


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, (int, str)) else "?" for size in node.shape)
    return TensorSpec(_DTYPES.get(node.type, node.type), shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
