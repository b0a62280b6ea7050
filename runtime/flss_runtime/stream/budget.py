"""How many samples vote on a frame, by the time that is left for it."""

from __future__ import annotations

from flss_runtime.decision import SmoothingPolicy

_FRAMES = 32
_RANK = 3  # the third-longest time of so many is about their 92nd percentile


class SampleBudget:
    """Chooses between two policies: all samples, or fewer where there is no time for all.

    What frames usually take is kept once, as what all samples take: a frame with fewer counts in proportion to what the
    two took when the classifier was opened. So a machine that becomes free again is noticed by the frames with fewer.

    Args:
        full: With all samples.
        reduced: With fewer, and the threshold that was calibrated for that number; None: always all.
        full_ns: What a frame with all samples took when the classifier was opened, in nanoseconds.
        reduced_ns: What one with fewer took; taken as no more than that.
    """

    def __init__(self, full: SmoothingPolicy, reduced: SmoothingPolicy | None, full_ns: int, reduced_ns: int) -> None:
        self._full, self._reduced = full, reduced
        self._ratio = max(1.0, full_ns / max(reduced_ns, 1))
        self._times = [full_ns] * _FRAMES
        self._next = 0
        self._usual = full_ns

    def choose(self, left_ns: int) -> SmoothingPolicy:
        """Return the policy for a frame that has so much time left, in nanoseconds."""
        return self._full if self._reduced is None or left_ns >= self._usual else self._reduced

    def took(self, policy: SmoothingPolicy, nanoseconds: int) -> None:
        """Count what a frame took with a policy that `choose` gave."""
        if self._reduced is None:
            return
        self._times[self._next] = nanoseconds if policy is self._full else round(nanoseconds * self._ratio)
        self._next = (self._next + 1) % _FRAMES
        self._usual = sorted(self._times)[-_RANK]
