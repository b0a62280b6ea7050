"""What a selective classifier says about images, and the rules that turn scores into a threshold; NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flss_runtime.calibration import allowed_rejects, min_confidence_for_rate
from flss_runtime.errors import UsageError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CLEAN = "clean"
"""The name of the attack that leaves the images as they are; the answers to untouched images are kept under it."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to n images.

    Attributes:
        labels: (n,) int64, the answer before any rejection.
        scores: (n,) float64, how sure it is: votes, or a confidence. An image is accepted iff its score is at least the
            classifier's threshold.
        accepted: (n,) bool.
    """

    labels: IntArray
    scores: FloatArray
    accepted: BoolArray

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def joined(parts: list[Answers]) -> Answers:
    """Return the answers of several batches as one."""
    return Answers(
        np.concatenate([np.empty(0, np.int64), *(part.labels for part in parts)]),
        np.concatenate([np.empty(0, np.float64), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.accepted for part in parts)]),
    )


def threshold_for_budget(scores: FloatArray, correct: BoolArray, budget: float, highest: float | None = None) -> float:
    """Return the strictest threshold that rejects at most floor(budget * n) of ALL n images although they are correct.

    An image is rejected iff its score is below the threshold. On votes this is `min_votes_for_budget` of the runtime.

    Args:
        scores: (n,) of the images' answers.
        correct: (n,) whether the answer is the image's label.
        budget: share of the n images, in (0, 1); 0.10 in the paper.
        highest: the highest score there is, returned where so few answers are correct that the budget never binds; by
            default that is the highest of `scores`.

    Raises:
        UsageError: `budget` is not in (0, 1).
        DataError: no images, or so few that the budget amounts to less than one.

    Source: docs/method.md, section 3; with confidences in the place of votes for every baseline, as in the paper.
    """
    allowed = allowed_rejects(len(scores), budget)
    of_correct = np.sort(scores[correct])
    if len(of_correct) > allowed:
        return float(of_correct[allowed])  # `allowed` of them lie before it, and ties are kept
    return float(scores.max()) if highest is None else highest


def threshold_for_true_positive_rate(scores: FloatArray, correct: BoolArray, rate: float = 0.99) -> float:
    """Return the strictest threshold that accepts at least the share `rate` of the correct answers: CCAT's own rule.

    Arguments as `threshold_for_budget`.

    Raises:
        UsageError: `rate` is not in (0, 1].
        DataError: no answer is correct.
    """
    return min_confidence_for_rate(scores, correct, rate)


def threshold_for_coverage(scores: FloatArray, accepted_count: int) -> float:
    """Return the strictest threshold that accepts at least `accepted_count` of the images; more only in case of ties.

    Raises:
        UsageError: there are fewer images, or the number is negative.
    """
    if not 0 <= accepted_count <= len(scores):
        raise UsageError(
            f"{accepted_count} of {len(scores)} images cannot be accepted", "Match the coverage on the same images."
        )
    if accepted_count == 0:
        return math.inf
    return float(np.sort(scores)[len(scores) - accepted_count])
