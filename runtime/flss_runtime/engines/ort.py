"""ONNX Runtime, on the CPU and on the devices that its providers reach."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flss_runtime.engines import EngineSpec, Tensors, TensorSpec, check_tensors, one_line, refused
from flss_runtime.engines.closing import Closing, refuse_closed
from flss_runtime.engines.cores import physical_cores
from flss_runtime.engines.ort_binding import DeviceRuns, OrtResident
from flss_runtime.engines.ort_devices import DEVICES, preload, provider_name, set_up, settings_for
from flss_runtime.engines.precision import UNKNOWN, is_heavy, narrowest
from flss_runtime.engines.random_tensors import random_tensors
from flss_runtime.engines.resident import check_contiguous
from flss_runtime.errors import BundleError, EngineUnavailable, GraphNotSupported

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
# Exceptions of ONNX Runtime that are about the graph: others may be about memory or a driver.
_NO_WAY = ("NotImplemented", "EPFail")


class OrtEngine(Closing):
    """One graph in one ONNX Runtime session; use `open_engine` to get one.

    Args:
        library: The imported onnxruntime.
        graph: ONNX file.
        device: "cpu", "cuda", "tensorrt" or "tensorrt-rtx".
        threads: Threads of one call, the caller's included; None takes the physical cores this process may use.

    Raises:
        BundleError: The file is missing or no graph that this version of ONNX Runtime can run.
        EngineUnavailable: The device is missing, or the session runs on something else.
    """

    def __init__(
        self,
        library: ModuleType,
        graph: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.name = str(EngineSpec("ort", device))
        self.library = f"onnxruntime {library.__version__}"
        self.threads = threads or physical_cores()
        self._onnxruntime = library
        self._graph = graph
        self._device = DEVICES[device]
        if not graph.is_file():
            raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
        self._session: Any = self._new_session()
        self.device = provider_name(self._device)
        self.inputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_inputs()}
        self.outputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_outputs()}
        self._output_names = list(self.outputs)
        self._bound = DeviceRuns(library, self._session, self._device.memory) if self._device.binds else None

    def precision(self) -> str:
        """Read back the arithmetic from a profiled run on random values in a session of its own.

        Raises:
            EngineUnavailable: Layers ran elsewhere than on the device, or the profile cannot be written.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                session = self._new_session(profile=str(Path(folder) / "profile"))
                session.run(None, random_tensors(self.inputs))
                events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except OSError as error:
            raise EngineUnavailable(
                f"the arithmetic cannot be read back: the profile cannot be written ({error.strerror or error})",
                "set TMPDIR to a folder with free space",
            ) from error
        kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
        heavy = [kernel for kernel in kernels if is_heavy(kernel["op_name"])]
        elsewhere = sorted({kernel["provider"] for kernel in heavy} - {self.device})
        if elsewhere:
            raise EngineUnavailable(
                f"onnxruntime ran layers on {', '.join(elsewhere)}, not on {self.device}",
                "take a graph in a precision that the device computes, or another engine",
            )
        if not heavy and any("TRTKernel" in kernel["op_name"] for kernel in kernels):
            return UNKNOWN  # TensorRT's providers fuse the graph into one node
        return narrowest(_first_type(kernel["input_type_shape"]) for kernel in heavy)

    def run(self, tensors: Tensors) -> Tensors:
        """Run the graph once; see `Engine.run`.

        Raises:
            InferenceError: A tensor has the wrong name, dtype or shape, the session failed, or the engine is closed.
        """
        refuse_closed(self._session is None)
        check_tensors(self.inputs, tensors, "onnxruntime")  # it reads another byte order as if it were its own
        try:
            if self._bound is not None:
                return self._bound.run(tensors)
            return dict(zip(self._output_names, self._session.run(self._output_names, tensors), strict=True))
        # ONNX Runtime's exceptions have no common base but Exception.
        except Exception as error:
            raise refused("onnxruntime", one_line(error), self.inputs) from error

    def resident(self, inputs: Tensors) -> OrtResident | None:
        """Bind the graph to arrays on the host; None on another device, whose runs have buffers there.

        Raises:
            InferenceError: As `run`, or an array cannot be bound.
        """
        if self._device.memory != "cpu":
            return None
        check_contiguous(inputs, "onnxruntime")
        return OrtResident(self._session, inputs, self.run(inputs))

    def close(self) -> None:
        """Free the session and its threads."""
        self._session = None
        self._bound = None

    def _new_session(self, *, profile: str = "") -> Any:
        """Load the graph, and make sure that it is where it was asked to be: the library's own fallback is silent."""
        library, device = self._onnxruntime, self._device
        options = _session_options(library, self.threads, profile)
        missing = preload(library, device)
        providers = set_up(library, device, options, settings_for(device, self._graph))
        try:
            session = library.InferenceSession(
                str(self._graph), options, providers=providers or None, enable_fallback=False
            )
        except Exception as error:  # as in `run`: no common base
            if device.memory != "cpu":
                kind = GraphNotSupported if type(error).__name__ in _NO_WAY else EngineUnavailable
                raise kind(
                    f"{self.library} cannot run {self._graph.name} on {device.provider}: {one_line(error)}",
                    f"run it with --engine ort; or {device.install}",
                ) from error
            raise BundleError(
                f"{self.library} cannot load {self._graph}: {one_line(error)}",
                "export the bundle again; if it is newer than this onnxruntime, upgrade that: "
                "pip install --upgrade 'flss-edge[cpu]'",
            ) from error
        present = session.get_providers()
        if present[0] != provider_name(device):
            why = f" ({missing})" if missing else ""
            raise EngineUnavailable(
                f"{self.library} put {self._graph.name} on {', '.join(present)}, not on {device.provider}{why}",
                f"check driver and libraries with flss-edge doctor; {device.install}",
            )
        return session


def _session_options(library: ModuleType, threads: int, profile: str) -> Any:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    # Threads that go on spinning after a call starve the other graph's session: the encoder ran 3-5 times slower.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors arrive as exceptions; the library's own lines on stderr repeat them
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return options


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, (int, str)) else "?" for size in node.shape)
    return TensorSpec(_DTYPES.get(node.type, node.type), shape)


def _first_type(types_and_shapes: list[dict[str, list[int]]]) -> str:
    """Return the type of a kernel's first input, as ONNX Runtime's profile names it."""
    return next(iter(types_and_shapes[0]))
