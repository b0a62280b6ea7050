"""Graphs in int8: static quantization of the convolutions, with ranges and corrections found on real images.

Every convolution reads unsigned 8-bit activations and signed weights with one scale an output channel, written as
QuantizeLinear and DequantizeLinear pairs, which engines fuse into integer kernels. What follows the pooling stays in
float32: it is 0.1 % of the arithmetic, and decides most directly.

Weights use 7 of their 8 bits. x86 processors without VNNI add two products of an activation and a weight in 16 bits,
which saturates from 255 * 65 * 2 on: with all 8 bits a graph would decide differently from processor to processor.

Sources: Jacob et al., CVPR 2018 (the arithmetic); Nagel et al., ICCV 2019, section 4.2 (bias correction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from flss_export.activations import IMAGES, FloatArray, Range, channel_means, ranges
from flss_export.protos import rewired, serialize
from flss_runtime.errors import CheckFailed

LARGEST_WEIGHT = 64
_LEVELS = 255
_LARGEST_BIAS = 2**30  # of 2**31: leaves room for the sum it starts
_TINY = 1e-20  # scale of a channel without weights

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the images said about a backbone.

    Attributes:
        ranges: Tensor -> smallest and largest value, zero included.
        biases: Name of a convolution's bias -> its corrected values (C,).
    """

    ranges: Mapping[str, Range]
    biases: Mapping[str, npt.NDArray[np.float64]]


def calibrate(content: bytes, images: FloatArray) -> Calibration:
    """Find ranges, then correct the biases layer by layer.

    Rounding shifts the mean of every channel a little, the same way for all images, and these shifts are the larger
    part of what quantization does to the latent mean. Each convolution's bias takes back the shift that is measured in
    the quantized graph behind the layers before it, which are corrected already.

    Args:
        content: A float32 graph of images.
        images: (M, 3, H, W) float32 in [0, 1]: real ones, no test images.

    Raises:
        CheckFailed: The graph has no convolutions.
    """
    proto = _parse(content)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    if not convolutions:
        raise CheckFailed("the network has no convolutions to quantize", "Export it without int8.")
    found = {**ranges(proto, _quantized(proto), images), IMAGES: (0.0, 1.0)}  # 8-bit pixels stay exact
    for node in proto.graph.node:
        if node.op_type == "MaxPool":  # picks values, so it needs no scale of its own
            found[node.output[0]] = found[node.input[0]]
    constants = _constants(proto)
    biases = {node.input[2]: constants[node.input[2]].astype(np.float64) for node in convolutions}
    expected = channel_means(proto, [node.output[0] for node in convolutions], images)
    for node in convolutions:
        (place,) = node.output
        shifted = channel_means(_quantize(proto, Calibration(found, biases)), [place], images)[place]
        biases[node.input[2]] += expected[place] - shifted
    return Calibration(found, biases)


def quantize(role: str, content: bytes, calibration: Calibration) -> bytes:
    """Return a graph of images with its convolutions in int8.

    Args:
        role: For messages.
        content: The float32 graph; its backbone is the one that was calibrated.
        calibration: As `calibrate` returns it.
    """
    return serialize(f"{role}.int8", _quantize(_parse(content), calibration))


def covers(calibration: Calibration, content: bytes) -> bool:
    """Tell whether a calibration has every range and bias that this graph needs."""
    proto = _parse(content)
    biases = {node.input[2] for node in proto.graph.node if node.op_type == "Conv"}
    return set(_quantized(proto)) <= calibration.ranges.keys() and biases <= calibration.biases.keys()


def _parse(content: bytes) -> ModelProto:
    """Read a graph and give each convolution a bias: the exporter leaves those out that are zero."""
    proto: ModelProto = ModelProto.FromString(content)
    constants = _constants(proto)
    for node in proto.graph.node:
        if node.op_type == "Conv" and len(node.input) == 2:
            weight = node.input[1]
            node.input.append(f"{weight}_bias")
            proto.graph.initializer.append(
                numpy_helper.from_array(np.zeros(len(constants[weight]), np.float32), f"{weight}_bias")
            )
    return proto


def _quantized(proto: ModelProto) -> list[str]:
    """Return the values that are 8-bit: all that a Conv, Add or MaxPool reads, and what a Conv gives.

    Not what only a Relu reads: engines make one kernel of both, whose output is the Relu's.
    """
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    constants = {tensor.name for tensor in proto.graph.initializer}
    written = {name: node.op_type for node in proto.graph.node for name in node.output}
    names = [*(value.name for value in proto.graph.input), *written]
    return [
        name
        for name in names
        if name in readers
        and name not in constants
        and readers[name] != {"Relu"}
        and (readers[name] & {"Conv", "Add", "MaxPool"} or written.get(name) == "Conv")
    ]


def _quantize(proto: ModelProto, calibration: Calibration) -> ModelProto:
    quantized = set(_quantized(proto))
    constants, kept = _constants(proto), dict[str, Any]()
    scales = {name: _activation_scale(calibration.ranges[name]) for name in quantized}
    nodes: list[NodeProto] = []

    def narrow(names: Iterable[str]) -> None:
        for name in quantized.intersection(names):
            kept.update({f"{name}_scale": scales[name][0], f"{name}_zero": scales[name][1]})
            nodes.append(_node("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_int8"))
            nodes.append(_dequantize(name))

    narrow([value.name for value in proto.graph.input])
    for node in proto.graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [f"{name}_float" if name in quantized else name for name in node.input]
        if node.op_type == "Conv":
            weight, bias = node.input[1:]
            step = float(scales[node.input[0]][0])
            kept |= _weights(weight, constants[weight], bias, calibration.biases[bias], step)
            nodes += [_dequantize(weight, axis=0), _dequantize(bias, axis=0)]
            copied.input[1:] = [f"{weight}_float", f"{bias}_float"]
        nodes.append(copied)
        narrow(node.output)
    read = {name for node in nodes for name in node.input}
    return rewired(proto, nodes, {**{name: constants[name] for name in constants if name in read}, **kept})


def _activation_scale(limits: Range) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point: 0 and 255 stand for the ends of the range, and zero is exact."""
    low, high = limits
    scale = max((high - low) / _LEVELS, _TINY)
    return np.float32(scale), np.uint8(round(-low / scale))


def _weights(weight: str, values: Array, bias: str, biases: npt.NDArray[np.float64], step: float) -> dict[str, Array]:
    """Return the constants of one convolution.

    Args:
        weight: Name of the weight.
        values: (C, …) float32.
        bias: Name of the bias.
        biases: (C,), corrected.
        step: Scale of its input, which times a weight's is the scale of the sum that the bias starts.
    """
    flat = np.asarray(values, np.float64).reshape(len(biases), -1)
    # a channel of small weights and a large bias takes a coarser scale, or the bias would not fit its 32 bits
    fine = np.maximum(np.abs(flat).max(axis=1) / LARGEST_WEIGHT, np.abs(biases) / (step * _LARGEST_BIAS))
    scale = np.maximum(fine, _TINY).astype(np.float32)
    integers = np.round(flat / scale[:, None]).clip(-LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)
    bias_scale = (scale * np.float32(step)).astype(np.float32)
    return {
        f"{weight}_int8": integers.reshape(values.shape),
        f"{weight}_scale": scale,
        f"{weight}_zero": np.zeros(len(scale), np.int8),
        f"{bias}_int8": np.round(biases / bias_scale).astype(np.int32),
        f"{bias}_scale": bias_scale,
        f"{bias}_zero": np.zeros(len(scale), np.int32),
    }


def _dequantize(name: str, axis: int | None = None) -> NodeProto:
    node = _node("DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], f"{name}_float")
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


def _node(kind: str, inputs: list[str], output: str) -> NodeProto:
    return helper.make_node(kind, inputs, [output])


def _constants(proto: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
