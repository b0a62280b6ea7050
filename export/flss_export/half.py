"""Graphs in fp16: convolutions and matrix products in float16, what follows the last of them in float32.

TensorRT builds strongly typed networks only, so the types are written into the graph, with casts between them. Inputs
and outputs stay float32, and so does the exponential of the log-variance, which makes a factor of a rounding error.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from flss_export.activations import FloatArray, ranges
from flss_export.protos import HEAVY_OPERATORS, rewired, serialize
from flss_runtime.errors import CheckFailed

LARGEST = float(np.finfo(np.float16).max)  # 65504
_SUFFIX = "_fp16"
_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)


def half_network(role: str, content: bytes, images: FloatArray) -> bytes:
    """Return a graph of images in fp16, up to its last heavy layer.

    Args:
        role: For messages.
        content: The float32 graph.
        images: (M, 3, H, W) float32 in [0, 1], a few typical ones, to see that nothing overflows.

    Raises:
        CheckFailed: A weight, or a value on these images, is too large for float16.
    """
    proto = ModelProto.FromString(content)
    needed, half = set[str](), []
    for node in reversed(proto.graph.node):
        if node.op_type in HEAVY_OPERATORS or needed.intersection(node.output):
            half.append(node)
            needed.update(node.input)
    narrowed = _retype(role, proto, half)
    values = [name for node in half for name in node.output]
    for name, (low, high) in ranges(proto, values, images).items():
        _check_fits(role, f"the value {name}", max(-low, high))
    return serialize(f"{role}.fp16", narrowed)


def half_head(content: bytes) -> bytes:
    """Return the head with its matrix products in fp16, for a GPU that has no float32 ones (TensorRT on Turing).

    Scale, sums and arg-max stay in float32.

    Raises:
        CheckFailed: A weight is too large for float16.
    """
    proto = ModelProto.FromString(content)
    heavy = [node for node in proto.graph.node if node.op_type in HEAVY_OPERATORS]
    return serialize("head.fp16", _retype("head", proto, heavy))


def _retype(role: str, proto: ModelProto, half: Iterable[NodeProto]) -> ModelProto:
    """Return the graph with some nodes in float16, and a cast wherever a value crosses over."""
    graph = proto.graph
    narrow = {node.name for node in half}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    floats = _float_values(proto)
    wanted = {True: {each.name for each in graph.output}, False: set[str]()}  # needed in float32, in float16
    for node in graph.node:
        wanted[node.name not in narrow].update(set(node.input) & floats)
    kept: dict[str, np.ndarray] = {}
    for name, array in constants.items():
        if name not in floats or name in wanted[True]:
            kept[name] = array
        if name in floats and name in wanted[False]:
            _check_fits(role, f"the weight {name}", float(np.abs(array).max(initial=0.0)))
            kept[name + _SUFFIX] = array.astype(np.float16)
    nodes = [_cast(value.name, _HALF) for value in graph.input if value.name in wanted[False]]
    for node in graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        if node.name in narrow:
            _rename(copied, floats)
        nodes.append(copied)
        for name in floats.intersection(node.output):
            if name in wanted[node.name in narrow]:
                nodes.append(_cast(name, _FLOAT if node.name in narrow else _HALF))
    return rewired(proto, nodes, kept)


def _rename(node: NodeProto, floats: set[str]) -> None:
    for names in (node.input, node.output):
        names[:] = [name + _SUFFIX if name in floats else name for name in names]


def _cast(name: str, kind: int) -> NodeProto:
    source, target = (name, name + _SUFFIX) if kind == _HALF else (name + _SUFFIX, name)
    return helper.make_node("Cast", [source], [target], to=kind)


def _float_values(proto: ModelProto) -> set[str]:
    """Return the names of all float32 values and constants."""
    graph = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}
    return floats | {tensor.name for tensor in graph.initializer if tensor.data_type == _FLOAT}


def _check_fits(role: str, what: str, largest: float) -> None:
    if not largest <= LARGEST:
        raise CheckFailed(
            f"{what} of the {role} reaches {largest:.3g}, and float16 ends at {LARGEST:.0f}",
            "Export without fp16: this network needs the range of float32.",
        )
