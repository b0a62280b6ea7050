"""Frame by frame: has what is decided drifted away from what the calibration saw?

The false-alarm rate alpha is spent in two halves. Half is the chance that the calibration's images were unlucky, so
that some bound on the shares of all images like them does not hold (`DriftReference.bounds`). Half is the chance that
the evidence reaches c = T / (alpha / 2) within the T blocks of the horizon although all bounds hold (`detector`). So

    P(an alarm within the horizon though nothing drifts) <= alpha / 2 + alpha / 2.

A block is `dwell_frames` frames and gives the mean of each indicator over them, which has the right expectation
whatever hangs together inside; the next `dwell_frames - 1` frames are skipped. So a scene of at most `dwell_frames`
frames never touches two blocks.

What this assumes: given the calibration and all that was seen `dwell_frames` or more frames ago, what the next frame
shows is expected to be like the images that the calibration's were drawn from; and these were drawn independently of
one another and of the stream. A robot that stands still for longer breaks the first, images of other scenes than the
robot's break the second: the monitor fires, and it should.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from flss_runtime.decision import Decision, Status
from flss_runtime.drift.detector import Detector
from flss_runtime.drift.reference import DriftReference
from flss_runtime.errors import UsageError
from flss_runtime.statistics import clopper_pearson

OK, DRIFTING, INSUFFICIENT = "ok", "drifting", "insufficient"
LEAST_IMAGES = 50  # of fewer images the bounds are so wide that "ok" would promise something
RECENT_BLOCKS = 100  # that "now" is taken over

_CALIBRATE = "calibrate again: flss-edge calibrate BUNDLE --data DATA --budget 0.10"


class DriftMonitor:
    """Compare a stream of decisions with what the calibration saw; no labels are needed.

    `update` takes microseconds, allocates nothing that stays, and may run in another thread than `report` and `reset`.

    Args:
        reference: As `drift_reference` gives it for the samples and the sampling of the stream; None is taken, and
            reported.
        dwell_frames: How many frames the camera may look at the same thing, >= 1; 1 where frames have nothing to do
            with one another.
        false_alarm_rate: The probability that there is an alarm within the horizon although nothing drifts, at most; in
            (0, 1).
        horizon_frames: How many observed frames that is stated for; the default is a day at 30 frames a second.

    Raises:
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        reference: DriftReference | None,
        *,
        dwell_frames: int = 30,
        false_alarm_rate: float = 0.01,
        horizon_frames: int = 2_592_000,
    ) -> None:
        _check(dwell_frames, false_alarm_rate, horizon_frames)
        self._settings = {
            "dwell_frames": dwell_frames,
            "false_alarm_rate": false_alarm_rate,
            "horizon_frames": horizon_frames,
        }
        self._dwell = dwell_frames
        self._period = 2 * dwell_frames - 1
        self._threshold = math.ceil(horizon_frames / self._period) / (false_alarm_rate / 2)
        self._problem = _problem(reference)
        # In place of one that cannot serve there is one of no samples, to which no decision belongs.
        self._reference = DriftReference((), 0, 0) if reference is None or self._problem else reference
        samples = self._reference.num_samples
        self._shares = [votes / samples for votes in range(samples + 1)]
        self._levels = () if self._problem else self._reference.levels()
        self._bins = [sum(level >= each for each in self._levels) for level in range(samples + 2)]
        self._bounds = [self._reference.bounds(level, false_alarm_rate / 2) for level in self._levels]
        self._detector = Detector(*np.array(self._bounds).reshape(-1, 2).T)
        self._fewest = self._detector.fewest_blocks(self._threshold) if self._levels else 1
        self._counts = [0] * (len(self._levels) + 1)  # frames of the open block by bin; nobody asks for the last
        self._block = np.empty(len(self._levels))
        self._recent = np.empty((RECENT_BLOCKS, len(self._levels)))
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after an alarm that somebody has looked into; the horizon begins anew as well."""
        with self._lock:
            self._detector.reset()
            self._counts[:] = [0] * len(self._counts)
            self._place = self._frames = self._ignored = self._blocks = 0
            self._evidence = 0.0
            self._since: int | None = None
            self._strongest = (0, True)

    def update(self, decision: Decision) -> None:
        """Take the decision about the next frame.

        Frames without a vote are passed over: a deadline that was missed is the stream's business. So are decisions of
        another number of samples or another threshold than the reference's, which no bound is known for.

        Args:
            decision: Of any status, in the order of the frames.
        """
        with self._lock:
            level = self._level(decision)
            if level is None:
                self._ignored += 1
                return
            self._frames += 1
            place = self._place
            if place < self._dwell:
                self._counts[self._bins[level]] += 1
            place += 1
            if place == self._dwell:
                self._close_block()
            self._place = 0 if place == self._period else place

    @property
    def state(self) -> str:
        """As in `report`, at no cost."""
        return self._state()[0]

    def report(self) -> dict[str, Any]:
        """Return where the stream stands, as JSON values.

        Returns:
            - state: "ok", "drifting" (since an alarm, until `reset`) or "insufficient" (no reference, or fewer frames
              than any alarm takes); reason: why, in words; fix: what to do where it is the reference, else empty.
            - shares: what is watched ("rejected", "votes < 63", "left to the vote") -> now: its share in the last 100
              blocks, None before the first; interval: 95 %, each block counted as one image; reference: its share in
              the calibration; reference_interval: what a share has to leave for an alarm.
            - evidence: 0 to 1, on a logarithmic scale; an alarm is at 1.
            - frames, blocks, ignored: observed frames, blocks of them, decisions passed over; since_frame: observed
              frames at the alarm, or None.
            - dwell_frames, false_alarm_rate, horizon_frames: as given.
        """
        with self._lock:
            state, reason, fix = self._state()
            blocks = min(self._blocks, RECENT_BLOCKS)
            totals = self._recent[:blocks].sum(axis=0).tolist()
            now = {
                "evidence": min(1.0, math.log1p(self._evidence) / math.log1p(self._threshold)),
                "frames": self._frames,
                "blocks": self._blocks,
                "ignored": self._ignored,
                "since_frame": self._since,
            }
        shares = {self._name(index): self._share(index, total, blocks) for index, total in enumerate(totals)}
        return {"state": state, "reason": reason, "fix": fix, "shares": shares, **now, **self._settings}

    def _level(self, decision: Decision) -> int | None:
        """Return the level of a decision, or None where it is no observation."""
        if decision.status is not Status.ACCEPTED and decision.status is not Status.LOW_VOTE:
            return None
        shares, votes = self._shares, decision.votes
        # Equal quotients of integers are equal floats: so votes and share tell N, which a decision does not state.
        if votes >= len(shares) or shares[votes] != decision.vote_share:
            return None
        level = len(shares) if decision.gated else votes
        return level if (level < self._reference.min_votes) is (decision.label is None) else None

    def _close_block(self) -> None:
        below, counts, block = 0, self._counts, self._block
        for index in range(len(block)):
            below += counts[index]
            block[index] = below / self._dwell
            counts[index] = 0
        self._recent[self._blocks % RECENT_BLOCKS] = block
        self._blocks += 1
        if self._since is None:
            self._evidence = float(self._detector.update(block))
            if self._evidence >= self._threshold:
                self._since = self._frames
                self._strongest = self._detector.strongest()

    def _state(self) -> tuple[str, str, str]:
        if self._problem:
            return INSUFFICIENT, self._problem, _CALIBRATE
        if self._since is not None:
            index, upward = self._strongest
            more = "more" if upward else "fewer"
            return DRIFTING, f"{more} frames {self._name(index)} than the calibration's images can explain", ""
        if self._blocks >= self._fewest:
            return OK, "", ""
        if self._ignored > self._frames:
            samples, votes = self._reference.num_samples, self._reference.min_votes
            policy = f"a vote of {samples} samples that needs {votes}"
            total = self._ignored + self._frames
            return INSUFFICIENT, f"of {total} decisions only {self._frames} are by {policy}", ""
        least = (self._fewest - 1) * self._period + self._dwell
        return INSUFFICIENT, f"only {self._frames} frames so far; fewer than {least} cannot raise an alarm", ""

    def _name(self, index: int) -> str:
        level = self._levels[index]
        if level == self._reference.min_votes:
            return "rejected"
        return "left to the vote" if level > self._reference.num_samples else f"votes < {level}"

    def _share(self, index: int, total: float, blocks: int) -> dict[str, Any]:
        reference = self._reference
        return {
            "now": total / blocks if blocks else None,
            "interval": list(_interval(math.floor(total), math.ceil(total), blocks)) if blocks else None,
            "reference": reference.below(self._levels[index]) / reference.images,
            "reference_interval": list(self._bounds[index]),
        }


@lru_cache(maxsize=1024)  # once a second the same few numbers, and each takes milliseconds
def _interval(least: int, most: int, blocks: int) -> tuple[float, float]:
    """Return a 95 % interval of a share, from between so many hits in so many blocks."""
    return clopper_pearson(least, blocks)[0], clopper_pearson(min(most, blocks), blocks)[1]


def _problem(reference: DriftReference | None) -> str:
    """Say why a reference cannot serve; empty where it can."""
    if reference is None:
        return "the calibration kept no votes to compare with"
    if reference.images < LEAST_IMAGES:
        return f"the calibration saw {reference.images} images; {LEAST_IMAGES} are the least that say anything"
    return ""


def _check(dwell_frames: int, false_alarm_rate: float, horizon_frames: int) -> None:
    if dwell_frames < 1:
        raise UsageError(
            f"dwell_frames is {dwell_frames}; a scene has at least one frame",
            "pass how many frames the camera may look at the same thing; 1 for independent frames",
        )
    if not 0.0 < false_alarm_rate < 1.0:
        raise UsageError(
            f"false_alarm_rate is {false_alarm_rate}; it is a probability between 0 and 1",
            "pass the probability of a false alarm within the horizon that you accept, such as 0.01",
        )
    if horizon_frames < dwell_frames:
        raise UsageError(
            f"horizon_frames is {horizon_frames}, less than the {dwell_frames} frames of one block",
            "pass the frames of a mission, such as 2592000 for a day at 30 frames a second",
        )
