"""ONNX graphs as the format wants them: one opset, names that depend on nothing but the graph, checked before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from flss_runtime.errors import CheckFailed

OPSET = 18  # what torch's exporter writes without a version conversion; TensorRT 10.3 on Jetson still reads it
IR_VERSION = 10
ANOTHER_TORCH = f"Use another version of torch and report this one ({torch.__version__})."
FLOAT, INT64 = int(TensorProto.FLOAT), int(TensorProto.INT64)

HEAVY_OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})  # where the arithmetic is, and so what a precision is about
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)

Shape = tuple[int | str, ...]
Values = Mapping[str, tuple[int, Shape]]
"""Name -> element type and shape."""


def make_graph(
    name: str, nodes: Sequence[NodeProto], inputs: Values, outputs: Values, constants: Mapping[str, np.ndarray]
) -> ModelProto:
    """Return a graph of these nodes, which get names by their place."""
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    graph = helper.make_graph(
        list(nodes),
        name,
        _values(inputs),
        _values(outputs),
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _values(specs: Values) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in specs.items()]


def rewired(proto: ModelProto, nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> ModelProto:
    """Return a graph with the inputs and outputs of `proto`, and other nodes and constants in between."""
    changed = ModelProto()
    changed.CopyFrom(proto)
    for field in (changed.graph.node, changed.graph.initializer, changed.graph.value_info):
        del field[:]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
    return changed


def serialize(role: str, proto: ModelProto) -> bytes:
    """Return the bytes of a graph that passed the checker, with strict shape and type inference."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"the {role} graph is not valid ONNX: {error}", ANOTHER_TORCH) from error
    random = sorted({node.op_type for node in proto.graph.node if node.op_type in RANDOM_OPERATORS})
    if random:
        raise CheckFailed(f"the {role} graph draws random numbers ({', '.join(random)})", "Noise must be an input.")
    return bytes(proto.SerializeToString(deterministic=True))
