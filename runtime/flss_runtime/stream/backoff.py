"""How long to wait before an engine that failed is opened again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flss_runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times that double from one failure to the next, up to a limit.

    Args:
        first_s: After the first failure in a row, in seconds, > 0.
        most_s: The longest one, finite, at least `first_s`.

    Raises:
        UsageError: A value lies outside its range.
    """

    first_s: float
    most_s: float

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.most_s < math.inf:
            raise UsageError(
                f"a back-off from {self.first_s} to {self.most_s} s", "pass two times > 0, the first not the longer one"
            )

    def delay_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, at least 1 of them."""
        doublings = min(failures - 1, 64)  # a float has room for these, and no limit lies beyond
        return min(self.first_s * 2.0**doublings, self.most_s)
