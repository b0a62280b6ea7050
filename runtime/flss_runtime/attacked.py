"""Robust accuracy of an engine on adversarial images that were saved, beside that of the bundle's float32 graphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.comparison import REDUCED, Comparison, Outputs, compare, decisions
from flss_runtime.errors import DataError
from flss_runtime.flips import BUDGET, CONFIDENCE
from flss_runtime.images import FloatArray
from flss_runtime.statistics import clopper_pearson_upper

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Attack:
    """The images of one attack.

    Attributes:
        name: Of the attack, such as "pgd-20"; "clean" for the untouched images.
        images: (n, 3, H, W) float32 in [0, 1].
        adversarial: False for random corruptions, which count for no worst case.
    """

    name: str
    images: FloatArray
    adversarial: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class AttackedImages:
    """The same n images under several attacks.

    Attributes:
        labels: (n,) the true classes.
        attacks: One after the other, the untouched images first; read twice, and from a file if it is that kind of
            iterable, so that no two attacks need be in memory together.
        seed: Of the noise; attack number a begins at counter a * n.
    """

    labels: IntArray
    attacks: Iterable[Attack]
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class AttackedOutputs:
    """What one implementation made of one attack's images."""

    name: str
    adversarial: bool
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class RobustCounts:
    """What one implementation made of n images in the worst case over all attacks, the untouched images included.

    Attributes:
        correct: Images whose most voted class is right under every attack, nothing rejected.
        wrongly_accepted: Images accepted with a wrong class under some attack; None without a calibrated threshold.
    """

    correct: int
    wrongly_accepted: int | None


@dataclass(frozen=True, slots=True)
class RobustComparison:
    """Robust accuracy of an engine beside that of the reference, on the same attacked images under the same noise.

    Changed decisions are counted and not judged: attacked images lie at the borders between classes, where the least
    rounding changes some. What is judged is a loss of robust accuracy.

    Attributes:
        images: n.
        reference: The reference's counts.
        candidate: The engine's.
        lost: Images that the reference gets right under every attack and the engine does not.
        gained: The other way round.
        attacks: How the two differ under each attack, corruptions included.
        budget: Loss of robust accuracy that is allowed.
    """

    images: int
    reference: RobustCounts
    candidate: RobustCounts
    lost: int
    gained: int
    attacks: tuple[Comparison, ...]
    budget: float

    @property
    def failures(self) -> tuple[str, ...]:
        """The loss, if it exceeds the budget and chance does not explain it (one-sided exact sign test, 5 %)."""
        loss = (self.lost - self.gained) / self.images
        if loss <= self.budget or clopper_pearson_upper(self.gained, self.lost + self.gained, CONFIDENCE) >= 0.5:
            return ()
        before, after = self.reference.correct / self.images, self.candidate.correct / self.images
        return (
            f"adversarial: robust accuracy falls from {before:.2%} to {after:.2%} of {self.images} images, "
            f"allowed {self.budget:.2%}",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the failures as JSON values."""
        values = asdict(self)
        values["attacks"] = [attack.to_json() for attack in self.attacks]
        return {**values, "failures": list(self.failures)}


def compare_attacked(
    labels: IntArray,
    reference: Sequence[AttackedOutputs],
    candidate: Sequence[AttackedOutputs],
    *,
    min_votes: int | None = None,
    min_confidence: float | None = None,
    budget: float = BUDGET,
) -> RobustComparison:
    """Compare what two implementations made of the same attacked images.

    Args:
        labels: (n,) the true classes.
        reference: One entry an attack.
        candidate: The same attacks in the same order.
        min_votes: Calibrated threshold, if there is one.
        min_confidence: The same of a cascade's gate.
        budget: Loss of robust accuracy that is allowed.

    Raises:
        DataError: None of the attacks is adversarial.
    """
    if not any(each.adversarial for each in reference):
        raise DataError("there are no adversarial images to measure robust accuracy on", "save some with evaluate")
    thresholds = min_votes, min_confidence
    right_before, wrong_before = _worst_case(labels, reference, *thresholds)
    right_after, wrong_after = _worst_case(labels, candidate, *thresholds)
    attacks = tuple(
        compare(
            before.outputs,
            after.outputs,
            min_votes=min_votes,
            min_confidence=min_confidence,
            name=before.name,
            limits=REDUCED,
        )
        for before, after in zip(reference, candidate, strict=True)
    )
    return RobustComparison(
        images=len(labels),
        reference=RobustCounts(int(right_before.sum()), wrong_before),
        candidate=RobustCounts(int(right_after.sum()), wrong_after),
        lost=int((right_before & ~right_after).sum()),
        gained=int((right_after & ~right_before).sum()),
        attacks=attacks,
        budget=budget,
    )


def _worst_case(
    labels: IntArray, attacks: Sequence[AttackedOutputs], min_votes: int | None, min_confidence: float | None
) -> tuple[BoolArray, int | None]:
    """Return which images are right under every attack, and how many are wrongly accepted under some."""
    right, wrong = np.ones(len(labels), np.bool_), np.zeros(len(labels), np.bool_)
    for attack in attacks:
        if not attack.adversarial:
            continue
        made = decisions(attack.outputs, min_votes or 0, min_confidence)
        top = np.array([-1 if each.top_label is None else each.top_label for each in made])
        right &= top == labels
        wrong |= np.array([each.accepted for each in made]) & (top != labels)
    return right, None if min_votes is None else int(wrong.sum())
