"""Whether an engine still decides as the trainer's framework did: the gate of docs/bundle-format.md, section 9."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flss_runtime.arrays import Golden, Reference, read_golden, read_reference
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier, open_classifier
from flss_runtime.comparison import Comparison, GateOutputs, Outputs, compare, count_votes
from flss_runtime.decision import SmoothingPolicy, confidences
from flss_runtime.errors import InferenceError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise


@dataclass(frozen=True, slots=True)
class EquivalenceReport:
    """The verdict on one engine for one bundle.

    Attributes:
        engine: Engine that was examined.
        bundle: The bundle's digest.
        golden: Replay of golden.npz: stored noise, tensors and votes.
        reference: Replay of reference.npz: votes on many images; None where the bundle has none.
        notes: What a reader has to know to weigh the verdict.
    """

    engine: str
    bundle: str
    golden: Comparison
    reference: Comparison | None
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What exceeds a limit, in words."""
        return self.golden.failures + (self.reference.failures if self.reference else ())

    @property
    def passed(self) -> bool:
        """True iff nothing exceeds a limit."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the verdict and both comparisons as JSON values."""
        return {
            "passed": self.passed,
            "engine": self.engine,
            "bundle": self.bundle,
            "golden": self.golden.to_json(),
            "reference": self.reference.to_json() if self.reference else None,
            "failures": list(self.failures),
            "notes": list(self.notes),
        }


def verify_bundle(bundle: Bundle | str | Path, engine: str = "ort", *, threads: int | None = None) -> EquivalenceReport:
    """Replay the bundle's golden and reference data through an engine; needs no torch.

    Args:
        bundle: A loaded bundle, or its directory.
        engine: As for `open_engine`.
        threads: Of the encoder.

    Raises:
        BundleError: The bundle, or the data to replay, cannot be read.
        EngineUnavailable: The engine is absent.
        InferenceError: The engine failed while running.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    golden, reference = read_golden(bundle), read_reference(bundle)
    policy, noise = _replay_policy(bundle, reference), SeededNoise(0 if reference is None else reference.seed)
    with open_classifier(bundle, engine, policy=policy, noise=noise, threads=threads) as classifier:
        replayed = _replay_golden(bundle, golden, classifier, real=reference is not None and reference.real)
        votes = None if reference is None else _replay_reference(bundle, reference, classifier)
        used = classifier.encoder.name
    return EquivalenceReport(used, bundle.digest, replayed, votes, _notes(reference))


def _replay_policy(bundle: Bundle, reference: Reference | None) -> SmoothingPolicy:
    accept_all = 0.0 if bundle.has_gate else None
    if reference is None:
        return SmoothingPolicy(bundle.num_samples, bundle.noise_scale, 0, accept_all)
    return SmoothingPolicy(reference.num_samples, reference.noise_scale, 0, accept_all)


def _replay_golden(bundle: Bundle, golden: Golden, classifier: SmoothedClassifier, real: bool) -> Comparison:
    pixels = to_nchw(golden.images)
    latent = classifier.encoder.run({"images": pixels})
    scale = np.array([golden.noise_scale], np.float32)
    found = classifier.head.run(
        {"mean": latent["mean"], "std": latent["std"], "noise": golden.noise, "noise_scale": scale}
    )
    choices = found["choices"]
    if choices.shape != golden.choices.shape or choices.min() < 0 or choices.max() >= bundle.num_classes:
        problem = f"the head gave choices of shape {choices.shape} from {choices.min()} to {choices.max()}"
        expected_choices = f"{golden.choices.shape} in 0 to {bundle.num_classes - 1}"
        raise InferenceError(f"{problem}; expected {expected_choices}", "export the checkpoint again")
    expected = {"mean": golden.mean, "std": golden.std, "logits": golden.logits}
    tensors = {"mean": latent["mean"], "std": latent["std"], "logits": found["logits"]}
    if classifier.gate is not None and golden.gate_logits is not None:
        expected["gate_logits"] = golden.gate_logits
        tensors["gate_logits"] = classifier.gate.run({"images": pixels})["logits"]
    return compare(
        Outputs(count_votes(golden.choices, bundle.num_classes), expected),
        Outputs(count_votes(choices, bundle.num_classes), tensors),
        min_votes=_thresholds(bundle, golden.choices.shape[1], golden.noise_scale)[0],
        name="golden",
        real=real,
    )


def _replay_reference(bundle: Bundle, reference: Reference, classifier: SmoothedClassifier) -> Comparison:
    votes = count_votes(classifier.vote(reference.images), bundle.num_classes)
    expected, found = Outputs(reference.votes), Outputs(votes)
    if reference.gate is not None:
        gate = GateOutputs(
            confidences(classifier.gate_logits(reference.images)), classifier.mean_choices(reference.images)
        )
        expected = Outputs(reference.votes, {"gate_confidence": reference.gate.confidence}, reference.gate)
        found = Outputs(votes, {"gate_confidence": gate.confidence}, gate)
    min_votes, min_confidence = _thresholds(bundle, reference.num_samples, reference.noise_scale)
    return compare(expected, found, min_votes=min_votes, min_confidence=min_confidence, real=reference.real)


def _notes(reference: Reference | None) -> tuple[str, ...]:
    if reference is None:
        return ("no reference images in this bundle: only the golden images were replayed; export with --data",)
    if not reference.real:
        synthetic = "the reference images are synthetic: they say nothing about changed decisions on real images"
        return (f"{synthetic}; export with --data",)
    return ()


def _thresholds(bundle: Bundle, num_samples: int, noise_scale: float) -> tuple[int | None, float | None]:
    """Return min_votes and min_confidence, each None where none is calibrated."""
    if noise_scale != bundle.noise_scale or bundle.calibration(num_samples) is None:
        return None, None
    policy = bundle.policy(num_samples)
    return policy.min_votes, policy.min_confidence
