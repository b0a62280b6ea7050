"""A TensorRT engine that was loaded, and the contexts it runs in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flss_runtime.cache_files import read_blob, write_blob
from flss_runtime.engines import TensorSpec, refused
from flss_runtime.engines.cuda import DeviceBuffer, Stream
from flss_runtime.engines.trt_build import MANY, ONE
from flss_runtime.engines.trt_library import is_rtx, label, logger
from flss_runtime.errors import EngineUnavailable, InferenceError

Shape = tuple[int, ...]
# What both libraries say of an engine of another version or platform. They have no error code for it.
_FOREIGN = re.compile(r"please rebuild|version tag|incompatible|not compatible|\bserialization\b", re.IGNORECASE)


class ForeignEngine(EngineUnavailable):
    """The engine was built by another version or for another platform: a new one would load."""


def is_foreign(messages: Iterable[str]) -> bool:
    """Tell from a library's errors whether it refused an engine for what it is, not for want of memory or a GPU."""
    return any(_FOREIGN.search(message) for message in messages)


class Plan:
    """A deserialized engine: what its tensors are, and the memory its layers work in.

    All contexts of a plan share that memory, so they run one after the other, never at once.

    Args:
        library: The imported library.
        content: The serialized engine.
        compiled: File that TensorRT-RTX's compiled kernels are kept in between starts.

    Raises:
        ForeignEngine: The engine is of another version or for another platform.
        EngineUnavailable: It cannot be loaded for another reason, such as memory.
        InferenceError: The GPU has no memory for its layers.
    """

    def __init__(self, library: ModuleType, content: bytes, compiled: Path) -> None:
        self.library = library
        messages = logger(library)
        messages.forget()
        self._runtime: Any = library.Runtime(messages)
        self.engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            # The first error is the cause, those behind it say that it failed.
            problem = f"{label(library)} does not load the engine: {next(iter(messages.errors), 'it does not say why')}"
            if is_foreign(messages.errors):
                raise ForeignEngine(problem, "flss-edge prepare --engine trt --rebuild")
            fix = "check nvidia-smi for memory and errors; if it stays: flss-edge prepare --engine trt --rebuild"
            raise EngineUnavailable(problem, fix)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = {name: self._spec(name) for name in names if modes[name] == library.TensorIOMode.INPUT}
        self.outputs = {name: self._spec(name) for name in names if name not in self.inputs}
        self.largest = {
            profile: {name: tuple(self.engine.get_tensor_profile_shape(name, profile)[2]) for name in self.inputs}
            for profile in (ONE, MANY)
        }
        self.scratch = DeviceBuffer(int(self.engine.device_memory_size_v2))
        self._compiled = compiled
        self._cache: Any = None
        self._kept = b""

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """Return the profile that inputs of these shapes run in.

        Raises:
            InferenceError: They are larger than the engine was built for.
        """
        for profile, largest in self.largest.items():
            if all(size <= most for name in shapes for size, most in zip(shapes[name], largest[name], strict=True)):
                return profile
        most_of_all = ", ".join(f"{name} {list(shape)}" for name, shape in self.largest[MANY].items())
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise InferenceError(
            f"the engine takes at most {most_of_all}, but was given {given}",
            "pass fewer images at once, or fewer samples",
        )

    def new_context(self) -> Any:
        """Return an execution context that has no working memory yet."""
        by_user = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not is_rtx(self.library):
            return self.engine.create_execution_context(by_user)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(by_user)
        # Compile for a new shape at once, not in the background: a captured graph would keep the makeshift kernels.
        config.dynamic_shapes_kernel_specialization_strategy = (
            self.library.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._kept = read_blob(self._compiled)
            if self._kept and not self._cache.deserialize(self._kept):
                self._kept = b""  # of another driver or GPU
        config.set_runtime_cache(self._cache)
        return self.engine.create_execution_context(config)

    def keep_compiled(self) -> None:
        """Write the kernels that TensorRT-RTX compiled, so that the next start does not have to."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if content and content != self._kept:
            write_blob(self._compiled, content)
            self._kept = content

    def close(self) -> None:
        """Free the engine; its contexts have to be gone."""
        self._cache = self.engine = self._runtime = None
        self.scratch.close()

    def _spec(self, name: str) -> TensorSpec:
        dtype = np.dtype(self.library.nptype(self.engine.get_tensor_dtype(name))).name
        return TensorSpec(dtype, tuple(size if size >= 0 else "?" for size in self.engine.get_tensor_shape(name)))


class Context:
    """One profile of a plan, ready to be put on a stream.

    Args:
        plan: The engine.
        profile: `ONE` or `MANY`.
        stream: What it runs on.
    """

    def __init__(self, plan: Plan, profile: int, stream: Stream) -> None:
        self._plan, self._stream = plan, stream
        self._context: Any = plan.new_context()
        if self._context is None:
            raise self._failure("no execution context could be made")
        if not self._context.set_optimization_profile_async(profile, stream.handle):
            raise self._failure(f"profile {profile} could not be selected")
        stream.wait()
        self._context.set_device_memory(plan.scratch.address, plan.scratch.size)

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Set the inputs' shapes and return the outputs'.

        Raises:
            InferenceError: The graph does not take them.
        """
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise refused(label(self._plan.library), f"{name} cannot be {list(shape)}", self._plan.inputs)
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:  # each shape is fine, but not with the others
            given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise self._failure(f"the shapes do not fit each other: {given}") from error
        if missing:
            raise self._failure("an input has no shape")
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._plan.outputs}

    def set_address(self, name: str, address: int) -> None:
        """Say where a tensor is in the GPU's memory."""
        if not self._context.set_tensor_address(name, address):
            raise self._failure(f"the address of {name} was refused")

    def enqueue(self) -> None:
        """Put one run on the stream.

        Raises:
            InferenceError: It was refused.
        """
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failure("the run was refused")

    def capturable(self) -> bool:
        """Tell whether a run can be recorded into a CUDA graph; TensorRT does not say, and all of these graphs can."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream.handle))

    def _failure(self, what: str) -> InferenceError:
        errors = logger(self._plan.library).errors
        return refused(label(self._plan.library), f"{what}: {errors[-1] if errors else ''}", self._plan.inputs)
