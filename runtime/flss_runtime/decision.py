"""Votes to decisions: the only code of the project that counts votes and rejects images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import UsageError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


# The method uses 100. What is far above is a slip of the hand, and would end in a MemoryError or in hours of silence.
MAX_SAMPLES = 1_000_000


class Status(str, Enum):
    """Why a decision carries a label, or why it carries none."""

    ACCEPTED = "accepted"
    LOW_VOTE = "low_vote"
    DEADLINE = "deadline"
    INVALID_INPUT = "invalid_input"
    SUPERSEDED = "superseded"
    FAULT = "fault"

    def __str__(self) -> str:
        return self.value


def check_num_samples(num_samples: int) -> None:
    """Refuse a number of samples that cannot vote.

    Raises:
        UsageError: N is below 1 or above `MAX_SAMPLES`.
    """
    if num_samples < 1:
        raise UsageError(
            f"num_samples is {num_samples}; at least one latent sample has to vote",
            "pass a number of samples >= 1 (the method uses 100)",
        )
    if num_samples > MAX_SAMPLES:
        raise UsageError(
            f"num_samples is {num_samples}; at most {MAX_SAMPLES:,} latent samples vote on an image",
            f"pass a number of samples <= {MAX_SAMPLES} (the method uses 100)",
        )


@dataclass(frozen=True, slots=True)
class SmoothingPolicy:
    """How many latent samples vote, how wide they spread, and how many votes an answer needs.

    Args:
        num_samples: Latent samples an image, 1 <= N <= 1,000,000.
        noise_scale: Factor on the encoder's standard deviation, finite and >= 0; 0 is the plain mean path.
        min_votes: An image is accepted iff its top class has at least this many of the N votes; 0 accepts everything.
        min_confidence: Of a cascade: where the gate is at least this confident, in [0, 1], no vote is asked; None where
            there is no gate.

    Raises:
        UsageError: A value lies outside its range.
    """

    num_samples: int = 100
    noise_scale: float = 2.0
    min_votes: int = 0
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        check_num_samples(self.num_samples)
        if not math.isfinite(self.noise_scale) or self.noise_scale < 0:
            raise UsageError(
                f"noise_scale is {self.noise_scale}; it multiplies a standard deviation and has to be finite and >= 0",
                "pass a noise scale >= 0 (the method uses 2)",
            )
        if not 0 <= self.min_votes <= self.num_samples:
            raise UsageError(
                f"min_votes is {self.min_votes}, but {self.num_samples} samples can only give 0 to {self.num_samples} "
                "votes",
                f"pass min_votes between 0 and {self.num_samples}, or calibrate again for this number of samples",
            )
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise UsageError(
                f"min_confidence is {self.min_confidence}; a softmax confidence lies in [0, 1]",
                "pass min_confidence between 0 and 1, or None for a classifier without gate",
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one image, or the refusal to answer.

    Attributes:
        label: Class index of an accepted image; None whenever there is no answer.
        top_label: Class index with the most votes even when rejected; where `gated`, the answer itself; None where
            nothing voted.
        votes: Votes of the top class, 0 to N; where `gated`, that class need not have the most.
        vote_share: `votes` / N, in [0, 1].
        status: Why there is an answer, or why there is none.
        counter: Counter of the noise this image got (`KeyedNoise.at` replays it); None where nothing voted, and
            under deterministic sampling.
        reason: For people: what was wrong with an invalid or failed image, otherwise empty.
        gated: True iff the gate of a cascade was confident enough, so that the label is the class of the latent mean
            and no number of votes was asked for.
    """

    label: int | None
    top_label: int | None
    votes: int
    vote_share: float
    status: Status
    counter: int | None = None
    reason: str = ""
    gated: bool = False

    @property
    def accepted(self) -> bool:
        """True iff the image has an answer."""
        return self.label is not None


def unanswered(status: Status, reason: str) -> Decision:
    """Make the decision of an image that nothing voted on."""
    return Decision(None, None, 0, 0.0, status, reason=reason)


def tally(choices: npt.NDArray[np.integer[Any]]) -> tuple[IntArray, IntArray]:
    """Count the votes of each image and find its most voted class.

    Ties go to the lowest class index. The reference implementation lets the class win that reaches the maximum first;
    the order of samples carries no information, so here it has no influence.

    Args:
        choices: (B, N) integers >= 0, the class each latent sample voted for.

    Returns:
        The top classes (B,) int64 and their vote counts (B,) int64 in 1 to N.

    Raises:
        UsageError: `choices` is not a two-dimensional array of class indices with at least one sample an image.
    """
    _check_choices(choices)
    winners = np.array([_winner(image_choices) for image_choices in choices], np.int64).reshape(-1, 2)
    return winners[:, 0], winners[:, 1]


def decide(
    choices: npt.NDArray[np.integer[Any]], policy: SmoothingPolicy, counters: Sequence[int] | None = None
) -> list[Decision]:
    """Accept or reject each image by its votes: accepted iff the top class has at least `policy.min_votes`.

    Source: the majority vote with rejection of the paper (docs/method.md, section 3), with the non-strict comparison
    that the name `min_votes` states. Ties as in `tally`.

    Args:
        choices: (B, N) integers >= 0, the class each latent sample voted for; N is `policy.num_samples`.
        policy: Number of samples and threshold.
        counters: (B,) noise counters to record in the decisions.

    Returns:
        B decisions, `accepted` or `low_vote`.

    Raises:
        UsageError: The shape of `choices` does not fit the policy or the counters.
    """
    _check_choices(choices)
    num_samples = choices.shape[1]
    if num_samples != policy.num_samples:
        raise UsageError(
            f"{num_samples} votes an image arrived, but the policy is for {policy.num_samples}",
            "sample as often as the policy says: a threshold is calibrated for one number of samples only",
        )
    if counters is not None and len(counters) != len(choices):
        raise UsageError(f"{len(counters)} counters for {len(choices)} images", "pass one noise counter an image")
    decisions = []
    for row, image_choices in enumerate(choices):
        top, count = _winner(image_choices)
        accepted = count >= policy.min_votes
        decisions.append(
            Decision(
                label=top if accepted else None,
                top_label=top,
                votes=count,
                vote_share=count / num_samples,
                status=Status.ACCEPTED if accepted else Status.LOW_VOTE,
                counter=None if counters is None else counters[row],
            )
        )
    return decisions


def decide_cascade(
    choices: npt.NDArray[np.integer[Any]],
    policy: SmoothingPolicy,
    confidence: npt.NDArray[np.floating[Any]],
    mean_choices: npt.NDArray[np.integer[Any]],
    counters: Sequence[int] | None = None,
) -> list[Decision]:
    """Decide as a cascade: a confident gate lets the class of the latent mean through, otherwise the vote decides.

    Source: the CCAT + FLSS cascade of the paper (section 5.4). An image is `gated` iff the gate's confidence is at
    least `policy.min_confidence`; it is then never rejected. Everything else is `decide`, on the same votes.

    Args:
        choices: (B, N), as for `decide`.
        policy: As for `decide`, with a `min_confidence`.
        confidence: (B,) finite, of the gate, as `confidences` gives it.
        mean_choices: (B,) integers >= 0, the class of each image's latent mean.
        counters: As for `decide`.

    Raises:
        UsageError: As `decide`; or the policy has no `min_confidence`, or the shapes do not fit.
    """
    voted = decide(choices, policy, counters)
    if policy.min_confidence is None:
        raise UsageError("the policy has no min_confidence, which a cascade needs", "calibrate the bundle's gate")
    if confidence.shape != (len(voted),) or mean_choices.shape != (len(voted),):
        raise UsageError(
            f"{confidence.shape} confidences and {mean_choices.shape} mean classes for {len(voted)} images",
            "pass one of each an image",
        )
    decisions = []
    for row, decision in enumerate(voted):
        if confidence[row] >= policy.min_confidence:
            label = int(mean_choices[row])
            votes = int(np.count_nonzero(choices[row] == label))
            share, accepted = votes / policy.num_samples, Status.ACCEPTED
            decision = replace(
                decision, label=label, top_label=label, votes=votes, vote_share=share, status=accepted, gated=True
            )
        decisions.append(decision)
    return decisions


def confidences(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Return the largest softmax probability of each row, (B,) float64, of logits (B, K).

    In float64, because a network that was trained to be confident is so to within less than float32 can tell from 1.
    """
    scores = logits.astype(np.float64)
    return np.asarray(1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))


def _check_choices(choices: npt.NDArray[np.integer[Any]]) -> None:
    if choices.ndim != 2 or choices.dtype.kind not in "iu" or choices.shape[1] == 0:
        raise UsageError(
            f"choices have shape {choices.shape} and dtype {choices.dtype}; expected (B, N) integers with N >= 1",
            "pass the class index each of the N latent samples voted for, one row an image",
        )


def _winner(image_choices: IntArray) -> tuple[int, int]:
    """Return the most voted class of one image, the lowest among equals, and its votes.

    One image at a time, not one (B, K) histogram: a few microseconds each, and memory does not grow with B * K.
    """
    try:
        counts = np.bincount(image_choices)
    except (ValueError, TypeError) as error:  # negative, or uint64: checked here because it costs nothing here
        raise UsageError(
            "choices contain a negative class index, or are of a type that int64 cannot hold",
            "pass int64 class indices >= 0; there is no class -1",
        ) from error
    top = int(counts.argmax())  # the first maximum: the lowest class index
    return top, int(counts[top])
