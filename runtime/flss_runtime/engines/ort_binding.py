"""Runs whose tensors stay where they are: on a device for each set of shapes, or in given arrays on the host."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from flss_runtime.engines import Tensors
from flss_runtime.engines.resident import run_failed

_KEPT_SHAPES = 8  # a robot has one or two; what evaluations add beyond these runs without buffers of its own

Shapes = tuple[tuple[int, ...], ...]


class DeviceRuns:
    """Runs a session with inputs and outputs bound to a device.

    The first run of each set of shapes goes the plain way and shows the outputs' shapes; the later ones copy the
    inputs into buffers that are there already.

    Args:
        library: The imported onnxruntime.
        session: The session to run.
        memory: Where its provider's tensors live: "cuda", or "cpu".
    """

    def __init__(self, library: ModuleType, session: Any, memory: str) -> None:
        self._library = library
        self._session = session
        self._memory = memory
        self._output_names = [node.name for node in session.get_outputs()]
        self._bound: dict[Shapes, _Buffers] = {}

    def run(self, tensors: Tensors) -> Tensors:
        """Run once; the tensors fit the session's inputs, because nothing below this line checks them."""
        shapes = tuple(tensor.shape for tensor in tensors.values())
        buffers = self._bound.get(shapes)
        if buffers is not None:
            return buffers.run(self._session, tensors)
        values = self._session.run(self._output_names, tensors)
        outputs = dict(zip(self._output_names, values, strict=True))
        if len(self._bound) < _KEPT_SHAPES:
            self._bound[shapes] = _Buffers(self._library, self._session, self._memory, tensors, outputs)
        return outputs


class OrtResident:
    """A session bound to arrays on the host; see `resident.Resident`."""

    def __init__(self, session: Any, inputs: Tensors, outputs: Tensors) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._session = session
        self._binding = session.io_binding()  # it knows addresses only: the arrays live as long as this object
        self._pointed: dict[str, Any] = {}
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def point(self, name: str, array: Any) -> None:
        """Read an input from another array from here on, of the same dtype and shape; see `resident.feed`."""
        self._pointed[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Run the graph once; see `resident.Resident.run`."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's have no common base
            raise run_failed("onnxruntime", error) from error


class _Buffers:
    """Device memory for one set of shapes, bound to the session."""

    def __init__(self, library: ModuleType, session: Any, memory: str, tensors: Tensors, outputs: Tensors) -> None:
        make = library.OrtValue.ortvalue_from_shape_and_type
        self._binding = session.io_binding()
        self._inputs = {name: make(array.shape, array.dtype, memory, 0) for name, array in tensors.items()}
        self._outputs = {name: make(array.shape, array.dtype, memory, 0) for name, array in outputs.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._shared = memory == "cpu"  # `numpy` gives a view of host memory, and a copy of a device's

    def run(self, session: Any, tensors: Tensors) -> Tensors:
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(tensors[name]))
        session.run_with_iobinding(self._binding)
        arrays = {name: value.numpy() for name, value in self._outputs.items()}
        return {name: array.copy() for name, array in arrays.items()} if self._shared else arrays
