"""A checkpoint becomes a verified bundle, or nothing."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.data import ImageSet
from flss_edge.model import ModelConfig, build_network
from flss_export import exporter
from flss_export.exporter import export_bundle
from flss_export.graphs import GraphSet
from flss_export.reference import reference_network
from flss_export.sampling_graphs import head_graph
from flss_runtime.arrays import read_golden, read_reference
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import CheckFailed, CheckpointError, DataError, OutputError, UncalibratedError, UsageError

NAMES = ("ant", "bee", "cow", "dog", "eel")


def _data(count: int, size: int = 16, classes: int = 5) -> ImageSet:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(images, np.sort(rng.integers(0, classes, count)), NAMES, "made.npz:test")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, graphs: GraphSet) -> None:
    """Export without running torch's exporter again: the graphs of the session's checkpoint."""
    monkeypatch.setattr(exporter, "build_graphs", lambda model: graphs)


def test_the_bundle_verifies_and_says_that_its_images_are_synthetic(bundle: Bundle) -> None:
    assert verify_bundle(bundle).verdict.value == "inconclusive", "64 images are too few for the default budget"
    report = verify_bundle(bundle, budget=0.05)
    assert report.passed, report.failures
    assert any("synthetic" in note for note in report.notes)
    reference = read_reference(bundle)
    assert reference is not None and not reference.real and reference.labels is None
    assert len(reference.images) == 64 and reference.seed == 3 and reference.num_samples == 20
    assert reference.images.std() > 30  # no blank images


def test_the_golden_images_hold_every_tensor(bundle: Bundle) -> None:
    golden = read_golden(bundle)
    assert golden.images.shape == (4, 16, 16, 3) and golden.noise.shape == (4, 20, 16)
    assert golden.logits.shape == (4, 20, 5) and golden.noise_scale == 2.0
    np.testing.assert_array_equal(golden.choices, golden.logits.argmax(axis=2))
    reference = read_reference(bundle)
    assert reference is not None
    votes = np.stack([np.bincount(row, minlength=5) for row in golden.choices])
    np.testing.assert_array_equal(votes, reference.votes[:4])  # the same noise: image i gets SeededNoise(seed).at(i)


def test_the_manifest_describes_the_checkpoint(bundle: Bundle, checkpoint: Checkpoint) -> None:
    manifest = bundle.manifest
    assert manifest["name"] == "tiny"
    assert bundle.class_names == NAMES and bundle.num_classes == 5 and bundle.latent_dim == 16
    assert (bundle.input.height, bundle.input.width) == (16, 16)
    assert manifest["checkpoint"]["sha256"] == checkpoint.sha256 and manifest["checkpoint"]["origin"] == "flss-edge"
    assert manifest["opset"] == 18 and set(manifest["precision"].values()) == {"fp32"}
    assert manifest["tools"]["torch"] == torch.__version__ and "dynamo" in manifest["tools"]["exporter"]
    assert manifest["parity"]["passed"] is True
    assert (bundle.num_samples, bundle.noise_scale) == (20, 2.0)
    with pytest.raises(UncalibratedError):
        bundle.policy()


def test_the_same_checkpoint_and_seed_give_the_same_files(
    bundle: Bundle, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    again = export_bundle(checkpoint, tmp_path / "again.bundle", num_samples=20, seed=3)
    assert again.manifest["files"] == bundle.manifest["files"]


@pytest.mark.usefixtures("quick")
def test_another_seed_gives_other_images_and_noise(bundle: Bundle, checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = export_bundle(checkpoint, tmp_path / "other.bundle", num_samples=20, seed=4)
    ours, theirs = other.manifest["files"], bundle.manifest["files"]
    assert ours["golden.npz"] != theirs["golden.npz"] and ours["reference.npz"] != theirs["reference.npz"]
    assert ours["head.onnx"] == theirs["head.onnx"]


@pytest.mark.usefixtures("quick")
def test_real_images_are_spread_over_the_classes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    data = _data(1500)
    made = export_bundle(checkpoint, tmp_path / "real.bundle", data=data, num_samples=5)
    reference = read_reference(made)
    assert reference is not None and reference.real and len(reference.images) == 600
    assert reference.labels is not None and set(reference.labels) == set(range(5))
    assert made.manifest["data"]["reference_sha256"] == data.sha256
    report = verify_bundle(made)  # 600 images are enough for the default budget
    assert report.passed and not any("images" in note for note in report.notes)


@pytest.mark.usefixtures("quick")
def test_few_images_and_foreign_labels_are_taken_as_they_are(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export_bundle(checkpoint, tmp_path / "few.bundle", data=_data(3, classes=9), num_samples=5)
    reference = read_reference(made)
    assert reference is not None and len(reference.images) == 3 and reference.labels is None
    assert len(read_golden(made).images) == 3


@pytest.mark.usefixtures("quick")
def test_reference_images_stop_at_the_files_limit(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "MAX_IMAGE_BYTES", 20 * 16 * 16 * 3 + 5)
    reference = read_reference(export_bundle(checkpoint, tmp_path / "a.bundle", data=_data(30), num_samples=5))
    assert reference is not None and len(reference.images) == 20


@pytest.mark.slow
def test_large_images_stay_within_the_files_limit(make_model, tmp_path: Path) -> None:
    config = ModelConfig(num_classes=5, width=2, stem="imagenet", image_size=224)
    save_checkpoint(tmp_path / "large.pt", Checkpoint(make_model(config, 3), NAMES))
    data = _data(110, size=224)
    made = export_bundle(load_checkpoint(tmp_path / "large.pt"), tmp_path / "large.bundle", data=data, num_samples=4)
    assert 15_000_000 < made.manifest["files"]["reference.npz"]["size"] < 16_000_000  # random pixels do not compress
    assert verify_bundle(made, budget=0.05).passed  # some 100 images of this size fit into the file


@pytest.mark.usefixtures("quick")
def test_synthetic_images_are_announced(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export_bundle(checkpoint, tmp_path / "a.bundle", num_samples=5)
    assert "synthetic" in caplog.text


def test_graphs_that_decide_differently_leave_nothing_behind(
    checkpoint: Checkpoint, graphs: GraphSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = reference_network(checkpoint.model).head
    with torch.no_grad():
        head[-1].bias[1] += 5
    wrong = dataclasses.replace(graphs, graphs={**graphs.graphs, "head": head_graph(head).SerializeToString()})
    monkeypatch.setattr(exporter, "build_graphs", lambda model: wrong)
    with pytest.raises(CheckFailed, match="do not decide") as failed:
        export_bundle(checkpoint, tmp_path / "wrong.bundle", num_samples=20)
    assert failed.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_bundle_that_was_there(
    checkpoint: Checkpoint, graphs: GraphSet, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "build_graphs", lambda model: graphs)
    target = tmp_path / "kept.bundle"
    before = export_bundle(checkpoint, target, num_samples=20)
    with pytest.raises(OutputError):
        export_bundle(checkpoint, target, num_samples=20)
    head = reference_network(checkpoint.model).head
    with torch.no_grad():
        head[-1].weight *= -1
    wrong = dataclasses.replace(graphs, graphs={**graphs.graphs, "head": head_graph(head).SerializeToString()})
    monkeypatch.setattr(exporter, "build_graphs", lambda model: wrong)
    with pytest.raises(CheckFailed):
        export_bundle(checkpoint, target, overwrite=True, num_samples=20)
    assert load_bundle(target).digest == before.digest
    monkeypatch.setattr(exporter, "build_graphs", lambda model: graphs)
    assert export_bundle(checkpoint, target, overwrite=True, num_samples=6).num_samples == 6


def test_bad_arguments_are_refused_before_any_work(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "build_graphs", lambda model: pytest.fail("the export went on"))
    target = tmp_path / "x.bundle"
    with pytest.raises(CheckpointError, match="never saved"):
        export_bundle(dataclasses.replace(checkpoint, sha256=""), target)
    with pytest.raises(DataError, match="16, 16, 3"):
        export_bundle(checkpoint, target, data=_data(4, size=8))
    with pytest.raises(UsageError):
        export_bundle(checkpoint, target, num_samples=0)
    with pytest.raises(UsageError):
        export_bundle(checkpoint, target, noise_scale=float("nan"))
    for seed in (-1, 2**63):
        with pytest.raises(UsageError, match="seed"):
            export_bundle(checkpoint, target, seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_a_plain_classifier_is_refused(tmp_path: Path) -> None:
    network = build_network(ModelConfig(num_classes=3, width=4, network="classifier", image_size=16))
    save_checkpoint(tmp_path / "a.pt", Checkpoint(network, ("a", "b", "c"), training={"config": {"recipe": "pgd-at"}}))
    with pytest.raises(CheckpointError, match=r"plain classifier \(recipe pgd-at\)"):
        export_bundle(load_checkpoint(tmp_path / "a.pt"), tmp_path / "a.bundle")
    assert not (tmp_path / "a.bundle").exists()
