"""A confident gate before the vote: CCAT + FLSS, section 5.4 of the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flss_edge.classifiers.answers import Answers
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote, answers_of
from flss_edge.minibatch import Draws
from flss_runtime.decision import decide_cascade
from flss_runtime.errors import UsageError

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Cascade:
    """Where the gate accepts, the answer is FLSS's class without sampling and is never rejected; elsewhere FLSS votes.

    The score of an answer is its votes, or N + the gate's confidence where the gate accepts; so the vote's threshold is
    the cascade's. Both parts are calibrated by themselves.

    Attributes:
        gate: with its threshold in [0, 1].
        vote: with its threshold.
        name: in reports.
        gate_temperature: of the soft gate that `class_scores` looks through; the harder, the smaller.

    Raises:
        UsageError: the two parts have different numbers of classes.
    """

    gate: Confidence
    vote: Vote
    name: str = "cascade"
    gate_temperature: float = 0.05

    def __post_init__(self) -> None:
        """Refuse parts that do not fit."""
        if self.gate.num_classes != self.vote.num_classes:
            raise UsageError(
                f"the gate has {self.gate.num_classes} classes and FLSS {self.vote.num_classes}",
                "Give two networks that were trained on the same classes.",
            )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.vote.num_classes

    @property
    def threshold(self) -> float:
        """Votes that an image needs where the gate does not accept."""
        return self.vote.threshold

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of FLSS's mean path."""
        return self.vote(images)

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return those of the vote, (S, B, K); the gate has no part in them."""
        return self.vote.sampled_logits(images, samples, draws, name)

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return (B, K), end to end: g * softmax of the mean path + (1 - g) * soft share of the votes.

        g = sigmoid((confidence of the gate - its threshold) / gate_temperature).
        """
        confidence = self.gate(images).softmax(dim=1).amax(dim=1)
        gate = torch.sigmoid((confidence - self.gate.threshold) / self.gate_temperature)[:, None]
        shares = self.vote.class_scores(images, samples, draws, name, temperature)
        return gate * self(images).softmax(dim=1) + (1 - gate) * shares

    @torch.no_grad()
    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W); image i has noise counter first + i, whether it comes to a vote or not."""
        confidence = self.gate.answer(images, first).scores
        policy = replace(self.vote.policy, min_confidence=self.gate.threshold)
        mean_choices = self(images).argmax(dim=1).cpu().numpy()
        decisions = decide_cascade(self.vote.choices(images, first), policy, confidence, mean_choices)
        answers = answers_of(decisions)
        gated = np.array([decision.gated for decision in decisions], np.bool_)
        scores = np.where(gated, self.vote.num_samples + confidence, answers.scores)
        return Answers(answers.labels, scores, answers.accepted)

    def with_threshold(self, threshold: float) -> Self:
        """Return this cascade with another threshold of the vote."""
        return replace(self, vote=self.vote.with_threshold(threshold))
