"""ONNX graph to TensorRT engine, with one code path for `tensorrt` (10.3 and later, 11) and `tensorrt_rtx`.

Networks are strongly typed: every layer computes in the types that the graph names, so precision is a fact of the graph
and no flag can change it. TF32, which TensorRT allows float32 layers by default, is switched off for the same reason.

`tensorrt` times kernels, so it builds on the GPU that the engine is for, in half a minute to several. `tensorrt_rtx`
leaves the choice of kernels to the start of the engine: it builds in a second or two, for any GPU it knows, with none.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from flss_runtime.batches import MAX_BATCH, MAX_INPUT_BYTES
from flss_runtime.cache_files import read_blob, write_blob
from flss_runtime.engine_cache import Built, CacheKey, EngineCache
from flss_runtime.engines.cuda import Device
from flss_runtime.engines.precision import narrowest
from flss_runtime.errors import BundleError, EngineUnavailable, GraphNotSupported, UsageError
from flss_runtime.integrity import sha256_file

MAX_SAMPLES = 1024
ONE, MANY = 0, 1  # the profiles: a single image, for latency; any batch, for data sets
_USUAL_SAMPLES = 100
_USUAL_BATCH = 32
_PROFILE = f"1 and up to {MAX_BATCH} images, up to {MAX_SAMPLES} samples, no TF32"
# The parser reads unsigned 8-bit tensors as signed ones, which cuts off half of their range, and merely warns.
# Its flag that keeps them unsigned crashes instead (TensorRT-RTX 1.7).
_READ_AS_SIGNED = re.compile(r"UINT8 zero.?point", re.IGNORECASE)

_log = logging.getLogger("flss_runtime")


@dataclass(frozen=True, slots=True)
class Target:
    """The GPU that an engine is built for.

    Attributes:
        capability: Such as "sm86".
        device: The GPU itself where it is this machine's, else None.
    """

    capability: str
    device: Device | None = None


def is_rtx(library: ModuleType) -> bool:
    """Tell whether this is TensorRT-RTX, which builds for GPUs that are not there."""
    return hasattr(library, "ComputeCapability")


def label(library: ModuleType) -> str:
    """Return name and version, such as "tensorrt_rtx 1.7.1.116"."""
    return f"{library.__name__.removesuffix('_bindings')} {library.__version__}"


def parse_target(library: ModuleType, text: str) -> Target:
    """Read the name of a GPU that is not here.

    Args:
        library: The imported library.
        text: Compute capability: "sm86".

    Raises:
        UsageError: The library builds for no such GPU.
        EngineUnavailable: The library builds for the GPU at hand only.
    """
    if not is_rtx(library):
        raise EngineUnavailable(
            f"{label(library)} times kernels on the GPU it builds for, so it builds for the one at hand only",
            "run prepare without --target on the robot, or install TensorRT-RTX: pip install 'flss-edge[tensorrt-rtx]'",
        )
    known = [name.lower() for name in library.ComputeCapability.__members__ if name.startswith("SM")]
    if text not in known:
        ordered = ", ".join(sorted(known, key=lambda name: int(name[2:])))
        raise UsageError(f"{label(library)} builds for no target {text!r}", f"choose from: {ordered}")
    return Target(text)


def cache_key(library: ModuleType, graph: Path, target: Target) -> CacheKey:
    """Return what the engine of a graph is known by.

    TensorRT's engines belong to one model of GPU and, to be safe, one driver; those of TensorRT-RTX to a compute
    capability, and they do not depend on the driver.

    Raises:
        BundleError: The graph is missing.
    """
    if not graph.is_file():
        raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
    digest = sha256_file(graph)
    if is_rtx(library) or target.device is None:
        return CacheKey(digest, label(library), target.capability, profile=_PROFILE)
    place = f"{target.capability} ({target.device.name})"
    return CacheKey(digest, label(library), place, f"CUDA {target.device.driver}", _PROFILE)


def build_engine(library: ModuleType, graph: Path, target: Target, cache: EngineCache) -> Built:
    """Build the engine of a graph.

    Args:
        library: The imported library.
        graph: ONNX file, strongly typed.
        target: The GPU that the engine is for.
        cache: Where TensorRT's timings are kept between builds.

    Raises:
        BundleError: The file is no ONNX graph.
        EngineUnavailable: The library cannot build this graph for this GPU; the message has its own words.
    """
    with _signals_wait():
        return _build(library, graph, target, cache)


def _build(library: ModuleType, graph: Path, target: Target, cache: EngineCache) -> Built:
    started = time.perf_counter()
    messages = logger(library)
    messages.forget()
    builder = library.Builder(messages)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, messages)
    if not parser.parse(graph.read_bytes()) or not network.num_inputs:
        raise _parse_error(library, graph, parser)
    _refuse_unsigned(library, graph, messages.warnings)
    config = _config(library, builder, target)
    for bounds in _profiles(network):
        profile = builder.create_optimization_profile()
        for name, shapes in bounds.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    timings = None if is_rtx(library) else _timings(library, target, cache)
    if timings is not None:
        load_timings(config, read_blob(timings))
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _build_error(library, graph, target, messages.errors)
    if timings is not None and (content := read_timings(config)):
        write_blob(timings, content)
    return Built(bytes(serialized), _precision(library, network), time.perf_counter() - started)


@lru_cache(maxsize=2)
def logger(library: ModuleType) -> Any:
    """Return the one logger of a library: it keeps the first that it is given for the life of the process.

    Its `errors` and `warnings` hold the last messages; both go to the logger `flss_runtime` too, as debug.
    """
    warning = int(library.ILogger.Severity.WARNING)

    class Messages(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)
            self.warnings: deque[str] = deque(maxlen=200)

        def forget(self) -> None:
            self.errors.clear()
            self.warnings.clear()

        def log(self, severity: Any, message: str) -> None:
            if int(severity) > warning:
                return
            _log.debug("%s: %s", library.__name__, message)
            (self.warnings if int(severity) == warning else self.errors).append(" ".join(message.split()))

    return Messages()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM take effect after the block: what they raise in the library's logger is swallowed."""
    came: list[int] = []
    numbers = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not None]
    if threading.current_thread() is not threading.main_thread():  # signals do not arrive here
        numbers = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in came[:1]:  # also when the block failed: whoever asked to stop is not asked again
            signal.raise_signal(arrived)


def _config(library: ModuleType, builder: Any, target: Target) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)
    if is_rtx(library):
        # All scratch memory is given to the context before it runs: else no CUDA graph could be captured.
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
        known = library.ComputeCapability.__members__
        config.num_compute_capabilities = 1
        config.set_compute_capability(known.get(target.capability.upper(), library.ComputeCapability.CURRENT), 0)
    return config


def _profiles(network: Any) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Yield for a single image and for batches: input -> smallest, usual and largest shape."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    batch = min(_max_batch(tuple(tensor.shape)) for tensor in inputs)
    for bounds in ((1, 1, 1), (1, min(_USUAL_BATCH, batch), batch)):
        samples = (1, _USUAL_SAMPLES, MAX_SAMPLES)
        shapes = {}
        for tensor in inputs:
            names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
            free = [
                (samples if name == "N" else bounds) if size < 0 else (size,) * 3
                for size, name in zip(tensor.shape, names, strict=True)
            ]
            shapes[tensor.name] = [tuple(sizes[level] for sizes in free) for level in range(3)]
        yield shapes


def _max_batch(shape: tuple[int, ...]) -> int:
    """Return the largest batch that `batches.Batches` makes of images, and the largest of all for other tensors."""
    if len(shape) != 4 or min(shape[1:]) < 1:
        return MAX_BATCH
    bytes_each = 4 * shape[1] * shape[2] * shape[3]
    return max(1, min(MAX_BATCH, MAX_INPUT_BYTES // bytes_each))


def _precision(library: ModuleType, network: Any) -> str:
    """Read the arithmetic of the heavy layers back from the parsed network, whose types are binding."""
    kinds, types = library.LayerType, library.DataType
    names = {types.FLOAT: "float32", types.HALF: "float16", types.BF16: "bfloat16", types.INT8: "int8"}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    from_int8 = {layer.get_output(0).name for layer in layers if layer.type == kinds.DEQUANTIZE}
    found = set()
    for layer in layers:
        if layer.type in (kinds.CONVOLUTION, kinds.MATRIX_MULTIPLY, kinds.DECONVOLUTION):
            taken = layer.get_input(0)
            found.add("int8" if taken.name in from_int8 else names.get(taken.dtype, str(taken.dtype)))
    return narrowest(found)


def _refuse_unsigned(library: ModuleType, graph: Path, warnings: deque[str]) -> None:
    if any(_READ_AS_SIGNED.search(warning) for warning in warnings):
        raise EngineUnavailable(
            f"{graph.name} quantizes to unsigned 8 bits, which {label(library)} would read as signed",
            "that is int8 for CPUs: take --precision fp16 here, or --engine ort or openvino",
        )


def load_timings(config: Any, content: bytes) -> None:
    """Give the builder the timings of earlier builds; what it does not take, it measures again."""
    for blob in (content, b""):
        timings = config.create_timing_cache(blob)
        if timings is not None and config.set_timing_cache(timings, False):
            return
    _log.debug("the builder takes no timings, not even none")


def read_timings(config: Any) -> bytes:
    """Return the timings after a build, b"" where the builder has none."""
    timings = config.get_timing_cache()
    content = None if timings is None else timings.serialize()
    return b"" if content is None else bytes(content)


def _timings(library: ModuleType, target: Target, cache: EngineCache) -> Path:
    model = "" if target.device is None else target.device.name
    return cache.root / "timings" / (re.sub(r"[^\w.-]+", "-", f"{label(library)}-{target.capability}-{model}") + ".bin")


def _parse_error(library: ModuleType, graph: Path, parser: Any) -> BundleError | GraphNotSupported:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:2]]
    text = "; ".join(" ".join(line.split()).lstrip(": ") for line in told) or "it is empty"
    if not errors or errors[0].code() == library.ErrorCode.MODEL_DESERIALIZE_FAILED:
        return BundleError(f"{label(library)} cannot load {graph}: {text}", "export the bundle again")
    return GraphNotSupported(
        f"{label(library)} has no way to run {graph.name}: {text}", "choose another --precision, or another --engine"
    )


def _build_error(library: ModuleType, graph: Path, target: Target, errors: deque[str]) -> EngineUnavailable:
    text = errors[-1] if errors else "it does not say why"
    turing = "FP32 GEMM is not supported" in text
    fix = (
        "Turing has no float32 matrix products there: export with --precision fp32,fp16 and prepare --precision fp16"
        if turing
        else "choose another --precision, another --engine, or update the library"
    )
    # Without memory or a working GPU no graph can be built: that says nothing about this one.
    machine = not turing and re.search(r"out ?of ?memory|cuda (error|failure)", text, re.IGNORECASE)
    kind = EngineUnavailable if machine else GraphNotSupported
    return kind(f"{label(library)} cannot build {graph.name} for {target.capability}: {text}", fix)
