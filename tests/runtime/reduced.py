"""The encoder of conftest's tiny model in less than float32, as an exporter writes it, and a bundle that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from flss_runtime.bundle import Bundle

from .bundles import manifest_fields, write_tiny
from .conftest import TinyModel, save, tensor

HALF, SINGLE = int(TensorProto.FLOAT16), int(TensorProto.FLOAT)
BRANCHES = ("mean", "half_logvar")


def save_fp16(path: Path, model: TinyModel) -> Path:
    """Matrix products in float16; the exponential in float32."""
    weights = {"mean_w": model.mean_weight.astype(np.float16), "half_logvar_w": (model.std_weight / 2).astype("f2")}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["flat_half"], to=HALF),
    ]
    for name in BRANCHES:
        nodes.append(helper.make_node("MatMul", ["flat_half", f"{name}_w"], [f"{name}_half"]))
        nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=SINGLE))
    return _save(path, model, nodes, weights)


def save_int8(path: Path, model: TinyModel, levels: int = 127) -> Path:
    """Matrix products in integers: unsigned activations, signed weights per channel; fewer levels are coarser."""
    weights: dict[str, Any] = {"step": np.float32(1 / 255), "zero": np.uint8(0)}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "step", "zero"], ["flat_q"]),
        helper.make_node("DequantizeLinear", ["flat_q", "step", "zero"], ["flat_dq"]),
    ]
    for name, weight in zip(BRANCHES, (model.mean_weight, model.std_weight / 2), strict=True):
        scale = (np.abs(weight).max(axis=0) / levels).astype(np.float32)  # (D,)
        weights |= {f"{name}_w": np.round(weight / scale).astype(np.int8), f"{name}_s": scale}
        weights[f"{name}_z"] = np.zeros(len(scale), np.int8)
        parts = [f"{name}_w", f"{name}_s", f"{name}_z"]
        nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}_dq"], axis=1))
        nodes.append(helper.make_node("MatMul", ["flat_dq", f"{name}_dq"], [name]))
    return _save(path, model, nodes, weights)


def save_unknown(path: Path, model: TinyModel) -> Path:
    """The float32 encoder with one product more, of integers: of a width that no precision stands for."""
    whole = int(TensorProto.INT32)
    weights = {"mean_w": model.mean_weight, "half_logvar_w": model.std_weight / np.float32(2)}
    weights |= {"whole_w": np.zeros((len(model.mean_weight), model.latent_dim), np.int32)}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mean_w"], ["mean_0"]),
        helper.make_node("MatMul", ["flat", "half_logvar_w"], ["half_logvar"]),
        helper.make_node("Cast", ["flat"], ["flat_whole"], to=whole),
        helper.make_node("MatMul", ["flat_whole", "whole_w"], ["nothing_whole"]),
        helper.make_node("Cast", ["nothing_whole"], ["nothing"], to=SINGLE),
        helper.make_node("Add", ["mean_0", "nothing"], ["mean"]),
    ]
    return _save(path, model, nodes, weights)


def write_reduced(target: Path, model: TinyModel, graph: Path, precision: str, **changed: Any) -> Bundle:
    """Write the tiny bundle with one more encoder; `changed` as for `write_tiny`."""
    fields, key = manifest_fields(model), f"encoder.{precision}"
    manifest = {
        "graphs": {**fields["graphs"], key: f"{key}.onnx"},
        "precision": {**fields["precision"], key: precision},
    }
    files = {f"{key}.onnx": graph, **changed.pop("files", {})}
    return write_tiny(target, model, manifest=manifest, files=files, **changed)


def _save(path: Path, model: TinyModel, nodes: list[Any], weights: dict[str, Any]) -> Path:
    images = tensor("images", ["B", 3, model.spec.height, model.spec.width])
    outputs = [tensor(name, ["B", model.latent_dim]) for name in ("mean", "std")]
    nodes.append(helper.make_node("Exp", ["half_logvar"], ["std"]))
    save(path, "encoder", nodes, [images], outputs, weights)
    return path
