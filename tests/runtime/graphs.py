"""More small graphs: an encoder that takes bytes, and a convolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from .conftest import FLOAT, TinyModel, save, tensor

UINT8 = int(TensorProto.UINT8)


def save_bytes_encoder(path: Path, model: TinyModel) -> None:
    """The tiny encoder for (B, H, W, 3) uint8, with the conversion in the graph."""
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=FLOAT),
        helper.make_node("Mul", ["levels", "step"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mean_weight"], ["mean"]),
        helper.make_node("MatMul", ["flat", "half_logvar_weight"], ["half_logvar"]),
        helper.make_node("Exp", ["half_logvar"], ["std"]),
    ]
    weights = {
        "step": np.float32(1 / 255),
        "mean_weight": model.mean_weight,
        "half_logvar_weight": model.std_weight / np.float32(2),
    }
    inputs = [tensor("images", ["B", model.spec.height, model.spec.width, 3], UINT8)]
    outputs = [tensor(name, ["B", model.latent_dim]) for name in ("mean", "std")]
    save(path, "encoder", nodes, inputs, outputs, weights)


def save_convolution(path: Path, size: int = 8) -> None:
    """Images (B, 3, H, W) -> sums (B,): one convolution with a weight that float16 and TF32 cannot hold."""
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["map"]),
        helper.make_node("Relu", ["map"], ["positive"]),
        helper.make_node("Reshape", ["positive", "shape"], ["sums"]),
    ]
    weights = {"weight": np.full((1, 3, size, size), 1.0001, np.float32), "shape": np.array([-1], np.int64)}
    save(path, "convolution", nodes, [tensor("images", ["B", 3, size, size])], [tensor("sums", ["B"])], weights)
