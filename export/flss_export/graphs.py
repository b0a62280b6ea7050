"""The ONNX graphs of a bundle, built from a torch FLSS model and, for a cascade, its gate (docs/bundle-format.md).

The encoder, the deterministic network and the gate go through `torch.onnx.export`; its output is then rebuilt node by
node, so that nothing of the exporting machine (paths, stack traces, producer) and none of the exporter's own names stay
in the file. The head is written out by hand (`sampling_graphs`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from flss_edge.model import FLSS, Classifier
from flss_export.protos import ANOTHER_TORCH, FLOAT, INT64, OPSET, Values, make_graph, serialize
from flss_export.sampling_graphs import head_graph
from flss_runtime.errors import CheckFailed

EXPORTER = "torch.onnx.export(dynamo=True)"
EXAMPLE_BATCH = 2  # a batch of 1 can be baked in as a constant (pytorch issue 157621)

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class GraphSet:
    """Serialized graphs, self-contained, one opset.

    Their keys are the manifest's: a role ("encoder", "head", "deterministic", "gate", "fused", "logit") in float32, or
    a role, a dot and another precision.
    """

    graphs: Mapping[str, bytes]
    opset: int = OPSET
    exporter: str = EXPORTER

    @property
    def files(self) -> dict[str, bytes]:
        """File name in the bundle -> content."""
        return {file_name(key): content for key, content in self.graphs.items()}


def file_name(key: str) -> str:
    """Return the file that a bundle keeps a graph in."""
    return f"{key}.onnx"


def build_graphs(model: FLSS) -> GraphSet:
    """Build the graphs of `model`; the same weights give the same bytes under the same library versions.

    - encoder: images (B, 3, H, W) float32 in [0, 1] -> mean (B, D), std (B, D)
    - head: mean (B, D), std (B, D), noise (B or 1, N, D), noise_scale (1,) -> logits (B, N, K), choices (B, N) int64
    - deterministic: images -> logits (B, K), choice (B,) int64, without the log-variance layer and without sampling

    Args:
        model: on any device and in any mode; it is copied and stays as it is.

    Raises:
        CheckFailed: the exporter of this torch version gave a graph that is not valid ONNX or not what was asked for.
    """
    fused = fuse_batch_norm(model)
    size, latent_dim, classes = model.config.image_size, model.config.features, model.config.num_classes
    encoder = _export(
        "encoder", _Encode(fused), size, {"mean": (FLOAT, ("B", latent_dim)), "std": (FLOAT, ("B", latent_dim))}
    )
    outputs: Values = {"logits": (FLOAT, ("B", classes)), "choice": (INT64, ("B",))}
    deterministic = _export("deterministic", _Classify(fused), size, outputs)
    protos = {"encoder": encoder, "head": head_graph(fused.head), "deterministic": deterministic}
    return GraphSet({role: serialize(role, proto) for role, proto in protos.items()})


def gate_graph(model: Classifier) -> bytes:
    """Build the gate of a cascade: images (B, 3, H, W) float32 in [0, 1] -> logits (B, K).

    Args:
        model: without weight noise, on any device and in any mode; it is copied and stays as it is.

    Raises:
        CheckFailed: as `build_graphs`.
    """
    outputs: Values = {"logits": (FLOAT, ("B", model.config.num_classes))}
    return serialize("gate", _export("gate", fuse_batch_norm(model), model.config.image_size, outputs))


def fuse_batch_norm(model: Net) -> Net:
    """Return a float32 CPU copy in eval mode whose batch norms are folded into the convolutions before them.

    Folded here, in float64, and not by the exporter: exported ResNets with wrong convolution biases were reported
    (pytorch issues 166797, 169178). Pairs go by torchvision's names (bn1 follows conv1) or, in an nn.Sequential, by
    position.

    Raises:
        CheckFailed: a batch norm has no convolution to go into.
    """
    fused: Net = copy.deepcopy(model).cpu().double().eval()
    for parent in list(fused.modules()):
        children = dict(parent.named_children())
        for name, norm in children.items():
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            partner = str(int(name) - 1) if isinstance(parent, nn.Sequential) else name.replace("bn", "conv")
            convolution = children.get(partner)
            if not isinstance(convolution, nn.Conv2d):
                raise CheckFailed(f"batch norm {name!r} follows no convolution", "Use the network of flss_edge.model.")
            setattr(parent, partner, nn.utils.fuse_conv_bn_eval(convolution, norm))
            setattr(parent, name, nn.Identity())
    return fused.float()


class _Encode(nn.Module):
    """Images -> mean, std: the square root of the variance is taken inside, so no runtime can get it wrong.

    It is taken of the last layer's weights: halves are exact in binary, and an operator costs more than its arithmetic.
    """

    def __init__(self, model: FLSS) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(model.encoder)
        with torch.no_grad():
            for parameter in self.encoder.logvar.parameters():
                parameter.mul_(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, half_logvar = self.encoder(images)
        return mean, torch.exp(half_logvar)


class _Classify(nn.Module):
    """Images -> logits and class of the mean path; the unused log-variance layer drops out of the graph."""

    def __init__(self, model: FLSS) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits, logits.argmax(dim=1)


def _export(role: str, network: nn.Module, size: int, outputs: Values) -> ModelProto:
    # No output_names: an output called "mean" would share its name with the value of the mean-pooling node, which makes
    # the graph invalid (seen with torch 2.15). No stdout: some versions print what their rewriter did.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch 2.11's own code
        try:
            program = torch.onnx.export(
                network.eval(),
                (torch.zeros(EXAMPLE_BATCH, 3, size, size),),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("B", min=1)}},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise CheckFailed(f"torch cannot export this network: {str(error)[-300:]}", ANOTHER_TORCH) from error
    if program is None:
        raise CheckFailed("torch.onnx.export returned no program", ANOTHER_TORCH)
    return _rebuild(role, program.model_proto, size, outputs)


def _rebuild(role: str, exported: ModelProto, size: int, outputs: Values) -> ModelProto:
    """Copy only operators, attributes and constants, under names that depend on nothing but the graph."""
    graph = exported.graph
    if [value.name for value in graph.input] != ["images"] or len(graph.output) != len(outputs):
        raise CheckFailed("the exported graph has other inputs or outputs than asked for", ANOTHER_TORCH)
    used = {name for node in graph.node for name in node.input}
    names = {"": "", "images": "images"}
    constants: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if tensor.name in used:
            names[tensor.name] = _constant_name(tensor.name, len(constants))
            constants[names[tensor.name]] = numpy_helper.to_array(tensor)
    final = dict(zip((value.name for value in graph.output), outputs, strict=True))
    nodes = []
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.output):
            names[name] = final.get(name) or f"{node.op_type.lower()}{index}_{slot}"
        inputs = [names[name] for name in node.input]
        outputs_of = [names[name] for name in node.output]
        copied = NodeProto(op_type=node.op_type, domain=node.domain, input=inputs, output=outputs_of)
        copied.attribute.extend(node.attribute)
        nodes.append(copied)
    return make_graph(role, nodes, {"images": (FLOAT, ("B", 3, size, size))}, outputs, constants)


def _constant_name(name: str, index: int) -> str:
    return name.removeprefix("model.") if "." in name else f"constant{index}"
