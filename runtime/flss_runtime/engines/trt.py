"""TensorRT and TensorRT-RTX on an NVIDIA GPU, one graph an engine; `trt_pair` runs encoder and head as one.

Threading: an engine, and a pair made of two, is used by one thread at a time; several may run in several threads.
Nothing here starts a thread, and waiting for the GPU releases Python's lock.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flss_runtime.engine_cache import EngineCache
from flss_runtime.engines import Engine, Tensors, TensorSpec, check_tensors
from flss_runtime.engines.closing import Closing, refuse_closed
from flss_runtime.engines.cuda import DeviceBuffer, Stream, find_device
from flss_runtime.engines.trt_build import Target, build_engine, cache_key
from flss_runtime.engines.trt_library import label
from flss_runtime.engines.trt_plan import Context, ForeignEngine, Plan, Shape
from flss_runtime.errors import EngineUnavailable

# The first one present. TensorRT-RTX is called by its second name where it comes from the package index.
_LIBRARIES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_COMPILED_NAME = "compiled.bin"

_log = logging.getLogger("flss_runtime")


def import_tensorrt(*, rtx: bool = False) -> ModuleType:
    """Import TensorRT, or TensorRT-RTX where that is absent.

    Args:
        rtx: Whether only TensorRT-RTX will do.

    Raises:
        EngineUnavailable: Neither can be imported.
    """
    failures = []
    for name in _LIBRARIES[1:] if rtx else _LIBRARIES:
        try:
            return importlib.import_module(name)
        # OSError: the package is there, but a shared library it needs is not. RuntimeError: placeholder packages.
        except (ImportError, OSError, RuntimeError) as error:
            failures.append(f"{name}: {error}")
    raise EngineUnavailable(
        f"engine 'trt' needs TensorRT-RTX{'' if rtx else ' or TensorRT'}, which cannot be imported "
        f"({'; '.join(failures)})",
        "pip install 'flss-edge[tensorrt-rtx]' on a PC with an RTX GPU, 'flss-edge[tensorrt]' elsewhere; on a Jetson "
        "see docs/jetson.md",
    )


@dataclass(slots=True)
class _Ready:
    """A context and what it was last told, which it need not be told again for every frame."""

    context: Context
    shapes: dict[str, Shape] = field(default_factory=dict)
    outputs: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)


class TrtEngine(Closing):
    """One graph in one TensorRT engine; use `open_engine` to get one.

    The engine comes from the cache, or is built and cached, which takes a second or two with TensorRT-RTX and up to
    some minutes with TensorRT; a line on the logger `flss_runtime` says so.

    Args:
        library: As `import_tensorrt` returns it.
        graph: ONNX file.
        cache: Where engines are kept; None takes the user's.

    Raises:
        BundleError: The file is missing or no ONNX graph.
        EngineUnavailable: There is no GPU, or the library cannot build this graph for it, or not load the engine.
        InferenceError: The GPU has no memory for it.
        OutputError: Others could have put their code into the cache.
    """

    name = "trt"

    def __init__(self, library: ModuleType, graph: Path, cache: EngineCache | None = None) -> None:
        device = find_device()
        self.library, self.device = label(library), str(device)
        cache, target = cache or EngineCache(), Target(device.capability, device)
        key = cache_key(library, graph, target)
        obtain = partial(cache.obtain, key, graph.name, lambda: build_engine(library, graph, target, cache))
        compiled = cache.folder(key) / _COMPILED_NAME
        with ExitStack() as undo:
            self._stream = Stream()  # before the rest: it makes the CUDA context
            undo.callback(self._stream.close)
            built = obtain()
            try:
                self.plan = Plan(library, built.content, compiled)
            except ForeignEngine as error:
                _log.warning("engine for %s: %s", graph.name, error.problem)
                built = obtain(rebuild=True)
                self.plan = Plan(library, built.content, compiled)
            undo.pop_all()
        self.inputs: Mapping[str, TensorSpec] = self.plan.inputs
        self.outputs: Mapping[str, TensorSpec] = self.plan.outputs
        self._precision = built.precision
        self._contexts: dict[int, _Ready] = {}
        self._memory: dict[str, DeviceBuffer] = {}
        self._closed = False

    def precision(self) -> str:
        """Return what the builder read back of the network; its types bind every kernel (see `trt_network`)."""
        return self._precision

    def run(self, tensors: Tensors) -> Tensors:
        """Run the graph once; see `Engine.run`.

        Raises:
            InferenceError: A tensor has the wrong name, dtype or shape, or is larger than the engine was built for; the
                GPU failed; or the engine is closed.
        """
        refuse_closed(self._closed)
        check_tensors(self.inputs, tensors, self.library)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        ready = self._prepare(shapes)
        results = {name: np.empty(shape, self.outputs[name].dtype) for name, shape in ready.outputs.items()}
        kept = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        for name, array in {**kept, **results}.items():
            address = self._reserve(name, array.nbytes)
            if ready.addresses.get(name) != address:
                ready.context.set_address(name, address)
                ready.addresses[name] = address
        for name, array in kept.items():
            self._stream.copy_in(self._memory[name].address, array.ctypes.data, array.nbytes)
        ready.context.enqueue()
        for name, array in results.items():
            self._stream.copy_out(array.ctypes.data, self._memory[name].address, array.nbytes)
        self._stream.wait()
        return results

    def join(self, head: Engine) -> Any:
        """Return a `TrtPair` of this encoder and its head, None where the head is no engine of this kind."""
        if not isinstance(head, TrtEngine):
            return None
        from flss_runtime.engines.trt_pair import TrtPair

        return TrtPair(self.plan, head.plan)

    def close(self) -> None:
        """Free the engine and its memory on the GPU."""
        if self._closed:
            return
        self._closed = True
        self.plan.keep_compiled()
        self._contexts.clear()
        for buffer in self._memory.values():
            buffer.close()
        self.plan.close()
        self._stream.close()

    def _prepare(self, shapes: dict[str, Shape]) -> _Ready:
        """Return the context for inputs of these shapes, which it knows by then."""
        profile = self.plan.profile_for(shapes)
        ready = self._contexts.get(profile)
        if ready is None:
            ready = self._contexts[profile] = _Ready(Context(self.plan, profile, self._stream))
        if ready.shapes != shapes:
            ready.shapes = {}  # where it fails half way, the next run says everything anew
            ready.outputs = ready.context.set_shapes(shapes)
            ready.shapes = shapes
        return ready

    def _reserve(self, name: str, size: int) -> int:
        """Return memory for a tensor that holds at least `size` bytes; it grows and never shrinks."""
        buffer = self._memory.get(name)
        if buffer is None or buffer.size < size:
            if buffer is not None:
                self._memory.pop(name).close()  # gone even where the larger one cannot be had
            buffer = self._memory[name] = DeviceBuffer(size)
        return buffer.address
