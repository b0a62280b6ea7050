"""FLSS with its vote, and the variant that averages the samples' probabilities instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flss_edge.classifiers.answers import Answers, IntArray, joined
from flss_edge.classifiers.latent_sampling import LatentSampling
from flss_edge.minibatch import Draws
from flss_runtime.decision import Decision, SmoothingPolicy, decide


@dataclass(frozen=True, eq=False)
class Vote(LatentSampling):
    """FLSS as in the paper: the samples vote, and an image needs `threshold` votes.

    The score of an answer is its votes, 0 to N. With fresh noise, the noise of counter c is that of the runtime's
    `SeededNoise(seed)`, so an exported bundle decides the same.
    """

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return the soft share (B, K) of the votes that each class gets; as the protocol says."""
        return soft_shares(self.sampled_logits(images, samples, draws, name), temperature)

    @torch.no_grad()
    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) by vote; image i has noise counter first + i."""
        return answers_of(decide(self.choices(images, first), self.policy))

    @property
    def policy(self) -> SmoothingPolicy:
        """The runtime's policy that decides the same."""
        return vote_policy(self.num_samples, self.noise_scale, self.threshold)

    @torch.no_grad()
    def choices(self, images: Tensor, first: int) -> IntArray:
        """Return the class (B, N) that each sample of images (B, 3, H, W) votes for, from noise counter `first` on."""
        chunks = [choices_of(logits) for logits in self._answer_logits(images, first)]
        return np.concatenate([np.empty((0, self.num_samples), np.int64), *chunks])


@dataclass(frozen=True, eq=False)
class MeanSoftmax(LatentSampling):
    """FLSS without a vote: the answer is the class of the highest probability averaged over the samples, its score."""

    name: str = "mean-softmax"

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return the mean probabilities (B, K), whatever the temperature; as the protocol says."""
        return soft_shares(self.sampled_logits(images, samples, draws, name), 1.0)

    @torch.no_grad()
    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) by their mean probabilities; image i has noise counter first + i."""
        means = [logits.double().softmax(dim=2).mean(dim=1) for logits in self._answer_logits(images, first)]
        return joined([answers_of_probabilities(mean, self.threshold) for mean in means])


def choices_of(logits: Tensor) -> IntArray:
    """Return the class (B, N) each sample votes for, of logits (B, N, K); the lowest index wins a tie."""
    choices: IntArray = logits.argmax(dim=2).cpu().numpy()
    return choices


def soft_shares(logits: Tensor, temperature: float) -> Tensor:
    """Return (B, K): the mean over S of softmax(logits / temperature), of logits (S, B, K)."""
    return (logits / temperature).softmax(dim=2).mean(dim=0)


def vote_policy(num_samples: int, noise_scale: float, threshold: float) -> SmoothingPolicy:
    """Return the runtime's policy that accepts from `threshold` votes on.

    Raises:
        UsageError: the threshold is above the number of samples.
    """
    min_votes = math.ceil(min(max(threshold, 0), num_samples + 1))  # an infinite one is told so by the policy
    return SmoothingPolicy(num_samples, noise_scale, min_votes)


def answers_of(decisions: Sequence[Decision]) -> Answers:
    """Return the runtime's decisions about valid images as answers, scored by their votes."""
    return Answers(
        np.array([decision.top_label for decision in decisions], np.int64),
        np.array([decision.votes for decision in decisions], np.float64),
        np.array([decision.accepted for decision in decisions], np.bool_),
    )


def answers_of_probabilities(probabilities: Tensor, threshold: float) -> Answers:
    """Return the answers of probabilities (B, K) float64: the most probable class, scored by its probability."""
    scores, labels = (values.cpu().numpy() for values in probabilities.max(dim=1))
    return Answers(labels, scores, scores >= threshold)
