"""ONNX graph to TensorRT network: strongly typed, so what it says of itself before a build holds for the engine."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flss_runtime.engines.precision import narrowest
from flss_runtime.engines.trt_library import label, logger, signals_wait
from flss_runtime.errors import BundleError, EngineUnavailable, GraphNotSupported

# The parser reads unsigned 8-bit tensors as signed ones, which cuts off half of their range, and merely warns.
# Its flag that keeps them unsigned crashes instead (TensorRT-RTX 1.7).
_READ_AS_SIGNED = re.compile(r"UINT8 zero.?point", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What a network says of itself.

    Attributes:
        inputs: Names of what it takes.
        outputs: Names of what it gives.
        precision: Arithmetic of its convolutions and matrix products, as `Engine.precision` says it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str


@dataclass(frozen=True, slots=True)
class ParsedNetwork:
    """A network, and the parser that owns its weights: it has to live until the engine is built."""

    network: Any
    parser: Any


def read_network(library: ModuleType, graph: Path) -> NetworkFacts:
    """Parse a graph for what its engine would be; takes a small part of a build's time.

    Raises:
        BundleError: The file is no ONNX graph.
        EngineUnavailable: The library has no way to run it.
    """
    with signals_wait():
        parsed = parse_network(library, library.Builder(logger(library)), graph)
        return facts_of(library, parsed.network)


def parse_network(library: ModuleType, builder: Any, graph: Path) -> ParsedNetwork:
    """Make the network of a graph.

    Args:
        library: The imported library.
        builder: Its builder, with the logger of this process.
        graph: ONNX file.

    Raises:
        BundleError: The file is missing or no ONNX graph.
        EngineUnavailable: The library has no way to run it, or would compute something else.
    """
    if not graph.is_file():
        raise BundleError(f"graph {graph} does not exist", "export the bundle again, or correct the path")
    messages = logger(library)
    messages.forget()
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, messages)
    if not parser.parse(graph.read_bytes()) or not network.num_inputs:
        raise _parse_error(library, graph, parser)
    _refuse_unsigned(library, graph, messages.warnings)
    return ParsedNetwork(network, parser)


def facts_of(library: ModuleType, network: Any) -> NetworkFacts:
    """Return what a parsed network says of itself."""
    inputs = tuple(network.get_input(index).name for index in range(network.num_inputs))
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    return NetworkFacts(inputs, outputs, _precision(library, network))


def _precision(library: ModuleType, network: Any) -> str:
    """Read back the arithmetic of the heavy layers, whose types are binding."""
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


def _parse_error(library: ModuleType, graph: Path, parser: Any) -> BundleError | GraphNotSupported:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:2]]
    text = "; ".join(" ".join(line.split()).lstrip(": ") for line in told) or "it is empty"
    if not errors or errors[0].code() == library.ErrorCode.MODEL_DESERIALIZE_FAILED:
        return BundleError(f"{label(library)} cannot load {graph}: {text}", "export the bundle again")
    return GraphNotSupported(
        f"{label(library)} has no way to run {graph.name}: {text}", "choose another --precision, or another --engine"
    )
