"""Changed decisions against a budget: passed, failed, or too few images to tell (docs/bundle-format.md, section 9)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from flss_runtime.errors import UsageError
from flss_runtime.statistics import clopper_pearson_upper

BUDGET = 0.005
CONFIDENCE = 0.95
LEAST_BUDGET = 1e-5  # takes 300,000 images without a flip to show


class Verdict(str, Enum):
    """What a gate says; everything but `passed` is exit code 1."""

    PASSED = "passed"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class FlipTest:
    """One kind of changed decision, judged.

    Args:
        kind: "class", "rejection" or "gate", with "fused " or "logit " before it where that graph was judged.
        flips: Images whose decision changed.
        images: Images that were compared, >= 1.
        budget: Rate of changed decisions that is allowed, from LEAST_BUDGET to below 1.

    Raises:
        UsageError: The budget is no rate.
    """

    kind: str
    flips: int
    images: int
    budget: float = BUDGET

    def __post_init__(self) -> None:
        if not LEAST_BUDGET <= self.budget < 1:
            raise UsageError(
                f"the flip budget is {self.budget}; it is a rate from {LEAST_BUDGET:g} to below 1",
                "pass for example 0.005 for 0.5 %",
            )

    @property
    def rate(self) -> float:
        """Share of the images whose decision changed."""
        return self.flips / self.images

    @property
    def bound(self) -> float:
        """One-sided 95 % Clopper-Pearson upper bound of the rate on images like these."""
        return clopper_pearson_upper(self.flips, self.images, CONFIDENCE)

    @property
    def verdict(self) -> Verdict:
        """`failed` where the rate exceeds the budget; `inconclusive` where only its bound does; else `passed`."""
        if self.rate > self.budget:
            return Verdict.FAILED
        return Verdict.INCONCLUSIVE if self.bound > self.budget else Verdict.PASSED

    def __str__(self) -> str:
        found = f"{self.flips} {self.kind} flips in {self.images} images ({self.rate:.2%}, at most {self.bound:.2%})"
        if self.verdict is Verdict.INCONCLUSIVE:
            needed = images_needed(self.flips, self.budget)
            return f"{found} do not show a rate within {self.budget:.3g}: that takes {needed} images with no more flips"
        word = "exceed" if self.verdict is Verdict.FAILED else "stay within"
        return f"{found} {word} the budget of {self.budget:.2%}"

    def to_json(self) -> dict[str, Any]:
        """Return counts, rate, bound, budget and verdict as JSON values."""
        return {
            "kind": self.kind,
            "flips": self.flips,
            "images": self.images,
            "rate": self.rate,
            "bound": self.bound,
            "confidence": CONFIDENCE,
            "budget": self.budget,
            "verdict": self.verdict.value,
        }


def images_needed(flips: int, budget: float) -> int:
    """Return the least number of images on which so many flips pass: 598 for none at 0.5 %.

    Args:
        flips: >= 0.
        budget: In (0, 1).
    """
    enough = flips + 1
    while clopper_pearson_upper(flips, enough, CONFIDENCE) > budget:
        enough *= 2
    low = enough // 2  # too few, or none at all
    while enough - low > 1:
        middle = (low + enough) // 2
        if middle > flips and clopper_pearson_upper(flips, middle, CONFIDENCE) <= budget:
            enough = middle
        else:
            low = middle
    return enough
