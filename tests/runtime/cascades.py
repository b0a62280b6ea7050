"""Small real cascades: the bundles of `bundles` with a linear gate, and what they have to decide, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from flss_runtime.bundle import Bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import open_engine
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.samplers import TwoGraphSampler

from .bundles import (
    NUM_SAMPLES,
    entry,
    golden_arrays,
    logits_of,
    manifest_fields,
    npz,
    random_images,
    reference_arrays,
    write_tiny,
)
from .conftest import TinyModel, save, tensor

MIN_VOTES = 18


@dataclass(frozen=True)
class Gate:
    """A linear gate and its weight (3 H W, K)."""

    weight: npt.NDArray[np.float32]
    path: Path

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(to_nchw(images).reshape(len(images), -1) @ self.weight, np.float32)

    def confidence(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        powers = np.exp(self.logits(images).astype(np.float64))
        return np.asarray(powers.max(axis=1) / powers.sum(axis=1))


def make_gate(path: Path, model: TinyModel, seed: int = 21, classes: int | None = None) -> Gate:
    """Write a gate whose confidence on random pixels runs from about 0.3 to nearly 1."""
    pixels, classes = 3 * model.spec.height * model.spec.width, classes or model.num_classes
    weight = np.random.default_rng(seed).normal(0, 2.5 / np.sqrt(pixels), (pixels, classes)).astype(np.float32)
    save(
        path,
        "gate",
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["logits"])],
        [tensor("images", ["B", 3, model.spec.height, model.spec.width])],
        [tensor("logits", ["B", classes])],
        {"weight": weight},
    )
    return Gate(weight, path)


def middle_confidence(model: TinyModel, gate: Gate) -> float:
    """Return a confidence that half of the first 40 random images reach, with nothing near it."""
    found = np.sort(gate.confidence(random_images(model, 40)))
    assert found[20] - found[19] > 1e-3
    return float(found[19:21].mean())


def mean_choices(model: TinyModel, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    mean, _ = model.encode(to_nchw(images))
    return np.asarray((mean @ model.head_weight + model.head_bias).argmax(axis=1))


def choices_of(model: TinyModel, images: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.int64]:
    drawn = np.stack([SeededNoise(seed).at(index, NUM_SAMPLES, model.latent_dim) for index in range(len(images))])
    return np.asarray(logits_of(model, images, drawn).argmax(axis=2))


def expected_decisions(
    model: TinyModel, gate: Gate, images: npt.NDArray[np.uint8], min_confidence: float, seed: int
) -> list[tuple[int | None, int, int, bool]]:
    """The cascade written out: (label, top label, its votes, gated) of each image."""
    expected = []
    rows = zip(choices_of(model, images, seed), gate.confidence(images), mean_choices(model, images), strict=True)
    for choices, confidence, mean_choice in rows:
        gated = bool(confidence >= min_confidence)
        counts = np.bincount(choices, minlength=model.num_classes)
        top = int(mean_choice) if gated else int(counts.argmax())
        votes = int(counts[top])
        expected.append((top if gated or votes >= MIN_VOTES else None, top, votes, gated))
    return expected


def cascade_manifest(model: TinyModel) -> dict[str, Any]:
    fields = manifest_fields(model)
    return {
        "graphs": {**fields["graphs"], "gate": "gate.onnx"},
        "precision": {**fields["precision"], "gate": "fp32"},
        "gate_checkpoint": {"sha256": "1" * 64, "origin": "flss-edge"},
    }


def write_cascade(target: Path, model: TinyModel, gate: Gate, **changed: Any) -> Bundle:
    """Write a cascade, not calibrated; `changed` as for `write_tiny`."""
    golden, reference = golden_arrays(model), reference_arrays(model)
    golden["gate_logits"] = gate.logits(golden["images"])
    reference["gate_confidence"] = gate.confidence(reference["images"])
    reference["mean_choices"] = mean_choices(model, reference["images"])
    files = {
        "gate.onnx": gate.path,
        "golden.npz": npz(golden),
        "reference.npz": npz(reference),
        **changed.pop("files", {}),
    }
    manifest = {**cascade_manifest(model), **changed.pop("manifest", {})}
    return write_tiny(target, model, manifest=manifest, files=files, **changed)


def cascade_entry(min_confidence: Any, **changed: Any) -> dict[str, Any]:
    return entry(min_votes=MIN_VOTES, gate={"min_confidence": min_confidence}, **changed)


def open_parts(model: TinyModel, gate: Gate | None, policy: SmoothingPolicy) -> SmoothedClassifier:
    encoder, head = open_engine(model.encoder, threads=1), open_engine(model.head, threads=1)
    opened = None if gate is None else open_engine(gate.path, threads=1)
    names = [f"class {number}" for number in range(model.num_classes)]
    sampler = TwoGraphSampler(encoder, head, model.num_classes)
    return SmoothedClassifier(sampler, SeededNoise(0), policy, model.spec, names, opened)
