"""ONNX graph to TensorRT engine, with one code path for `tensorrt` (10.3 and later, 11) and `tensorrt_rtx`.

Networks are strongly typed: every layer computes in the types that the graph names, so precision is a fact of the graph
and no flag can change it. TF32, which TensorRT allows float32 layers by default, is switched off for the same reason.

`tensorrt` times kernels, so it builds on the GPU that the engine is for, in half a minute to several. `tensorrt_rtx`
leaves the choice of kernels to the start of the engine: it builds in a second or two, for any GPU it knows, with none.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flss_runtime.batches import MAX_BATCH, MAX_INPUT_BYTES
from flss_runtime.cache_files import read_blob, write_blob
from flss_runtime.engine_cache import Built, CacheKey, EngineCache
from flss_runtime.engines.cuda import Device
from flss_runtime.engines.trt_library import is_rtx, label, logger, signals_wait
from flss_runtime.engines.trt_network import facts_of, parse_network
from flss_runtime.errors import BundleError, EngineUnavailable, GraphNotSupported, UsageError
from flss_runtime.integrity import sha256_file

MAX_SAMPLES = 1024
ONE, MANY = 0, 1  # the profiles: a single image, for latency; any batch, for data sets
_USUAL_SAMPLES = 100
_USUAL_BATCH = 32
_PROFILE = f"1 and up to {MAX_BATCH} images, up to {MAX_SAMPLES} samples, no TF32"

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
    with signals_wait():
        return _build(library, graph, target, cache)


def _build(library: ModuleType, graph: Path, target: Target, cache: EngineCache) -> Built:
    started = time.perf_counter()
    builder = library.Builder(logger(library))
    parsed = parse_network(library, builder, graph)
    network = parsed.network
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
        raise _build_error(library, graph, target, logger(library).errors)
    if timings is not None and (content := read_timings(config)):
        write_blob(timings, content)
    return Built(bytes(serialized), facts_of(library, network).precision, time.perf_counter() - started)


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
