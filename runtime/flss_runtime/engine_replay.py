"""What one engine makes of golden images, reference images, images of one's own and attacked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.arrays import Golden, Reference, read_golden, read_reference
from flss_runtime.attacked import AttackedImages, AttackedOutputs
from flss_runtime.bundle import Bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.comparison import REDUCED, Comparison, GateOutputs, Limits, Outputs, compare, count_votes
from flss_runtime.decision import IntArray, SmoothingPolicy, confidences
from flss_runtime.errors import InferenceError
from flss_runtime.images import FloatArray, to_nchw
from flss_runtime.logit_gaussian import logit_min_votes
from flss_runtime.noise import KeyedNoise

Progress = Callable[[str, float], None]
"""Called with a phase and the share of it that is done."""

DATA_SEED = 0
_FRESH = 300
_SLICE = 256  # images between two calls of the progress


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """What came of one engine.

    Attributes:
        golden: Against the stored tensors and votes.
        reference: Against the stored votes; None where the bundle has none.
        data: Outputs for the images of one's own; None where there are none.
        attacked: The same for each attack; empty where there are none.
        on_reference: Outputs for the reference images; None where the bundle has none.
    """

    golden: Comparison
    reference: Comparison | None
    data: Outputs | None
    attacked: tuple[AttackedOutputs, ...]
    on_reference: Outputs | None


class Replay:
    """Everything that is to be replayed, the same way through every engine.

    Args:
        bundle: Whose engines are examined.
        images: (M, H, W, 3) uint8 of one's own, M >= 1; None for none.
        attacked: Attacked images; None for none.
        progress: Told how far it is.

    Raises:
        BundleError: The data to replay cannot be read.
    """

    def __init__(
        self,
        bundle: Bundle,
        images: npt.NDArray[np.uint8] | None = None,
        attacked: AttackedImages | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self.golden, self.reference = read_golden(bundle), read_reference(bundle)
        self.images = images
        self.attacked = attacked
        self.progress: Progress = progress or (lambda phase, share: None)

    @property
    def policy(self) -> SmoothingPolicy:
        """Policy of the reference votes, or the bundle's; it accepts everything."""
        source: Reference | Bundle = self.reference or self.bundle
        return SmoothingPolicy(source.num_samples, source.noise_scale, 0, 0.0 if self.bundle.has_gate else None)

    @property
    def thresholds(self) -> tuple[int | None, float | None]:
        """Calibrated min_votes and min_confidence for that policy, each None where there is none."""
        return _thresholds(self.bundle, self.policy.num_samples, self.policy.noise_scale)

    @property
    def logit_min_votes(self) -> int | None:
        """The same min_votes of deterministic sampling, else of logit sampling."""
        return logit_min_votes(self.bundle, self.policy.num_samples, self.policy.noise_scale)

    @property
    def judged_images(self) -> npt.NDArray[np.uint8] | None:
        """Images of one's own, else the reference images; None without either."""
        if self.images is not None:
            return self.images
        return None if self.reference is None else self.reference.images

    def through(self, classifier: SmoothedClassifier, limits: Limits) -> Replayed:
        """Replay everything through one engine.

        Args:
            classifier: Opened with this replay's policy; its noise is replaced.
            limits: For the comparison with the stored tensors and votes.

        Raises:
            DataError: An image does not fit the bundle.
            InferenceError: The engine failed, or gave what is no answer.
        """
        golden = self.on_golden(classifier, limits)
        reference, on_reference = self.on_reference(classifier, limits)
        return Replayed(golden, reference, self.on_data(classifier), self._attacked(classifier), on_reference)

    def on_golden(self, classifier: SmoothedClassifier, limits: Limits) -> Comparison:
        """Replay the golden images: against the stored tensors and votes."""
        return _replay_golden(self.bundle, self.golden, classifier, limits, self.real)

    def on_reference(
        self, classifier: SmoothedClassifier, limits: Limits, name: str = "reference"
    ) -> tuple[Comparison | None, Outputs | None]:
        """Replay the reference images: against the stored votes, and what came of them; None where there are none."""
        if self.reference is None:
            return None, None
        found = self._outputs(classifier, self.reference.images, self.reference.seed, f"{name} images")
        return self._compare(self.reference, found, limits, name), found

    def on_data(self, classifier: SmoothedClassifier) -> Outputs | None:
        """Replay the images of one's own; None where there are none."""
        return None if self.images is None else self._outputs(classifier, self.images, DATA_SEED, "images")

    def fresh_noise(self, classifier: SmoothedClassifier, found: Replayed) -> Comparison | None:
        """Compare an engine with itself under other noise, on up to 300 of the images that are judged.

        Every image gets new noise in operation, so this is how often a decision changes from one look to the next, with
        nothing else changed. A reader weighs the flips of an engine by it.

        Args:
            classifier: As for `through`.
            found: What came of it there.
        """
        if self.images is not None:
            images, before, seed = self.images, found.data, DATA_SEED
        elif self.reference is not None:
            images, before, seed = self.reference.images, found.on_reference, self.reference.seed
        else:
            return None
        if before is None:
            return None
        count = min(_FRESH, len(images))
        index = np.arange(count) * len(images) // count  # evenly spaced, because folders are sorted by class
        after = self._outputs(classifier, images[index], seed + 1, "other noise")
        gate = before.gate and GateOutputs(before.gate.confidence[index], before.gate.mean_choices[index])
        min_votes, min_confidence = self.thresholds
        return compare(
            Outputs(before.votes[index], {}, gate),
            after,
            min_votes=min_votes,
            min_confidence=min_confidence,
            name="other noise",
            real=self.images is not None or self.real,
            limits=REDUCED,
        )

    @property
    def real(self) -> bool:
        """Whether the bundle's images are real ones."""
        return self.reference is not None and self.reference.real

    def _compare(self, reference: Reference, found: Outputs, limits: Limits, name: str) -> Comparison:
        expected = Outputs(reference.votes)
        if reference.gate is not None and found.gate is not None:
            expected = Outputs(reference.votes, {"gate_confidence": reference.gate.confidence}, reference.gate)
            found = Outputs(found.votes, {"gate_confidence": found.gate.confidence}, found.gate)
        min_votes, min_confidence = self.thresholds
        options: dict[str, Any] = {"name": name, "real": reference.real, "limits": limits}
        return compare(expected, found, min_votes=min_votes, min_confidence=min_confidence, **options)

    def _attacked(self, classifier: SmoothedClassifier) -> tuple[AttackedOutputs, ...]:
        if self.attacked is None:
            return ()
        found: list[AttackedOutputs] = []
        for attack in self.attacked.attacks:
            start = len(found) * len(self.attacked.labels)
            outputs = self._outputs(classifier, attack.images, self.attacked.seed, f"attack {attack.name}", start)
            found.append(AttackedOutputs(attack.name, attack.adversarial, outputs))
        return tuple(found)

    def _outputs(
        self,
        classifier: SmoothedClassifier,
        images: npt.NDArray[np.uint8] | FloatArray,
        seed: int,
        phase: str,
        start: int = 0,
    ) -> Outputs:
        """Return the votes under `SeededNoise(seed)` from counter `start` on, and what the gate decides by."""
        classifier.noise = KeyedNoise(seed, start)
        votes, confidence, means = [], [], []
        for first in range(0, len(images), _SLICE):
            part = images[first : first + _SLICE]
            self.progress(f"{classifier.name}: {phase}", first / len(images))
            votes.append(count_votes(classifier.vote(part), self.bundle.num_classes))
            if classifier.gate is not None:
                confidence.append(confidences(classifier.gate_logits(part)))
                means.append(classifier.mean_choices(part))
        gate = GateOutputs(np.concatenate(confidence), np.concatenate(means)) if confidence else None
        return Outputs(np.concatenate(votes), {}, gate)


def _replay_golden(
    bundle: Bundle, golden: Golden, classifier: SmoothedClassifier, limits: Limits, real: bool
) -> Comparison:
    pixels = to_nchw(golden.images)
    engines = classifier.sampler.engines
    latent = engines["encoder"].run({"images": pixels})
    scale = np.array([golden.noise_scale], np.float32)
    found = engines["head"].run(
        {"mean": latent["mean"], "std": latent["std"], "noise": golden.noise, "noise_scale": scale}
    )
    votes = golden_votes("head", found["choices"], golden, bundle.num_classes)
    expected = {"mean": golden.mean, "std": golden.std, "logits": golden.logits}
    tensors = {"mean": latent["mean"], "std": latent["std"], "logits": found["logits"]}
    if classifier.gate is not None and golden.gate_logits is not None:
        expected["gate_logits"] = golden.gate_logits
        tensors["gate_logits"] = classifier.gate.run({"images": pixels})["logits"]
    return compare(
        Outputs(count_votes(golden.choices, bundle.num_classes), expected),
        Outputs(votes, tensors),
        min_votes=_thresholds(bundle, golden.choices.shape[1], golden.noise_scale)[0],
        name="golden",
        real=real,
        limits=limits,
    )


def golden_votes(role: str, choices: npt.NDArray[np.int64], golden: Golden, num_classes: int) -> IntArray:
    """Count the votes (G, K) that a graph gave for the golden images.

    Raises:
        InferenceError: They are no choices among the classes.
    """
    if choices.shape != golden.choices.shape or choices.min() < 0 or choices.max() >= num_classes:
        problem = f"the {role} gave choices of shape {choices.shape} from {choices.min()} to {choices.max()}"
        expected = f"{golden.choices.shape} in 0 to {num_classes - 1}"
        raise InferenceError(f"{problem}; expected {expected}", "export the checkpoint again")
    return count_votes(choices, num_classes)


def _thresholds(bundle: Bundle, num_samples: int, noise_scale: float) -> tuple[int | None, float | None]:
    if noise_scale != bundle.noise_scale or bundle.calibration(num_samples) is None:
        return None, None
    policy = bundle.policy(num_samples)
    return policy.min_votes, policy.min_confidence
