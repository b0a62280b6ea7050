"""The cascade's bundle against torch: the same answer to every image, on both sides of the gate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote
from flss_edge.data import ImageSet
from flss_edge.model import Classifier, ModelConfig, build_network
from flss_export import exporter
from flss_export.graphs import GraphSet, gate_graph
from flss_export.parity import parity
from flss_export.protos import RANDOM_OPERATORS
from flss_runtime.arrays import read_golden, read_reference
from flss_runtime.bundle import Bundle, store_calibration
from flss_runtime.engines import open_engine
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import CheckFailed, CheckpointError, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

NAMES = ("ant", "bee", "cow", "dog", "eel")
CONFIG = ModelConfig(num_classes=5, width=4, image_size=16, network="classifier", blocks=(1, 1))
MIN_VOTES = 12


def saved_gate(path: Path, seed: int = 5, names: tuple[str, ...] = NAMES, config: ModelConfig = CONFIG) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: the fresh ones are the identity
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(network, Classifier):
            nn.init.normal_(network.fc.weight, std=20)  # so that the confidence depends on the image
    save_checkpoint(path, Checkpoint(network.eval(), names, training={"config": {"recipe": "ccat"}}))
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return saved_gate(tmp_path_factory.mktemp("gate") / "ccat.pt")


@pytest.fixture(scope="module")
def cascade(checkpoint: Checkpoint, gate: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("out") / "cascade.bundle"
    return exporter.export_bundle(checkpoint, target, gate=gate, num_samples=20, seed=3)


@pytest.fixture
def quick(graphs: GraphSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FLSS graphs are made already."""
    monkeypatch.setattr(exporter, "build_graphs", lambda model: graphs)


def random_images(count: int, seed: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def pixels_of(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)


@torch.no_grad()
def reference(
    voting: Checkpoint, gate: Checkpoint, images: npt.NDArray[np.uint8], min_confidence: float, seed: int
) -> list[tuple[int | None, bool]]:
    """Paper, section 5.4, image by image in torch: the label or None, and whether the gate was sure."""
    network, source, answers = voting.flss(), SeededNoise(seed), []
    for index, image in enumerate(pixels_of(images)):
        mean, logvar = network.encoder(image[None])
        if gate.model(image[None]).double().softmax(dim=1).max() >= min_confidence:
            answers.append((int(network.head(mean).argmax()), True))
            continue
        noise = torch.tensor(np.array(source.at(index, 20, 16)))
        votes = network.head(mean + 2 * torch.exp(logvar / 2) * noise).argmax(dim=1).bincount(minlength=5)
        answers.append((int(votes.argmax()) if votes.max() >= MIN_VOTES else None, False))
    return answers


def middle_confidence(gate: Checkpoint, images: npt.NDArray[np.uint8]) -> float:
    """A confidence that about half of the images reach: in the middle of the widest gap of the middle third."""
    with torch.no_grad():
        found = gate.model(pixels_of(images)).double().softmax(dim=1).amax(dim=1).sort().values.numpy()
    middle = found[len(found) // 3 : 2 * len(found) // 3]
    widest = np.diff(middle).argmax()
    assert np.diff(middle)[widest] > 1e-4
    return float(middle[widest : widest + 2].mean())


def calibrated(bundle: Bundle, min_confidence: float) -> Bundle:
    entry = {"num_samples": 20, "noise_scale": 2.0, "mode": "latent", "min_votes": MIN_VOTES}
    return store_calibration(bundle, {**entry, "gate": {"min_confidence": min_confidence}})


def test_it_decides_as_torch_does_on_both_sides_of_the_gate(
    checkpoint: Checkpoint, gate: Checkpoint, cascade: Bundle
) -> None:
    images = random_images(60)
    min_confidence = middle_confidence(gate, images)
    with open_classifier(calibrated(cascade, min_confidence), noise=SeededNoise(4), threads=1) as classifier:
        found = [(each.label, each.gated) for each in classifier.classify(images)]
    expected = reference(checkpoint, gate, images, min_confidence, 4)
    assert found == expected
    assert 20 <= sum(gated for _, gated in expected) <= 40
    assert {label is None for label, gated in expected if not gated} == {True, False}


def test_it_decides_as_the_cascade_that_is_evaluated(checkpoint: Checkpoint, gate: Checkpoint, cascade: Bundle) -> None:
    images = random_images(60, seed=9)
    min_confidence = middle_confidence(gate, images)
    evaluated = Cascade(
        Confidence(gate.model, threshold=min_confidence),
        Vote(checkpoint.flss(), num_samples=20, noise_scale=2.0, threshold=MIN_VOTES, seed=4),
    ).answer(pixels_of(images), 17)
    noise = SeededNoise(4)
    noise.take(17, 20, 16)  # the counters before
    with open_classifier(calibrated(cascade, min_confidence), noise=noise, threads=1) as classifier:
        decisions = classifier.classify(images)
    assert [each.top_label for each in decisions] == evaluated.labels.tolist()
    assert [each.accepted for each in decisions] == evaluated.accepted.tolist()
    assert 0 < evaluated.accepted.sum() < 60


def test_what_the_bundle_holds(cascade: Bundle, checkpoint: Checkpoint, gate: Checkpoint) -> None:
    manifest = cascade.manifest
    assert manifest["format_version"] == 2 and cascade.has_gate
    assert manifest["graphs"]["gate"] == "gate.onnx" and manifest["precision"]["gate"] == "fp32"
    assert manifest["checkpoint"]["sha256"] == checkpoint.sha256
    assert manifest["gate_checkpoint"] == {"sha256": gate.sha256, "origin": "flss-edge", "training": gate.training}
    assert manifest["parity"]["tensor_differences"].keys() == {"mean", "std", "logits", "deterministic", "gate_logits"}

    golden, replayed = read_golden(cascade), read_reference(cascade)
    assert replayed is not None and replayed.gate is not None
    with torch.no_grad():
        logits = gate.model(pixels_of(golden.images)).numpy()
        probabilities = gate.model(pixels_of(replayed.images)).double().softmax(dim=1).amax(dim=1).numpy()
        means = checkpoint.model(pixels_of(replayed.images)).argmax(dim=1).numpy()
    np.testing.assert_allclose(golden.gate_logits, logits, atol=1e-5)
    np.testing.assert_allclose(replayed.gate.confidence, probabilities, atol=1e-6)
    np.testing.assert_array_equal(replayed.gate.mean_choices, means)


def test_it_verifies(cascade: Bundle, gate: Checkpoint) -> None:
    replayed = read_reference(cascade)
    assert replayed is not None
    made = calibrated(cascade, middle_confidence(gate, replayed.images))
    report = verify_bundle(made, threads=1, budget=0.05)  # as few images as there are show no less
    assert report.passed and report.reference is not None
    assert (report.reference.gate_flips, report.reference.rejection_flips) == (0, 0)
    assert report.reference.tensor_differences["gate_confidence"] < 1e-5


def test_the_gates_graph(gate: Checkpoint, cascade: Bundle) -> None:
    proto = onnx.load(cascade.graph("gate"))
    assert [value.name for value in proto.graph.input] == ["images"]
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert not {node.op_type for node in proto.graph.node} & (RANDOM_OPERATORS | {"BatchNormalization"})
    assert gate_graph(gate.model) == cascade.graph("gate").read_bytes()
    with open_engine(cascade.graph("gate"), threads=1) as engine, torch.no_grad():
        for count in (1, 2, 7):
            images = random_images(count)
            found = engine.run({"images": to_nchw(images)})["logits"]
            np.testing.assert_allclose(found, gate.model(pixels_of(images)).numpy(), atol=1e-4)


def test_a_bundle_without_gate_is_what_it_was(bundle: Bundle) -> None:
    raw = (bundle.path / "manifest.json").read_text()
    assert "gate" not in raw
    assert list(json.loads(raw)) == [
        *("format_version", "created", "name", "input", "class_names", "num_classes", "latent_dim", "graphs"),
        *("precision", "opset", "checkpoint", "data", "tools", "parity", "files"),
    ]
    assert bundle.manifest["format_version"] == 1
    assert set(bundle.manifest["files"]) == {
        *("encoder.onnx", "head.onnx", "deterministic.onnx", "golden.npz", "reference.npz")
    }
    assert set(np.load(bundle.path / "reference.npz")) == {
        *("images", "seed", "num_samples", "noise_scale", "votes", "real")
    }
    assert set(np.load(bundle.path / "golden.npz")) == {
        *("images", "noise", "noise_scale", "mean", "std", "logits", "choices")
    }


class TestRefused:
    def refuse(self, checkpoint: Checkpoint, gate: Checkpoint, folder: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            exporter.export_bundle(checkpoint, folder / "refused.bundle", gate=gate)
        assert not (folder / "refused.bundle").exists()

    def test_other_classes(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        for index, names in enumerate([("ant", "bee", "cow", "dog", "fly"), ("bee", "ant", "cow", "dog", "eel")]):
            gate = saved_gate(tmp_path / f"{index}.pt", names=names)
            self.refuse(checkpoint, gate, tmp_path, "the gate knows 5 classes")
        more = saved_gate(tmp_path / "more.pt", 5, (*NAMES, "fly"), dataclasses.replace(CONFIG, num_classes=6))
        self.refuse(checkpoint, more, tmp_path, r"the gate knows 6 classes \(ant, bee, cow, dog, eel, …\)")

    def test_another_image_size(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        gate = saved_gate(tmp_path / "large.pt", config=dataclasses.replace(CONFIG, image_size=32))
        self.refuse(checkpoint, gate, tmp_path, "the gate takes images of 32 pixels a side, the network that votes 16")

    def test_networks_that_draw(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        self.refuse(checkpoint, checkpoint, tmp_path, "the gate's checkpoint holds an FLSS network")
        noisy = saved_gate(tmp_path / "pni.pt", config=dataclasses.replace(CONFIG, weight_noise=True))
        self.refuse(checkpoint, noisy, tmp_path, "the gate's checkpoint draws noise")

    def test_a_voting_checkpoint_that_is_a_plain_classifier(self, gate: Checkpoint, tmp_path: Path) -> None:
        self.refuse(gate, gate, tmp_path, "no samples to vote")

    def test_one_that_was_never_saved(self, checkpoint: Checkpoint, gate: Checkpoint, tmp_path: Path) -> None:
        self.refuse(checkpoint, dataclasses.replace(gate, sha256=""), tmp_path, "was never saved")

    @pytest.mark.usefixtures("quick")
    def test_a_graph_of_another_gate(
        self, checkpoint: Checkpoint, gate: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = gate_graph(saved_gate(tmp_path / "other.pt", seed=6).model)
        monkeypatch.setattr(exporter, "gate_graph", lambda model: other)
        with pytest.raises(CheckFailed, match="gate_logits differs by"):
            exporter.export_bundle(checkpoint, tmp_path / "a.bundle", gate=gate)
        assert not (tmp_path / "a.bundle").exists()


class TestParity:
    def test_passes_on_other_images(self, checkpoint: Checkpoint, gate: Checkpoint, cascade: Bundle) -> None:
        images = random_images(40, seed=10)
        report = parity(checkpoint, calibrated(cascade, middle_confidence(gate, images)), images, gate=gate)
        assert report.passed and report.tensor_differences["gate_logits"] < 1e-4
        assert (report.gate_flips, report.rejection_flips, report.class_flips) == (0, 0, 0)

    def test_another_gate_is_found(self, checkpoint: Checkpoint, cascade: Bundle, tmp_path: Path) -> None:
        report = parity(checkpoint, cascade, random_images(40), gate=saved_gate(tmp_path / "other.pt", seed=6))
        assert [failure.split(" differs")[0] for failure in report.failures] == ["torch: gate_logits"]

    def test_both_or_neither(self, checkpoint: Checkpoint, gate: Checkpoint, cascade: Bundle, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match="the graphs have a gate"):
            parity(checkpoint, cascade, random_images(3))
        with pytest.raises(UsageError, match="the graphs have no gate"):
            parity(checkpoint, bundle, random_images(3), gate=gate)


@pytest.mark.usefixtures("quick")
def test_real_images_and_the_same_files_again(checkpoint: Checkpoint, gate: Checkpoint, tmp_path: Path) -> None:
    images = random_images(70)
    data = ImageSet(images, np.arange(70) % 5, NAMES, "random pixels")
    made = [
        exporter.export_bundle(
            checkpoint, tmp_path / f"{name}.bundle", gate=gate, data=data, num_samples=5, noise_scale=20
        )
        for name in ("one", "two")
    ]
    assert made[0].manifest["files"] == made[1].manifest["files"]
    replayed: Any = read_reference(made[0])
    assert replayed.real and len(replayed.gate.confidence) == 70 == len(replayed.gate.mean_choices)
    with torch.no_grad():
        means = checkpoint.model(pixels_of(images)).argmax(dim=1).numpy()
    np.testing.assert_array_equal(replayed.gate.mean_choices, means)
    assert (replayed.votes.argmax(axis=1) != means).any()  # under so much noise the vote is another matter


def test_its_vote_may_be_one_graph(
    linear_checkpoint: Checkpoint, linear_graphs: GraphSet, gate: Checkpoint, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporter, "build_graphs", lambda model: linear_graphs)
    options: dict[str, Any] = {"gate": gate, "num_samples": 20, "seed": 3, "sampling": "logit", "fused": True}
    made = exporter.export_bundle(linear_checkpoint, tmp_path / "cascade.bundle", **options)
    images = random_images(40)
    confidence = middle_confidence(gate, images)
    made = calibrated(made, confidence)
    assert made.manifest["parity"]["fused"]["tensor_differences"].keys() == {"logits", "deterministic", "gate_logits"}
    report = verify_bundle(made, budget=0.05)
    assert report.passed and report.fused is not None and report.fused.gate_flips == 0
    assert {test.kind for test in report.flips} >= {"gate", "fused gate", "fused rejection"}
    answers = reference(linear_checkpoint, gate, images, confidence, seed=0)
    for fused in (True, False):
        with open_classifier(made, noise=SeededNoise(0), fused=fused) as classifier:
            found = [(each.label, each.gated) for each in classifier.classify(images)]
        assert found == answers
