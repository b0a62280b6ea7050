"""Real ONNX graphs, small enough to read: a linear encoder and a linear head, run by the real engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.images import InputSpec

if TYPE_CHECKING:
    from .cascades import Gate

FLOAT = int(TensorProto.FLOAT)
INT64 = int(TensorProto.INT64)


@dataclass(frozen=True)
class TinyModel:
    """Weights of the two graphs, so that a test can compute in NumPy what the engine has to give."""

    spec: InputSpec
    latent_dim: int
    num_classes: int
    mean_weight: npt.NDArray[np.float32]  # (3 H W, D)
    std_weight: npt.NDArray[np.float32]  # (3 H W, D)
    head_weight: npt.NDArray[np.float32]  # (D, K)
    head_bias: npt.NDArray[np.float32]  # (K,)
    encoder: Path
    head: Path
    fused: Path  # both in one graph
    logit: Path  # the Gaussian of the logits

    def encode(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        flat = images.reshape(len(images), -1)
        return flat @ self.mean_weight, np.exp(flat @ self.std_weight / 2)


def save(
    path: Path,
    name: str,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, Any],
    opset: int = 17,
) -> None:
    initializers = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def tensor(name: str, shape: list[int | str], dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def save_encoder(
    path: Path, spec: InputSpec, mean_weight: npt.NDArray[np.float32], std_weight: npt.NDArray[np.float32]
) -> None:
    latent_dim = mean_weight.shape[1]
    nodes, weights = _encoding(mean_weight, std_weight)
    outputs = [tensor("mean", ["B", latent_dim]), tensor("std", ["B", latent_dim])]
    save(path, "encoder", nodes, [_images(spec)], outputs, weights)


def save_head(path: Path, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
    latent_dim, num_classes = weight.shape
    nodes, weights = _voting(weight, bias)
    inputs = [tensor("mean", ["B", latent_dim]), tensor("std", ["B", latent_dim]), *_noise(latent_dim)]
    outputs = [tensor("logits", ["B", "N", num_classes]), tensor("choices", ["B", "N"], INT64)]
    save(path, "head", nodes, inputs, outputs, weights)


def save_fused(
    path: Path,
    spec: InputSpec,
    mean_weight: npt.NDArray[np.float32],
    std_weight: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
) -> None:
    """Encoder and head in one graph."""
    latent_dim, num_classes = weight.shape
    encoding, encoder_weights = _encoding(mean_weight, std_weight)
    voting, head_weights = _voting(weight, bias, centre="mean_logits")
    outputs = [
        tensor("logits", ["B", "N", num_classes]),
        tensor("choices", ["B", "N"], INT64),
        tensor("mean_logits", ["B", num_classes]),
    ]
    inputs = [_images(spec), *_noise(latent_dim)]
    save(path, "fused", [*encoding, *voting], inputs, outputs, {**encoder_weights, **head_weights})


def save_logit(
    path: Path,
    spec: InputSpec,
    mean_weight: npt.NDArray[np.float32],
    std_weight: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
) -> None:
    """Images to the Gaussian of the logits: W mean + b and W diag(std^2) W^T."""
    num_classes = weight.shape[1]
    encoding, weights = _encoding(mean_weight, std_weight)
    nodes = [
        *encoding,
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["mean_logits"]),
        helper.make_node("Unsqueeze", ["std", "axis_1"], ["std_row"]),
        helper.make_node("Mul", ["weight_rows", "std_row"], ["scaled"]),  # (B, K, D)
        helper.make_node("Transpose", ["scaled"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["scaled", "columns"], ["covariance"]),
    ]
    weights |= {"weight": weight, "weight_rows": weight.T.copy(), "bias": bias, "axis_1": np.array([1], np.int64)}
    outputs = [tensor("mean_logits", ["B", num_classes]), tensor("covariance", ["B", num_classes, num_classes])]
    save(path, "logit", nodes, [_images(spec)], outputs, weights)


def _images(spec: InputSpec) -> Any:
    return tensor("images", ["B", 3, spec.height, spec.width])


def _noise(latent_dim: int) -> list[Any]:
    return [tensor("noise", ["NB", "N", latent_dim]), tensor("noise_scale", [1])]


def _encoding(
    mean_weight: npt.NDArray[np.float32], std_weight: npt.NDArray[np.float32]
) -> tuple[list[Any], dict[str, Any]]:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mean_weight"], ["mean"]),
        helper.make_node("MatMul", ["flat", "half_logvar_weight"], ["half_logvar"]),
        helper.make_node("Exp", ["half_logvar"], ["std"]),
    ]
    return nodes, {"mean_weight": mean_weight, "half_logvar_weight": std_weight / np.float32(2)}


def _voting(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], centre: str = "centre"
) -> tuple[list[Any], dict[str, Any]]:
    nodes = [
        helper.make_node("Gemm", ["mean", "weight", "bias"], [centre]),
        helper.make_node("Unsqueeze", [centre, "axis_1"], ["centre_row"]),
        helper.make_node("Mul", ["std", "noise_scale"], ["scaled_std"]),
        helper.make_node("Unsqueeze", ["scaled_std", "axis_2"], ["std_column"]),
        helper.make_node("Mul", ["std_column", "weight"], ["folded"]),
        helper.make_node("MatMul", ["noise", "folded"], ["spread"]),
        helper.make_node("Add", ["centre_row", "spread"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["choices"], axis=2, keepdims=0),
    ]
    axes = {"axis_1": np.array([1], np.int64), "axis_2": np.array([2], np.int64)}
    return nodes, {"weight": weight, "bias": bias, **axes}


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Write a random linear encoder and head of the given sizes."""

    def make(size: int = 8, latent_dim: int = 16, num_classes: int = 5, seed: int = 0) -> TinyModel:
        rng = np.random.default_rng(seed)
        spec = InputSpec(size, size)
        pixels = 3 * size * size
        mean_weight = rng.normal(0, 2 / np.sqrt(pixels), (pixels, latent_dim)).astype(np.float32)
        std_weight = rng.normal(0, 1 / np.sqrt(pixels), (pixels, latent_dim)).astype(np.float32)
        head_weight = rng.normal(0, 1, (latent_dim, num_classes)).astype(np.float32)
        head_bias = rng.normal(0, 1, num_classes).astype(np.float32)
        folder = tmp_path_factory.mktemp("graphs")
        save_encoder(folder / "encoder.onnx", spec, mean_weight, std_weight)
        save_head(folder / "head.onnx", head_weight, head_bias)
        parts = spec, mean_weight, std_weight, head_weight, head_bias
        save_fused(folder / "fused.onnx", *parts)
        save_logit(folder / "logit.onnx", *parts)
        return TinyModel(
            spec,
            latent_dim,
            num_classes,
            mean_weight,
            std_weight,
            head_weight,
            head_bias,
            folder / "encoder.onnx",
            folder / "head.onnx",
            folder / "fused.onnx",
            folder / "logit.onnx",
        )

    return make


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., TinyModel]) -> TinyModel:
    return make_model()


@pytest.fixture(scope="session")
def gate(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The gate of a cascade whose vote is `tiny`."""
    from .cascades import make_gate

    return make_gate(tmp_path_factory.mktemp("gate") / "gate.onnx", tiny)


@pytest.fixture
def cascade_path(tiny: TinyModel, gate: Gate, tmp_path: Path) -> Path:
    """The bundle of `tiny` and `gate`, not calibrated; a test may write into it."""
    from .cascades import write_cascade

    return write_cascade(tmp_path / "cascade.bundle", tiny, gate).path


@pytest.fixture
def middle(tiny: TinyModel, gate: Gate) -> float:
    """The confidence that half of the first 40 random images reach."""
    from .cascades import middle_confidence

    return middle_confidence(tiny, gate)


@pytest.fixture()
def frames(tiny: TinyModel) -> npt.NDArray[np.uint8]:
    """Seven random frames, (7, H, W, 3) uint8."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (7, tiny.spec.height, tiny.spec.width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pristine(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny`, calibrated; not to be written to."""
    from .bundles import entry, write_tiny

    return write_tiny(
        tmp_path_factory.mktemp("pristine") / "tiny.bundle", tiny, policy={"calibrations": [entry()]}
    ).path


@pytest.fixture(scope="module")
def bundle(pristine: Path) -> Bundle:
    """The same bundle, loaded."""
    return load_bundle(pristine)


@pytest.fixture(scope="module")
def moody(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose images say how long they take and whether they fail; not to be written to."""
    from .moody import write_moody

    return write_moody(tmp_path_factory.mktemp("moody") / "moody.bundle", tiny)


@pytest.fixture()
def place(pristine: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny.bundle"))
