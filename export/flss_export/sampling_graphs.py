"""The graphs that turn a latent Gaussian into votes, written out by hand: the noise is an input, nothing is random.

The head stands alone; `fused` and `logit` hold an encoder, in whatever precision, and what follows it in float32.
Engines pay some microseconds a node at batch 1, so there are few, and the standard deviation is folded into the head's
first weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn

from flss_export.protos import FLOAT, INT64, Values, make_graph, serialize
from flss_runtime.errors import UsageError
from flss_runtime.logit_sampling import MAX_CLASSES
from flss_runtime.sampling import LATENT, LOGIT

Constants = dict[str, np.ndarray]


def head_graph(head: nn.Sequential) -> ModelProto:
    """Write the sampling head as one graph with the standard deviation folded into the first layer's weight.

    (mean + s*std*noise) W^T + b = (mean W^T + b) + noise (W * s*std)^T, so the noisy latents (B, N, D) never exist: at
    batch 1 the first layer reads the noise once and writes nothing of its size.

    Args:
        head: Linear layers with ReLU between them, float32 on the CPU.
    """
    latent_dim, classes = _sizes(head)
    inputs = {"mean": (FLOAT, ("B", latent_dim)), "std": (FLOAT, ("B", latent_dim)), **_noise(latent_dim)}
    nodes = [*_centre("centre"), *_votes(head, "centre")]
    return make_graph("head", nodes, inputs, _voted(classes), _constants(head))


def add_sampling_graphs(
    graphs: Mapping[str, bytes], head: nn.Sequential, *, sampling: str = LATENT, fused: bool = False
) -> dict[str, bytes]:
    """Return the graphs with those of a sampling, and fused ones, for each encoder among them.

    Args:
        graphs: Key -> graph; keys as in the manifest.
        head: As for `head_graph`.
        sampling: "latent" adds nothing, "logit" the Gaussian of the logits, which "deterministic" runs on as well.
        fused: Whether to add encoder and head in one graph; each is a copy of its encoder.

    Raises:
        UsageError: As `check_sampling`.
    """
    check_sampling(head, sampling)
    found = dict(graphs)
    for key, content in graphs.items():
        role, dot, precision = key.partition(".")
        if role == "encoder" and fused:
            found[f"fused{dot}{precision}"] = fused_graph(content, head)
        if role == "encoder" and sampling == LOGIT:
            found[f"logit{dot}{precision}"] = logit_graph(content, head)
    return found


def check_exported(sampling: str) -> None:
    """Refuse a sampling that needs no graph of its own, or does not exist.

    Raises:
        UsageError: It is neither "latent" nor "logit".
    """
    if sampling not in (LATENT, LOGIT):
        raise UsageError(
            f"there is nothing to export for sampling {sampling!r}",
            f"choose {LATENT} or {LOGIT}; with {LOGIT} the bundle can sample deterministically too",
        )


def check_sampling(head: nn.Sequential, sampling: str) -> None:
    """Refuse a sampling that a head has not.

    Raises:
        UsageError: It is none that is exported; or the logits are not Gaussian, because the head has hidden layers, or
            too many for their covariance to be any gain.
    """
    check_exported(sampling)
    if sampling == LATENT:
        return
    latent, fix = len(_linears(head)) - 1, f"leave --sampling out: {LATENT} sampling works with every head"
    if latent:
        raise UsageError(
            f"the head has {latent} hidden layer{'s' if latent > 1 else ''}, so its logits are not Gaussian", fix
        )
    classes = _sizes(head)[1]
    if classes > MAX_CLASSES:
        raise UsageError(f"the head has {classes} classes; {LOGIT} sampling takes at most {MAX_CLASSES}", fix)


def fused_graph(encoder: bytes, head: nn.Sequential) -> bytes:
    """Write encoder and head as one graph, which also gives the logits of the mean.

    Args:
        encoder: images -> mean, std; in any precision.
        head: As for `head_graph`.

    Returns:
        images, noise (B or 1, N, D), noise_scale (1,) -> logits (B, N, K), choices (B, N), mean_logits (B, K).
    """
    latent_dim, classes = _sizes(head)
    is_linear = len(_linears(head)) == 1
    centre = "mean_logits" if is_linear else "centre"
    nodes = [*_centre(centre), *_votes(head, centre), *([] if is_linear else _mean_path(head))]
    outputs = {**_voted(classes), "mean_logits": (FLOAT, ("B", classes))}
    return _behind("fused", encoder, nodes, _noise(latent_dim), outputs, _constants(head))


def logit_graph(encoder: bytes, head: nn.Sequential) -> bytes:
    """Write encoder and linear head as the graph of the Gaussian that the logits have.

    Args:
        encoder: As for `fused_graph`.
        head: One linear layer, float32 on the CPU.

    Returns:
        images -> mean_logits (B, K), covariance (B, K, K) = W diag(std^2) W^T.
    """
    check_sampling(head, LOGIT)
    classes = _sizes(head)[1]
    nodes = [
        *_centre("mean_logits"),
        *_scaled("std"),
        helper.make_node("MatMul", ["scaled_weight", "scaled_columns"], ["covariance"]),
    ]
    outputs: Values = {"mean_logits": (FLOAT, ("B", classes)), "covariance": (FLOAT, ("B", classes, classes))}
    return _behind("logit", encoder, nodes, {}, outputs, _constants(head))


def _behind(
    role: str, encoder: bytes, nodes: list[NodeProto], inputs: Values, outputs: Values, constants: Constants
) -> bytes:
    """Return a graph of images that goes on where an encoder ends."""
    graph = ModelProto.FromString(encoder).graph
    (images,) = graph.input
    shape = tuple(each.dim_param or each.dim_value for each in images.type.tensor_type.shape.dim)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    proto = make_graph(
        role,
        [*graph.node, *nodes],
        {images.name: (images.type.tensor_type.elem_type, shape), **inputs},
        outputs,
        {**weights, **constants},
    )
    return serialize(role, proto)


def _centre(output: str) -> list[NodeProto]:
    """The first layer of the mean: (B, H)."""
    return [helper.make_node("Gemm", ["mean", "weight0", "bias0"], [output], transB=1)]


def _votes(head: nn.Sequential, centre: str) -> list[NodeProto]:
    last = len(_linears(head)) - 1
    nodes = [
        helper.make_node("Mul", ["std", "noise_scale"], ["scale"]),  # (B, D)
        *_scaled("scale"),
        helper.make_node("MatMul", ["noise", "scaled_columns"], ["spread"]),  # (B, N, H)
        helper.make_node("Unsqueeze", [centre, "row_axis"], ["centre_row"]),  # (B, 1, H)
        helper.make_node("Add", ["spread", "centre_row"], ["layer0" if last else "logits"]),  # (B, N, H)
    ]
    for index in range(1, last + 1):
        output = "logits" if index == last else f"layer{index}"
        nodes += [
            helper.make_node("Relu", [f"layer{index - 1}"], [f"relu{index}"]),
            helper.make_node("MatMul", [f"relu{index}", f"weight{index}"], [f"product{index}"]),
            helper.make_node("Add", [f"product{index}", f"bias{index}"], [output]),
        ]
    nodes.append(helper.make_node("ArgMax", ["logits"], ["choices"], axis=2, keepdims=0))  # lowest index wins a tie
    return nodes


def _scaled(scale: str) -> list[NodeProto]:
    """The first weight times a scale (B, D), and its transpose, which engines make part of the product behind it.

    Rows of D values, as a linear layer keeps them: broadcasting along them is a loop over neighbours.
    """
    return [
        helper.make_node("Unsqueeze", [scale, "row_axis"], ["scale_row"]),  # (B, 1, D)
        helper.make_node("Mul", ["weight0", "scale_row"], ["scaled_weight"]),  # (B, H, D)
        helper.make_node("Transpose", ["scaled_weight"], ["scaled_columns"], perm=[0, 2, 1]),  # (B, D, H)
    ]


def _mean_path(head: nn.Sequential) -> list[NodeProto]:
    """The layers after the first one once more, for the mean."""
    last, nodes = len(_linears(head)) - 1, list[NodeProto]()
    for index in range(1, last + 1):
        before = "centre" if index == 1 else f"mean_layer{index - 1}"
        output = "mean_logits" if index == last else f"mean_layer{index}"
        nodes += [
            helper.make_node("Relu", [before], [f"mean_relu{index}"]),
            helper.make_node("Gemm", [f"mean_relu{index}", f"weight{index}", f"bias{index}"], [output]),
        ]
    return nodes


def _constants(head: nn.Sequential) -> Constants:
    """Biases and weights: the first (outputs, inputs), which is scaled by rows, the others (inputs, outputs)."""
    constants: Constants = {"row_axis": np.array([1], np.int64)}
    for index, layer in enumerate(_linears(head)):
        weight = layer.weight.detach().numpy()
        constants[f"weight{index}"] = np.ascontiguousarray(weight if index == 0 else weight.T)
        constants[f"bias{index}"] = layer.bias.detach().numpy()
    return constants


def _noise(latent_dim: int) -> Values:
    return {"noise": (FLOAT, ("NB", "N", latent_dim)), "noise_scale": (FLOAT, (1,))}


def _voted(classes: int) -> Values:
    return {"logits": (FLOAT, ("B", "N", classes)), "choices": (INT64, ("B", "N"))}


def _sizes(head: nn.Sequential) -> tuple[int, int]:
    linears = _linears(head)
    return linears[0].in_features, linears[-1].out_features


def _linears(head: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in head if isinstance(layer, nn.Linear)]
