"""OpenVINO, on the CPU and on an Intel GPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from flss_runtime.engines import EngineSpec, Tensors, TensorSpec, check_tensors, one_line, refused
from flss_runtime.engines.closing import Closing, refuse_closed
from flss_runtime.engines.cores import physical_cores
from flss_runtime.engines.libraries import version_of
from flss_runtime.engines.precision import is_heavy, narrowest
from flss_runtime.engines.resident import check_contiguous, run_failed
from flss_runtime.errors import BundleError, EngineUnavailable


class OpenVinoEngine(Closing):
    """One graph compiled by OpenVINO; use `open_engine` to get one.

    Args:
        library: The imported openvino.
        graph: ONNX file.
        device: "cpu" or "gpu" (Intel's).
        threads: Threads of one call on the CPU; None takes the physical cores this process may use.
        hint: "latency" for one image at a time, "throughput" for large batches.
        cache: Folder for compiled models; None compiles at each start, which takes less than a second.

    Raises:
        BundleError: The file is missing or no graph that this version of OpenVINO can compile.
        EngineUnavailable: The device is missing, or the graph was compiled for another one.
    """

    def __init__(
        self,
        library: ModuleType,
        graph: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        hint: Literal["latency", "throughput"] = "latency",
        cache: Path | None = None,
    ) -> None:
        self.name = str(EngineSpec("openvino", device))
        self.library = f"openvino {version_of(library)}"
        self.threads = threads or physical_cores()
        if not graph.is_file():
            raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
        self._library = library
        core = _core(library)
        _check_present(device.upper(), core.available_devices)
        try:
            model = _read(library, graph)
            settings = _settings(device, self.threads, hint, half=_has_half(model))
            if cache is not None:
                settings["CACHE_DIR"] = str(cache)
            self._compiled: Any = core.compile_model(model, device.upper(), settings)
            self._request: Any = self._compiled.create_infer_request()
        except Exception as error:  # those of a frontend have no common base
            raise BundleError(
                f"{self.library} cannot load {graph}: {one_line(error)}",
                "export the bundle again; if it is newer than this openvino, upgrade that: "
                "pip install --upgrade 'flss-edge[openvino]'",
            ) from error
        self.device = ", ".join(self._compiled.get_property("EXECUTION_DEVICES"))
        _check_present(device.upper(), self.device.split(", "))
        self.inputs: Mapping[str, TensorSpec] = dict(map(_spec, self._compiled.inputs))
        self.outputs: Mapping[str, TensorSpec] = dict(map(_spec, self._compiled.outputs))

    def precision(self) -> str:
        """Read back the arithmetic from the compiled graph.

        Raises:
            InferenceError: The engine is closed.
        """
        refuse_closed(self._request is None)
        layers = [operation.get_rt_info() for operation in self._compiled.get_runtime_model().get_ops()]
        return narrowest(
            layer["runtimePrecision"].astype(str) for layer in layers if is_heavy(layer["layerType"].astype(str))
        )

    def run(self, tensors: Tensors) -> Tensors:
        """Run the graph once; see `Engine.run`.

        Raises:
            InferenceError: A tensor has the wrong name, dtype or shape, the graph failed, or the engine is closed.
        """
        refuse_closed(self._request is None)
        check_tensors(self.inputs, tensors, "openvino")  # it would convert another dtype without a word
        try:
            # Inputs are read where they lie; outputs are copies, so the next run leaves them alone.
            results = self._request.infer(tensors, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise refused("openvino", one_line(error), self.inputs) from error
        return dict(zip(self.outputs, results.values(), strict=True))

    def resident(self, inputs: Tensors) -> OpenVinoResident:
        """Bind the graph to arrays on the host.

        Raises:
            InferenceError: As `run`, or an array cannot be bound.
        """
        check_contiguous(inputs, "openvino")
        outputs = self.run(inputs)
        return OpenVinoResident(self._library.Tensor, self._compiled.create_infer_request(), inputs, outputs)

    def close(self) -> None:
        """Free the compiled graph and its threads."""
        self._request = None
        self._compiled = None


class OpenVinoResident:
    """A request bound to arrays on the host; see `resident.Resident`."""

    def __init__(self, tensor: Any, request: Any, inputs: Tensors, outputs: Tensors) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._request = request
        for name, array in {**inputs, **outputs}.items():
            request.set_tensor(name, tensor(array, shared_memory=True))

    def run(self) -> None:
        """Run the graph once; see `resident.Resident.run`."""
        try:
            self._request.infer(share_outputs=True)  # else it would hand out copies beside
        except RuntimeError as error:
            raise run_failed("openvino", error) from error


@functools.cache
def _core(library: ModuleType) -> Any:
    """Return the one core of this process, which is never freed.

    A core that compiles sets the alternate signal stack of its thread, and puts back the one before when it is freed.
    With two, freed in another order than made, the thread is left with freed memory: the next signal ends the process.
    """
    return library.Core()


@functools.cache
def _frontend(library: ModuleType) -> Any:
    return library.frontend.FrontEndManager().load_by_framework("onnx")


def _read(library: ModuleType, graph: Path) -> Any:
    """Read a graph as ONNX; the core itself would try every other format too, and TensorFlow's parser prints errors."""
    frontend = _frontend(library)
    model = frontend.convert(frontend.load(str(graph)))
    if not model.inputs:
        raise ValueError("it is empty")
    return model


def _settings(device: str, threads: int, hint: str, *, half: bool) -> dict[str, Any]:
    """Say how to compile: in the arithmetic that the graph is written in, whatever the processor would rather run."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": hint.upper(), "EXECUTION_MODE_HINT": "ACCURACY"}
    if not half:
        # Processors with AMX run float32 graphs in bfloat16 otherwise, and GPUs in float16.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if device == "cpu":
        settings["INFERENCE_NUM_THREADS"] = threads
        # Pinned threads meet those of every other process that pins from the first core on.
        settings["ENABLE_CPU_PINNING"] = False
    return settings


def _has_half(model: Any) -> bool:
    """Tell whether a convolution or a matrix product of the graph is written in float16."""
    types = (
        operation.get_output_element_type(0).get_type_name()
        for operation in model.get_ops()
        if is_heavy(operation.get_type_name())
    )
    return "f16" in types


def _check_present(device: str, devices: list[str]) -> None:
    if not any(found.split(".", 1)[0].strip("()") == device for found in devices):  # several are GPU.0, GPU.1
        raise EngineUnavailable(
            f"openvino runs on {', '.join(devices)} here, not on a {device}",
            "install the GPU's OpenCL driver, or run with --engine openvino",
        )


def _spec(port: Any) -> tuple[str, TensorSpec]:
    shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return port.get_any_name(), TensorSpec(np.dtype(port.get_element_type().to_dtype()).name, shape)
