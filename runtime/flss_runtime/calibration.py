"""The rejection threshold, as strict as a budget of false rejections allows (docs/bundle-format.md, section 5)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.bundle import utc_now
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import confidences, decide, decide_cascade, tally
from flss_runtime.drift.reference import record_votes
from flss_runtime.errors import DataError, UsageError
from flss_runtime.manifest import GATE
from flss_runtime.statistics import clopper_pearson

FEW_IMAGES = 500
TRUE_POSITIVE_RATE = 0.99  # of the gate, as CCAT is evaluated

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a calibration comes from.

    Attributes:
        data: What the images are, in words.
        data_sha256: Digest of images and labels.
        engine: Engine that voted, with its version.
        seed: Of the classifier's noise, None where it came from the operating system or there was none.
    """

    data: str
    data_sha256: str
    engine: str
    seed: int | None = None


def min_votes_for_budget(votes: IntArray, correct: BoolArray, num_samples: int, budget: float) -> int:
    """Find the strictest threshold that rejects at most `budget` of ALL images although they are classified correctly.

    With C(t) = count of images that are correct and have at most t votes: t* = max {t < N : C(t) <= floor(budget * n)}.
    The answer is t* + 1, because an image is accepted iff it has at least that many votes.

    Args:
        votes: (n,) votes of each image's winner, 0 to N.
        correct: (n,) whether that winner is the image's label.
        num_samples: N, >= 1.
        budget: Share of the n images, in (0, 1).

    Returns:
        min_votes, 1 to N.

    Raises:
        UsageError: `budget` is not in (0, 1).
        DataError: No images, or so few that the budget amounts to less than one.

    Source: docs/method.md, section 3; the paper's budget is 0.10. Its released scripts reject one level more.
    """
    allowed = allowed_rejects(len(votes), budget)
    per_level = np.bincount(votes[correct], minlength=num_samples + 1)  # (N + 1,)
    rejects = np.cumsum(per_level)[:num_samples]  # C(0) to C(N - 1): t = N would ask for more votes than there are
    return int(np.flatnonzero(rejects <= allowed)[-1]) + 1


def min_confidence_for_rate(confidence: FloatArray, correct: BoolArray, rate: float = TRUE_POSITIVE_RATE) -> float:
    """Find the highest confidence that still keeps a share of the correctly classified images.

    With c correct images it is the (floor((1 - rate) * c) + 1)-th lowest of their confidences, which is kept itself.

    Args:
        confidence: (n,) of each image.
        correct: (n,) whether its most probable class is its label.
        rate: Share of the correct images to keep, in (0, 1].

    Returns:
        min_confidence: an image is kept iff its confidence is at least that.

    Raises:
        UsageError: `rate` is not in (0, 1].
        DataError: No image is classified correctly.

    Source: CCAT (Stutz et al., ICML 2020) at 99 % true positives, on held-out clean images.
    """
    if not 0 < rate <= 1:
        raise UsageError(
            f"rate must lie in (0, 1]; got {rate}", "pass the share of correct images to keep, such as 0.99"
        )
    kept = np.sort(confidence[correct])
    if len(kept) == 0:
        raise DataError(
            f"the gate classifies none of {len(correct)} images correctly, so no confidence can be asked of it",
            "check that the labels are numbered as the gate's classes are, or export with another gate",
        )
    return float(kept[math.floor((1 - Fraction(repr(float(rate)))) * len(kept))])


def calibrate(
    classifier: SmoothedClassifier, images: ByteArray, labels: IntArray, budget: float, provenance: Provenance
) -> dict[str, Any]:
    """Choose min_votes, and a cascade's min_confidence, on held-out images and measure what they cost.

    Both thresholds are chosen on all the images, each as if the other part did not exist: the gate keeps 99 % of the
    images that it classifies correctly, the vote falsely rejects at most the budget. What is measured is the cascade.

    Args:
        classifier: Its policy gives N and the noise scale, and its sampling is what the threshold is for; its min_votes
            and min_confidence are not used.
        images: (n, H, W, 3) uint8 that neither trained the model nor chose the checkpoint.
        labels: (n,) class numbers.
        budget: Share of all images that the vote may classify correctly and yet reject, in (0, 1); 0.10 in the paper.
        provenance: Recorded in the entry.

    Returns:
        An entry for policy.json, as `bundle.store_calibration` takes it.

    Raises:
        UsageError: `budget` is not in (0, 1).
        DataError: The images or labels do not fit the classifier, or are too few.
        InferenceError: The engine failed.
    """
    _check_data(classifier, images, labels)
    allowed_rejects(len(labels), budget)  # before the images are classified, which may take minutes
    gate_logits = None if classifier.gate is None else classifier.gate_logits(images)
    gate = {} if gate_logits is None else {GATE: _gate_entry(gate_logits, labels)}
    choices = classifier.vote(images)  # (n, N)
    winners, votes = tally(choices)
    min_votes = min_votes_for_budget(votes, winners == labels, classifier.policy.num_samples, budget)
    policy = replace(classifier.policy, min_votes=min_votes)
    mean_choices = classifier.mean_choices(images)
    if gate_logits is None:
        decisions = decide(choices, policy)
    else:
        policy = replace(policy, min_confidence=gate[GATE]["min_confidence"])
        decisions = decide_cascade(choices, policy, confidences(gate_logits), mean_choices)
    correct = np.array([each.top_label for each in decisions]) == labels
    accepted = np.array([each.accepted for each in decisions])
    return {
        "num_samples": policy.num_samples,
        "noise_scale": float(policy.noise_scale),
        "mode": classifier.sampler.sampling,
        "min_votes": min_votes,
        "rule": "strict",
        "budget": float(budget),
        **gate,
        **_measures(correct, accepted, mean_choices == labels),
        **record_votes(decisions, policy.num_samples),
        **asdict(provenance),
        "created": utc_now(),
        "notes": _notes(budget, correct, accepted) + _gate_notes(budget, len(labels), **gate),
    }


def _gate_entry(logits: npt.NDArray[np.float32], labels: IntArray) -> dict[str, Any]:
    confidence, correct = confidences(logits), logits.argmax(axis=1) == labels
    min_confidence = min_confidence_for_rate(confidence, correct)
    confident = confidence >= min_confidence
    return {
        "min_confidence": min_confidence,
        "rule": "true_positive_rate",
        "rate": TRUE_POSITIVE_RATE,
        "correct": int(correct.sum()),
        "kept": int((correct & confident).sum()),
        "confident": int(confident.sum()),
    }


def _measures(correct: BoolArray, accepted: BoolArray, correct_without_sampling: BoolArray) -> dict[str, Any]:
    false_rejects = int((correct & ~accepted).sum())
    return {
        "n": len(correct),
        "correct": int(correct.sum()),
        "false_rejects": false_rejects,
        "interval": list(clopper_pearson(false_rejects, len(correct))),
        "coverage": float(accepted.mean()),
        "accuracy_no_sampling": float(correct_without_sampling.mean()),
        "accuracy_no_rejection": float(correct.mean()),
        "accuracy_accepted": float(correct[accepted].mean()) if accepted.any() else None,
    }


def allowed_rejects(n: int, budget: float) -> int:
    """Return floor(budget * n), at least 1, with the budget taken as the decimal that it was written as."""
    if not 0.0 < budget < 1.0:
        fix = "pass the share of all images that may be falsely rejected, for example --budget 0.10"
        raise UsageError(f"budget must lie between 0 and 1; got {budget}", fix)
    if n == 0:
        raise DataError("there are no images to calibrate on", "pass labelled images that the training did not see")
    share = Fraction(repr(float(budget)))  # 0.29 of 100 is 29; in binary floating point it is 28
    allowed = math.floor(share * n)
    if allowed < 1:
        problem = f"a budget of {budget:g} of {n} images allows no false rejection at all"
        fix = f"calibrate on at least {math.ceil(1 / share)} images ({FEW_IMAGES} or more for a useful interval)"
        raise DataError(problem, fix)
    return allowed


def _check_data(classifier: SmoothedClassifier, images: ByteArray, labels: IntArray) -> None:
    spec, classes = classifier.input, len(classifier.class_names)
    expected = (spec.height, spec.width, 3)
    if len(images) == 0:
        return  # allowed_rejects says what is wrong, whatever the shape of the emptiness
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        found = f"{images.dtype} {images.shape}"
        problem = f"calibration images are {found}; expected uint8 (n, {', '.join(map(str, expected))})"
        raise DataError(problem, "resize them to the bundle's input, or pass a folder of pictures per class")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        problem = f"labels are {labels.dtype} {labels.shape}; expected one integer for each of {len(images)} images"
        raise DataError(problem, "pass one class number an image")
    if labels.min() < 0 or labels.max() >= classes:
        problem = f"labels run from {labels.min()} to {labels.max()}, but the model's run from 0 to {classes - 1}"
        raise DataError(problem, "calibrate on data with the model's own classes")


def _notes(budget: float, correct: BoolArray, accepted: BoolArray) -> list[str]:
    notes = []
    if len(correct) < FEW_IMAGES:
        low, high = clopper_pearson(int((correct & ~accepted).sum()), len(correct))
        where = f"the rate of false rejections on new images may lie anywhere from {low:.1%} to {high:.1%} (95 %)"
        notes.append(f"only {len(correct)} images: {where}, for a budget of {budget:.1%}; use {FEW_IMAGES} or more")
    if correct.mean() <= budget:
        notes.append(f"only {correct.mean():.1%} of the images are classified correctly, so the budget binds nothing")
    if not accepted.any():
        notes.append("every image is rejected")
    return notes


def _gate_notes(budget: float, n: int, gate: dict[str, Any] | None = None) -> list[str]:
    wrong = 0.0 if gate is None else (gate["confident"] - gate["kept"]) / n
    if wrong <= budget:
        return []
    share = f"the gate is confident about {wrong:.1%} of the images although it classifies them wrongly"
    return [f"{share}: no vote is asked about these, so a weak gate leaves little to reject"]
