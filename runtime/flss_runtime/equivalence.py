"""Whether an engine still decides as the trainer's framework did: the gate of docs/bundle-format.md, section 9."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.arrays import Golden, Reference, read_golden, read_reference
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier, check_pair
from flss_runtime.decision import SmoothingPolicy, decide
from flss_runtime.engines import Engine, open_engine
from flss_runtime.errors import InferenceError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.statistics import clopper_pearson_upper

TENSOR_TOLERANCE = 1e-4
MAX_VOTE_CHANGE = 1
CLEAR_LEAD = 2
CONFIDENCE = 0.95

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one implementation made of the same images under the same noise.

    Attributes:
        votes: (M, K) integers, the votes of each class; each row sums to N.
        tensors: Name -> array, such as "mean" (M, D), "std" (M, D), "logits" (M, N, K); may be empty.
    """

    votes: IntArray
    tensors: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a candidate is from the reference on one set of images.

    Attributes:
        name: What was replayed, such as "golden".
        images: M.
        real: Whether the images are real ones; synthetic images say nothing about flip rates on real ones.
        tensor_differences: Tensor -> largest absolute difference.
        tensor_limits: Tensor -> the most that is allowed: 1e-4 * max(1, largest absolute reference value).
        largest_vote_change: Over all images and classes.
        class_flips: Images whose winner changed.
        clear_winner_flips: Of these, images whose winner was more than 2 votes ahead.
        rejection_flips: Images accepted by one and rejected by the other; None without a calibrated min_votes.
        class_flip_bound: One-sided 95 % Clopper-Pearson upper bound of the rate of class flips.
        rejection_flip_bound: The same of rejection flips.
        failures: What exceeds a limit, in words.
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

    @property
    def passed(self) -> bool:
        """True iff nothing exceeds a limit."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the verdict as JSON values; a difference that is not finite becomes null."""
        finite = {key: value if np.isfinite(value) else None for key, value in self.tensor_differences.items()}
        return {**asdict(self), "tensor_differences": finite, "failures": list(self.failures), "passed": self.passed}


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


def compare(
    reference: Outputs,
    candidate: Outputs,
    *,
    min_votes: int | None = None,
    name: str = "reference",
    real: bool = True,
) -> Comparison:
    """Compare two implementations that saw the same images and the same noise.

    Args:
        reference: What counts as right, usually torch in float32.
        candidate: What is examined; it has to have every tensor of the reference.
        min_votes: Threshold for counting rejection flips.
        name: What was replayed, for the messages.
        real: Whether the images are real.

    Raises:
        ValueError: The votes are no counts of the same N for the same images.
    """
    _check_votes(reference.votes, candidate.votes)
    differences, limits = _tensor_differences(reference.tensors, candidate.tensors)
    change = int(np.abs(reference.votes - candidate.votes).max())
    flipped = reference.votes.argmax(axis=1) != candidate.votes.argmax(axis=1)  # (M,)
    ordered = np.sort(reference.votes, axis=1)
    clear = int((flipped & (ordered[:, -1] - ordered[:, -2] > CLEAR_LEAD)).sum())
    rejections = None if min_votes is None else _rejection_flips(reference.votes, candidate.votes, min_votes)
    images, flips = len(flipped), int(flipped.sum())
    failures = [
        f"{name}: {key} differs by {differences[key]:.3g}, allowed {limits[key]:.3g}"
        for key in differences
        if not differences[key] <= limits[key]
    ]
    if change > MAX_VOTE_CHANGE:
        failures.append(f"{name}: a vote count changed by {change}, allowed {MAX_VOTE_CHANGE}")
    if clear:
        failures.append(f"{name}: {clear} of {images} winners changed that were more than {CLEAR_LEAD} votes ahead")
    return Comparison(
        name=name,
        images=images,
        real=real,
        tensor_differences=differences,
        tensor_limits=limits,
        largest_vote_change=change,
        class_flips=flips,
        clear_winner_flips=clear,
        rejection_flips=rejections,
        class_flip_bound=clopper_pearson_upper(flips, images, CONFIDENCE),
        rejection_flip_bound=None if rejections is None else clopper_pearson_upper(rejections, images, CONFIDENCE),
        failures=tuple(failures),
    )


def count_votes(choices: npt.NDArray[np.integer[Any]], num_classes: int) -> IntArray:
    """Return the votes of every class, (B, K) int64, from choices (B, N) in 0 to K - 1."""
    rows = np.arange(len(choices), dtype=np.int64)[:, None] * num_classes
    counts = np.bincount((rows + choices).ravel(), minlength=len(choices) * num_classes)
    return counts.reshape(len(choices), num_classes).astype(np.int64)


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
    with (
        open_engine(bundle.graph("encoder"), engine, threads=threads) as encoder,
        open_engine(bundle.graph("head"), engine, threads=1) as head,
    ):
        check_pair(encoder, head, bundle.num_classes)
        replayed = _replay_golden(bundle, golden, encoder, head, real=reference is not None and reference.real)
        votes = None if reference is None else _replay_reference(bundle, reference, encoder, head)
        used = encoder.name
    return EquivalenceReport(used, bundle.digest, replayed, votes, _notes(reference))


def _replay_golden(bundle: Bundle, golden: Golden, encoder: Engine, head: Engine, real: bool) -> Comparison:
    latent = encoder.run({"images": to_nchw(golden.images)})
    scale = np.array([golden.noise_scale], np.float32)
    found = head.run({"mean": latent["mean"], "std": latent["std"], "noise": golden.noise, "noise_scale": scale})
    choices = found["choices"]
    if choices.shape != golden.choices.shape or choices.min() < 0 or choices.max() >= bundle.num_classes:
        problem = f"the head gave choices of shape {choices.shape} from {choices.min()} to {choices.max()}"
        expected_choices = f"{golden.choices.shape} in 0 to {bundle.num_classes - 1}"
        raise InferenceError(f"{problem}; expected {expected_choices}", "export the checkpoint again")
    expected = {"mean": golden.mean, "std": golden.std, "logits": golden.logits}
    tensors = {"mean": latent["mean"], "std": latent["std"], "logits": found["logits"]}
    return compare(
        Outputs(count_votes(golden.choices, bundle.num_classes), expected),
        Outputs(count_votes(choices, bundle.num_classes), tensors),
        min_votes=_min_votes(bundle, golden.choices.shape[1], golden.noise_scale),
        name="golden",
        real=real,
    )


def _replay_reference(bundle: Bundle, reference: Reference, encoder: Engine, head: Engine) -> Comparison:
    policy = SmoothingPolicy(reference.num_samples, reference.noise_scale, 0)
    noise = SeededNoise(reference.seed)
    classifier = SmoothedClassifier(encoder, head, noise, policy, bundle.input, bundle.class_names)
    choices = classifier.vote(reference.images)
    return compare(
        Outputs(reference.votes),
        Outputs(count_votes(choices, bundle.num_classes)),
        min_votes=_min_votes(bundle, reference.num_samples, reference.noise_scale),
        real=reference.real,
    )


def _notes(reference: Reference | None) -> tuple[str, ...]:
    if reference is None:
        return ("no reference images in this bundle: only the golden images were replayed; export with --data",)
    if not reference.real:
        synthetic = "the reference images are synthetic: they say nothing about changed decisions on real images"
        return (f"{synthetic}; export with --data",)
    return ()


def _min_votes(bundle: Bundle, num_samples: int, noise_scale: float) -> int | None:
    entry = bundle.calibration(num_samples) if noise_scale == bundle.noise_scale else None
    return None if entry is None else int(entry["min_votes"])


def _tensor_differences(
    reference: Mapping[str, npt.NDArray[Any]], candidate: Mapping[str, npt.NDArray[Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    differences: dict[str, float] = {}
    limits: dict[str, float] = {}
    for key, expected in reference.items():
        found = candidate.get(key)
        limits[key] = TENSOR_TOLERANCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if found is None or found.shape != expected.shape or not np.isfinite(found).all():
            differences[key] = float("inf")
        else:
            apart = np.abs(expected.astype(np.float64) - found)
            differences[key] = float(apart.max(initial=0.0))
    return differences, limits


def _rejection_flips(reference: IntArray, candidate: IntArray, min_votes: int) -> int:
    policy = SmoothingPolicy(int(reference[0].sum()), 0.0, min_votes)
    pairs = zip(decide(_as_choices(reference), policy), decide(_as_choices(candidate), policy), strict=True)
    return sum(before.accepted != after.accepted for before, after in pairs)


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
