"""How far two implementations of a classifier are apart, and how far they may be (docs/bundle-format.md, section 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.decision import Decision, SmoothingPolicy, decide, decide_cascade
from flss_runtime.flips import BUDGET, FlipTest

CLEAR_LEAD = 2

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What two implementations of the same arithmetic may differ by; None where that is only reported.

    Attributes:
        tensor: Of a tensor's largest difference, times max(1, its largest value). NaN and infinity always fail.
        vote_change: Of the vote count of any class of any image.
        clear_flips: Of the images whose winner changed although it was more than 2 votes ahead.
    """

    tensor: float | None = 1e-4
    vote_change: int | None = 1
    clear_flips: int | None = 0


EXACT = Limits()
"""Of a float32 graph: nothing but rounding."""
REDUCED = Limits(None, None, None)
"""Of a graph in reduced precision: its decisions are judged by the flip budget alone."""


def limits_for(precision: str) -> Limits:
    """Return what a graph of that precision may differ by from the trainer's float32 network."""
    return EXACT if precision == "fp32" else REDUCED


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one implementation made of the same images under the same noise.

    Attributes:
        votes: (M, K) integers, the votes of each class; each row sums to N.
        tensors: Name -> array, such as "mean" (M, D), "std" (M, D), "logits" (M, N, K); may be empty.
        gate: What a cascade's gate decides by; None where there is no gate, or nothing is to be said about it.
    """

    votes: IntArray
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    gate: GateOutputs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GateOutputs:
    """What a cascade answers with where its gate is confident.

    Attributes:
        confidence: (M,) of the gate.
        mean_choices: (M,) class of each image's latent mean.
    """

    confidence: FloatArray
    mean_choices: IntArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a candidate is from the reference on one set of images.

    Attributes:
        name: What was replayed, such as "golden".
        images: M.
        real: Whether the images are real ones; synthetic images say nothing about flip rates on real ones.
        tensor_differences: Tensor -> largest absolute difference.
        tensor_limits: Tensor -> the most that is allowed: 1e-4 * max(1, largest absolute reference value); only for
            graphs that are compared by their numbers.
        largest_vote_change: Over all images and classes.
        class_flips: Images whose winner changed.
        clear_winner_flips: Of these, images whose winner was more than 2 votes ahead.
        rejection_flips: Images accepted by one and rejected by the other; None without a calibrated min_votes.
        class_flip_bound: One-sided 95 % Clopper-Pearson upper bound of the rate of class flips.
        rejection_flip_bound: The same of rejection flips.
        failures: What exceeds a limit, in words. A flip budget is no limit of this kind: `flip_tests` applies it.
        gate_flips: Images that the gate lets pass for one and not for the other, or with another class; None without a
            gate, or without a calibrated min_confidence.
        limits: What made a failure of a difference.
    """

    name: str
    images: int
    real: bool
    tensor_differences: dict[str, float]
    tensor_limits: dict[str, float]
    largest_vote_change: int
    class_flips: int
    clear_winner_flips: int
    rejection_flips: int | None
    class_flip_bound: float
    rejection_flip_bound: float | None
    failures: tuple[str, ...]
    gate_flips: int | None = None
    limits: Limits = EXACT

    @property
    def passed(self) -> bool:
        """True iff nothing exceeds a limit."""
        return not self.failures

    def flip_tests(self, budget: float = BUDGET) -> tuple[FlipTest, ...]:
        """Judge each kind of changed decision that could be counted here.

        Raises:
            UsageError: The budget is no rate between 0 and 1.
        """
        counts = {"class": self.class_flips, "rejection": self.rejection_flips, "gate": self.gate_flips}
        return tuple(FlipTest(kind, n, self.images, budget) for kind, n in counts.items() if n is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the verdict as JSON values; a difference that is not finite becomes null.

        `gate_flips` is left out where there is nothing to say about a gate.
        """
        finite = {key: value if np.isfinite(value) else None for key, value in self.tensor_differences.items()}
        values = asdict(self)
        del values["limits"]
        if self.gate_flips is None:
            del values["gate_flips"]
        return {**values, "tensor_differences": finite, "failures": list(self.failures), "passed": self.passed}


def compare(
    reference: Outputs,
    candidate: Outputs,
    *,
    min_votes: int | None = None,
    min_confidence: float | None = None,
    name: str = "reference",
    real: bool = True,
    limits: Limits = EXACT,
) -> Comparison:
    """Compare two implementations that saw the same images and the same noise.

    Args:
        reference: What counts as right, usually torch in float32.
        candidate: What is examined; it has to have every tensor of the reference.
        min_votes: Threshold for counting rejection flips.
        min_confidence: The same of the gate, where both have its outputs.
        name: What was replayed, for the messages.
        real: Whether the images are real.
        limits: What makes a failure of a difference; `limits_for` the candidate's precision.

    Raises:
        ValueError: The votes are no counts of the same N for the same images.
    """
    _check_votes(reference.votes, candidate.votes)
    differences, allowed = _tensor_differences(reference.tensors, candidate.tensors, limits)
    change = int(np.abs(reference.votes - candidate.votes).max())
    flipped = reference.votes.argmax(axis=1) != candidate.votes.argmax(axis=1)  # (M,)
    ordered = np.sort(reference.votes, axis=1)
    clear = int((flipped & (ordered[:, -1] - ordered[:, -2] > CLEAR_LEAD)).sum())
    rejections, gate = _decision_flips(reference, candidate, min_votes, min_confidence)
    images, flips = len(flipped), int(flipped.sum())
    failures = _tensor_failures(differences, allowed)
    if limits.vote_change is not None and change > limits.vote_change:
        failures.append(f"a vote count changed by {change}, allowed {limits.vote_change}")
    if limits.clear_flips is not None and clear > limits.clear_flips:
        failures.append(f"{clear} of {images} winners changed that were more than {CLEAR_LEAD} votes ahead")
    return Comparison(
        name=name,
        images=images,
        real=real,
        tensor_differences=differences,
        tensor_limits=allowed,
        largest_vote_change=change,
        class_flips=flips,
        clear_winner_flips=clear,
        rejection_flips=rejections,
        class_flip_bound=FlipTest("class", flips, images).bound,
        rejection_flip_bound=None if rejections is None else FlipTest("rejection", rejections, images).bound,
        failures=tuple(f"{name}: {failure}" for failure in failures),
        gate_flips=gate,
        limits=limits,
    )


def count_votes(choices: npt.NDArray[np.integer[Any]], num_classes: int) -> IntArray:
    """Return the votes of every class, (B, K) int64, from choices (B, N) in 0 to K - 1."""
    rows = np.arange(len(choices), dtype=np.int64)[:, None] * num_classes
    counts = np.bincount((rows + choices).ravel(), minlength=len(choices) * num_classes)
    return counts.reshape(len(choices), num_classes).astype(np.int64)


def relative(
    expected: npt.NDArray[np.floating[Any]], found: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return two covariances (B, K, K) in units of each image's mean variance, as expected.

    How large the variances are is up to the network, and differs by orders of magnitude from image to image. In these
    units the largest value is at least 1, so that a limit of 1e-4 times it is one part in 10,000 for every image.
    """
    unit = np.trace(expected, axis1=1, axis2=2)[:, None, None] / expected.shape[1]
    unit = np.maximum(unit, np.finfo(np.float32).tiny)
    return expected / unit, found / unit


def _tensor_differences(
    reference: Mapping[str, npt.NDArray[Any]], candidate: Mapping[str, npt.NDArray[Any]], limits: Limits
) -> tuple[dict[str, float], dict[str, float]]:
    differences: dict[str, float] = {}
    allowed: dict[str, float] = {}
    for key, expected in reference.items():
        found = candidate.get(key)
        if limits.tensor is not None:
            allowed[key] = limits.tensor * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if found is None or found.shape != expected.shape or not np.isfinite(found).all():
            differences[key] = float("inf")
        else:
            apart = np.abs(expected.astype(np.float64) - found)
            differences[key] = float(apart.max(initial=0.0))
    return differences, allowed


def _tensor_failures(differences: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
    failures = []
    for key, difference in differences.items():
        if key in allowed and not difference <= allowed[key]:
            failures.append(f"{key} differs by {difference:.3g}, allowed {allowed[key]:.3g}")
        elif not np.isfinite(difference):
            failures.append(f"{key} is missing, of another shape, or not finite")
    return failures


def _decision_flips(
    reference: Outputs, candidate: Outputs, min_votes: int | None, min_confidence: float | None
) -> tuple[int | None, int | None]:
    """Return how many images change between accepted and rejected, and how many the gate answers differently."""
    if min_votes is None:
        return None, None
    if reference.gate is None or candidate.gate is None:
        min_confidence = None
    pairs = list(zip(*(decisions(each, min_votes, min_confidence) for each in (reference, candidate)), strict=True))
    rejections = sum(before.accepted != after.accepted for before, after in pairs)
    if min_confidence is None:
        return rejections, None
    return rejections, sum(_passed(before) != _passed(after) for before, after in pairs)


def decisions(outputs: Outputs, min_votes: int, min_confidence: float | None = None) -> list[Decision]:
    """Decide for each of M images, as the classifier would under these thresholds.

    Args:
        outputs: Votes, and for a cascade what its gate decides by.
        min_votes: Accept from here on.
        min_confidence: Of the gate; None leaves the gate out.
    """
    choices = _as_choices(outputs.votes)
    gate = outputs.gate if min_confidence is not None else None
    policy = SmoothingPolicy(choices.shape[1], 0.0, min_votes, None if gate is None else min_confidence)
    if gate is None:
        return decide(choices, policy)
    return decide_cascade(choices, policy, gate.confidence, gate.mean_choices)


def _passed(decision: Decision) -> int | None:
    return decision.label if decision.gated else None


def _as_choices(votes: IntArray) -> IntArray:
    """Return choices (M, N) that count to `votes` (M, K), for the one decision rule."""
    images, classes = votes.shape
    return np.repeat(np.tile(np.arange(classes), images), votes.ravel()).reshape(images, -1)


def _check_votes(reference: IntArray, candidate: IntArray) -> None:
    if reference.ndim != 2 or reference.shape != candidate.shape or reference.shape[0] < 1 or reference.shape[1] < 2:
        raise ValueError(f"expected two (M, K) tables of votes; got {reference.shape} and {candidate.shape}")
    totals = np.concatenate([reference.sum(axis=1), candidate.sum(axis=1)])
    if min(reference.min(), candidate.min()) < 0 or (totals != totals[0]).any() or totals[0] < 1:
        raise ValueError("every row of votes has to sum to the same number of samples, with no negative count")
