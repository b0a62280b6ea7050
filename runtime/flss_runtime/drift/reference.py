"""What a calibration saw of the votes, and what follows for all images (docs/bundle-format.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flss_runtime.bundle import Bundle
from flss_runtime.decision import Decision
from flss_runtime.manifest import MAX_REFERENCE_IMAGES, REFERENCE
from flss_runtime.sampling import LATENT
from flss_runtime.statistics import clopper_pearson
from flss_runtime.strict_json import Json

MAX_RECORDED_SAMPLES = 1000  # above it the counts would fill policy.json, and nobody drives with so many
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class DriftReference:
    """The votes of the calibration's images, and the threshold that was chosen on them.

    Every image has a *level*: the votes of its winner, 0 to N, or N + 1 where a gate answered. What the monitor watches
    are the shares of images below a few levels: below `min_votes` an image is rejected, below N + 1 the gate has left
    it to the vote, and the shares below several levels are the histogram of the votes.

    Attributes:
        votes: (N + 1,) how many images have 0, 1, …, N votes; without those that a gate answered.
        gated: Images that a gate answered; 0 where there is none.
        min_votes: The calibrated threshold, 0 to N.
    """

    votes: tuple[int, ...]
    gated: int
    min_votes: int

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.votes) - 1

    @property
    def images(self) -> int:
        """Number of images, at least 1."""
        return sum(self.votes) + self.gated

    def below(self, level: int) -> int:
        """Return how many images are below a level of 0 to N + 1."""
        return sum(self.votes[:level])

    def levels(self) -> tuple[int, ...]:
        """Return the levels to watch, rising: `min_votes`, those nearest to the quartiles, and with a gate N + 1.

        Of neighbours with equally many images below them it is the highest: all that would newly be between is seen.
        """
        shares = np.cumsum(self.votes)[: self.num_samples] / self.images  # below levels 1 to N
        away = np.abs(shares[::-1, None] - _QUARTILES)  # (N, 3), the highest level first
        quartiles = (self.num_samples - away.argmin(axis=0)).tolist()
        return tuple(sorted({self.min_votes, *quartiles, *([self.num_samples + 1] if self.gated else [])}))

    def bounds(self, level: int, error_rate: float) -> tuple[float, float]:
        """Bound the share of all images like these that is below a level.

        The bounds of all N + 1 levels hold at once but with probability `error_rate`: each is Clopper and Pearson's
        at its part of it. So it does not matter that `min_votes` and the levels to watch were chosen on these images.

        Args:
            level: 0 to N + 1.
            error_rate: In (0, 1).

        Returns:
            (low, high), with 0 <= low < 1 and 0 < high <= 1.
        """
        return clopper_pearson(self.below(level), self.images, 1.0 - error_rate / len(self.votes))


def drift_reference(bundle: Bundle, num_samples: int | None = None, sampling: str = LATENT) -> DriftReference | None:
    """Return what the calibration for N samples (default: the policy's) of this sampling saw.

    None where there is no such calibration, or where it was made before references were kept, or for so many samples
    (over 1,000) that none was.
    """
    entry = bundle.calibration(num_samples, sampling)
    if entry is None or REFERENCE not in entry:
        return None
    counts = entry[REFERENCE]
    return DriftReference(tuple(counts["votes"]), counts["gated"], entry["min_votes"])


def record_votes(decisions: Iterable[Decision], num_samples: int) -> dict[str, Json]:
    """Return what a calibration entry keeps of its decisions: {"reference": …}, or {} where that would be too large.

    Args:
        decisions: Of N = `num_samples` votes each, `accepted` or `low_vote`.
        num_samples: N.
    """
    votes, gated = [0] * (num_samples + 1), 0
    for decision in decisions:
        if decision.gated:
            gated += 1
        else:
            votes[decision.votes] += 1
    counts: dict[str, Any] = {"votes": votes, "gated": gated}
    small = num_samples <= MAX_RECORDED_SAMPLES and sum(votes) + gated <= MAX_REFERENCE_IMAGES
    return {REFERENCE: counts} if small else {}
