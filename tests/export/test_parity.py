"""The comparison of torch with an engine finds agreement where it is, and each kind of disagreement."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint
from flss_edge.model import ModelConfig
from flss_export.parity import CHUNK, parity, replay
from flss_export.reference import reference_network, reference_outputs
from flss_export.sampling_graphs import head_graph
from flss_runtime.bundle import Bundle, store_calibration
from flss_runtime.comparison import count_votes
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import open_engine
from flss_runtime.errors import EngineUnavailable, FLSSError, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise


def _images(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _with_head(graph_files: dict[str, Path], head: nn.Sequential, folder: Path) -> dict[str, Path]:
    path = folder / "other.onnx"
    path.write_bytes(head_graph(head).SerializeToString())
    return {**graph_files, "head": path}


def test_exported_graphs_pass(checkpoint: Checkpoint, graph_files: dict[str, Path]) -> None:
    report = parity(checkpoint, graph_files, _images(40), seed=1, num_samples=30)
    assert report.passed and report.images == 40 and report.real
    assert set(report.tensor_differences) == {"mean", "std", "logits", "deterministic"}
    assert max(report.tensor_differences.values()) < 1e-5
    assert report.class_flips == 0 and report.rejection_flips is None


def test_chunks_see_the_noise_of_their_images(checkpoint: Checkpoint, graph_files: dict[str, Path]) -> None:
    images, policy = _images(CHUNK + 5), SmoothingPolicy(25, 2.0, 0)
    reference, candidate = replay(checkpoint.model, {"fp32": graph_files}, images, 7, policy)["fp32"]
    source = SeededNoise(7)
    noise = np.stack([source.at(index, 25, 16) for index in range(len(images))])
    network = reference_network(checkpoint.model)
    whole = reference_outputs(network, images, noise, 2.0)
    with open_engine(graph_files["encoder"]) as encoder, open_engine(graph_files["head"], threads=1) as head:
        latent = encoder.run({"images": to_nchw(images)})
        found = head.run({**latent, "noise": noise, "noise_scale": np.array([2], np.float32)})
    np.testing.assert_array_equal(reference.votes, count_votes(whole["choices"], 5))
    np.testing.assert_array_equal(candidate.votes, count_votes(found["choices"], 5))
    largest = np.abs(whole["logits"] - found["logits"]).max()
    assert np.abs(reference.tensors["logits"] - candidate.tensors["logits"]).max() == pytest.approx(largest, abs=1e-6)


def test_the_reference_is_the_literal_formula(checkpoint: Checkpoint) -> None:
    images, noise = _images(2), SeededNoise(0).take(2, 3, 16)
    found = reference_outputs(reference_network(checkpoint.model), images, noise, 1.5)
    pixels = torch.from_numpy(images.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean, logvar = checkpoint.model.encoder(pixels)
        latent = mean[1] + 1.5 * torch.exp(logvar[1] / 2) * torch.tensor(np.array(noise[1, 2]))
        logits = checkpoint.model.head(latent)
    np.testing.assert_allclose(found["logits"][1, 2], logits.numpy(), atol=1e-6)
    np.testing.assert_array_equal(found["choices"], found["logits"].argmax(axis=2))


def test_another_head_is_found(checkpoint: Checkpoint, graph_files: dict[str, Path], tmp_path: Path) -> None:
    head = reference_network(checkpoint.model).head
    with torch.no_grad():
        head[-1].bias += torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0])
    report = parity(checkpoint, _with_head(graph_files, head, tmp_path), _images(10), num_samples=20)
    assert not report.passed
    assert report.clear_winner_flips > 0 and report.largest_vote_change > 1
    assert report.tensor_differences["logits"] == pytest.approx(3, abs=1e-4)
    assert report.tensor_differences["mean"] < 1e-5


def test_nan_is_found(checkpoint: Checkpoint, graph_files: dict[str, Path], tmp_path: Path) -> None:
    head = reference_network(checkpoint.model).head
    with torch.no_grad():
        head[-1].bias[4] = float("nan")
    try:
        report = parity(checkpoint, _with_head(graph_files, head, tmp_path), _images(3), num_samples=5)
    except FLSSError:
        return  # an engine that refuses to give NaN is as good
    assert any("logits" in failure for failure in report.failures)


def test_a_bundle_brings_its_own_settings(checkpoint: Checkpoint, bundle: Bundle) -> None:
    entry = {"num_samples": 20, "noise_scale": 2.0, "mode": "latent", "min_votes": 9}
    calibrated = store_calibration(bundle, entry)
    report = parity(checkpoint, calibrated, _images(6))
    assert report.passed and report.rejection_flips == 0
    assert parity(checkpoint, calibrated, _images(6), num_samples=21).rejection_flips is None


def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, bundle: Bundle, graph_files: dict[str, Path], make_model
) -> None:
    for images in (_images(0), _images(2, 8), _images(2).astype(np.float32), _images(2)[0]):
        with pytest.raises(UsageError, match="expected"):
            parity(checkpoint, graph_files, images)
    other = dataclasses.replace(checkpoint, model=make_model(ModelConfig(num_classes=6, width=2, image_size=16), 1))
    with pytest.raises(UsageError, match="checkpoint"):
        parity(other, bundle, _images(2))
    with pytest.raises(FLSSError) as refused:
        parity(checkpoint, bundle, _images(2), engine="no-such-engine")
    assert isinstance(refused.value, (UsageError, EngineUnavailable))
