"""What the values inside a graph look like on real images: the ranges that a narrower number format has to hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from flss_runtime.engines import Tensors, open_engine

IMAGES = "images"  # the one input of every graph that is observed
_PIXELS = 16 * 32 * 32  # of the images in one call: every value of the graph is kept at once

FloatArray = npt.NDArray[np.float32]
Range = tuple[float, float]


def ranges(proto: ModelProto, tensors: Sequence[str], images: FloatArray) -> dict[str, Range]:
    """Return the smallest and largest value of each tensor over all images, zero included.

    Args:
        proto: A graph of `images`.
        tensors: Names of float32 values inside it, its input or its outputs.
        images: (M, 3, H, W) float32 in [0, 1].
    """
    found = dict.fromkeys(tensors, (0.0, 0.0))
    for values in observe(proto, tensors, images):
        for name, value in values.items():
            low, high = found[name]
            found[name] = min(low, float(value.min())), max(high, float(value.max()))
    return found


def channel_means(proto: ModelProto, tensors: Sequence[str], images: FloatArray) -> dict[str, npt.NDArray[np.float64]]:
    """Return each tensor's mean of every channel (C,), over all images and places; arguments as for `ranges`."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for values in observe(proto, tensors, images):
        for name, value in values.items():  # (B, C, …)
            flat = value.reshape(*value.shape[:2], -1).mean(axis=2, dtype=np.float64).sum(axis=0)
            sums[name] = sums.get(name, 0.0) + flat
    return {name: total / len(images) for name, total in sums.items()}


def observe(proto: ModelProto, tensors: Iterable[str], images: FloatArray) -> Iterator[Tensors]:
    """Run a graph in ONNX Runtime, a few images at a time, and yield the tensors asked for."""
    wanted = list(tensors)
    inner = [name for name in wanted if name != IMAGES]
    run = _runner(_probe(proto, inner)) if inner else lambda chunk: {}
    step = max(1, _PIXELS // (images.shape[2] * images.shape[3]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        found = {**run(chunk), IMAGES: chunk}
        yield {name: found[name] for name in wanted}


def _probe(proto: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """Return the part of a graph that these values need; ONNX Runtime 1.32 fails on some that are left dangling."""
    probe = ModelProto()
    probe.CopyFrom(proto)
    needed = set(outputs)
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
        else:
            probe.graph.node.remove(node)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return probe


def _runner(proto: ModelProto) -> Callable[[FloatArray], Mapping[str, npt.NDArray[np.float32]]]:
    with tempfile.TemporaryDirectory(prefix="flss-export-") as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(proto.SerializeToString())
        engine = open_engine(path)  # which has read the whole file by then
    return lambda chunk: engine.run({IMAGES: chunk})
