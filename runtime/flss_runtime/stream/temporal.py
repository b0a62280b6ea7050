"""A steady answer from several frames: one image is soon wrong, a run of them agrees on the same wrong class seldom."""

from __future__ import annotations

import math
from collections import deque

from flss_runtime.decision import Decision, Status
from flss_runtime.errors import UsageError


class TemporalVote:
    """The class that enough of the last frames were accepted as.

    Frames without an answer are no vote, but count as frames; superseded frames do not count at all, for nobody looked
    at them. One vote serves one stream.

    Args:
        frames: How many of the last frames count, >= 1.
        needed: How many of them have to agree: more than half, so that there is at most one such class.
        max_age_s: Frames that are older than the newest one by more than this do not count. Superseded frames are new,
            too: where the engine hangs, the agreement ends after this time. None keeps frames of any age, and then it
            does not end.

    Raises:
        UsageError: A value lies outside its range.
    """

    def __init__(self, frames: int, needed: int, max_age_s: float | None = 0.5) -> None:
        if frames < 1 or not frames < 2 * needed <= 2 * frames:
            raise UsageError(
                f"{needed} of {frames} frames have to agree",
                f"ask for more than half of them and not for more than all, such as {max(frames, 1) // 2 + 1}",
            )
        if max_age_s is not None and not 0 < max_age_s < math.inf:
            raise UsageError(f"max_age_s is {max_age_s}", "pass a time > 0 in seconds, or None")
        self.frames, self.needed, self.max_age_s = frames, needed, max_age_s
        self._max_age_ns = math.inf if max_age_s is None else round(max_age_s * 1e9)
        self._newest = -math.inf
        self._last: deque[tuple[int | None, int]] = deque()  # label, when
        self._votes: dict[int, int] = {}  # class -> frames among the last that were accepted as it

    def update(self, decision: Decision, at_ns: int) -> int | None:
        """Count a frame.

        Args:
            decision: Its decision.
            at_ns: When it was taken, in nanoseconds of any clock that does not go back. The frames may come in another
                order: one that is refused at once overtakes the one that runs.

        Returns:
            The class that enough frames agree on, None where none has enough.
        """
        self._newest = max(self._newest, at_ns)
        oldest = self._newest - self._max_age_ns
        if self.max_age_s is not None:
            self._forget_before(oldest)
        if decision.status is not Status.SUPERSEDED and at_ns >= oldest:
            self._last.append((decision.label, at_ns))
            if decision.label is not None:
                self._votes[decision.label] = self._votes.get(decision.label, 0) + 1
            if len(self._last) > self.frames:
                self._forget()
        for label, votes in self._votes.items():
            if votes >= self.needed:
                return label
        return None

    def _forget_before(self, oldest: float) -> None:
        for _ in range(len(self._last)):  # all of them, for they need not be in order
            if self._last[0][1] < oldest:
                self._forget()
            else:
                self._last.rotate(-1)

    def _forget(self) -> None:
        """Leave the frame out that came first."""
        label, _ = self._last.popleft()
        if label is None:
            return
        self._votes[label] -= 1
        if not self._votes[label]:
            del self._votes[label]
