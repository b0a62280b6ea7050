"""Votes as a camera sees them: a population of images, calibrations drawn from it, and streams of scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.calibration import min_votes_for_budget
from flss_runtime.decision import Decision, Status
from flss_runtime.drift import DriftReference
from flss_runtime.drift.detector import Detector

N = 100
BUDGET = 0.1
Array = npt.NDArray[Any]


def population(slope: float = 3.0, sure: float = 0.3) -> Array:
    """Chances (N + 1,) of 0 to N votes: so many images have all, the others the more the likelier."""
    votes = np.arange(N + 1)
    chances = np.where(votes > N // 10, np.exp(slope * votes / N), 0.0)  # the winner of ten classes has a tenth
    chances *= (1 - sure) / chances.sum()
    chances[N] += sure
    return chances


def draw(rng: np.random.Generator, chances: Array, shape: tuple[int, ...]) -> Array:
    """Votes of independent images."""
    return np.searchsorted(chances.cumsum(), rng.random(shape), side="right").clip(max=N).astype(np.int16)


def reference_of(votes: Array, gated: int = 0) -> DriftReference:
    """What a calibration on these images keeps, with the threshold that it would choose."""
    min_votes = min_votes_for_budget(votes, np.ones(len(votes), bool), N, BUDGET)
    return DriftReference(tuple(np.bincount(votes, minlength=N + 1).tolist()), gated, min_votes)


def references(rng: np.random.Generator, chances: Array, count: int, images: int) -> list[DriftReference]:
    """A new calibration for each stream."""
    return [reference_of(votes) for votes in draw(rng, chances, (count, images))]


def scenes(rng: np.random.Generator, chances: Array, shape: tuple[int, int], longest: int, same: bool = False) -> Array:
    """Votes (streams, frames) in which a scene of 1 to `longest` frames shows one image; all as long where `same`."""
    votes, frames = np.empty(shape, np.int16), shape[1]
    for stream in votes:
        lengths = rng.integers(longest if same else 1, longest + 1, frames + 1)
        lengths[0] = rng.integers(1, longest + 1)  # the stream begins in the middle of one
        stream[:] = np.repeat(draw(rng, chances, lengths.shape), lengths)[:frames]
    return votes


def blocks(votes: Array, levels: Array, dwell: int) -> Iterator[Array]:
    """Shares (streams, S) below each stream's levels (streams, S), block after block as the monitor forms them."""
    for start in range(0, votes.shape[1] - dwell + 1, 2 * dwell - 1):
        block = votes[:, start : start + dwell]
        yield (block[:, :, None] < levels[:, None, :]).mean(axis=1)


def most_evidence(low: Array, high: Array, shares: Iterable[Array]) -> Array:
    """The maximum of the evidence of each stream (streams,)."""
    detector, most = Detector(low, high), np.zeros(len(low))
    for each in shares:
        np.maximum(most, detector.update(each), out=most)
    return most


def decision(votes: int, min_votes: int, gated: bool = False, num_samples: int = N) -> Decision:
    accepted = gated or votes >= min_votes
    status = Status.ACCEPTED if accepted else Status.LOW_VOTE
    return Decision(3 if accepted else None, 3, votes, votes / num_samples, status, gated=gated)


def failed(status: Status) -> Decision:
    """A frame that nothing voted on."""
    return Decision(None, None, 0, 0.0, status, reason="no vote")
