"""Votes over noisy copies of the image: PGD(Noise) and TRADES(Noise) of the paper, and randomized smoothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flss_edge.classifiers.answers import Answers, IntArray
from flss_edge.classifiers.vote import answers_of, choices_of, soft_shares, vote_policy
from flss_edge.minibatch import Draws
from flss_edge.model import Network
from flss_runtime.decision import SmoothingPolicy, decide

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self

COPIES = 500  # in one pass through the network
ALPHA = 0.001  # of the test of randomized smoothing


@dataclass(frozen=True, eq=False)
class PixelSampling(ABC):
    """What the classifiers with noisy copies of the image have in common; they differ in the noise and the score.

    Attributes:
        network: in eval mode.
        name: in reports.
        num_samples: N, copies of an image.
        threshold: an image is accepted iff its score is at least that.
        seed: of the noise; an image's noise depends on this and its counter only.
    """

    network: Network
    name: str
    num_samples: int = 100
    threshold: float = 0.0
    seed: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.network.config.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of the images themselves."""
        logits: Tensor = self.network(images)
        return logits

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return (S, B, K) as the protocol says: each draw is a pass through the network."""
        noisy = (images + self._noise(draws, f"{name} {sample}", images) for sample in range(samples))
        return torch.stack([self(copies) for copies in noisy])

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return the soft share (B, K) of the votes that each class gets; as the protocol says."""
        return soft_shares(self.sampled_logits(images, samples, draws, name), temperature)

    def with_threshold(self, threshold: float) -> Self:
        """Return this classifier with another threshold."""
        return replace(self, threshold=threshold)

    @torch.no_grad()
    def _choices(self, images: Tensor, first: int) -> IntArray:
        """Return the class (B, N) that each copy votes for."""
        choices = np.empty((len(images), self.num_samples), np.int64)
        for row, image in enumerate(images):
            draws = Draws(self.seed, first + row, self.num_samples, slice(None), images.device, images.dtype)
            copies = image + self._noise(draws, "copies", image[None])  # (N, 3, H, W)
            parts = [copies[start : start + COPIES] for start in range(0, self.num_samples, COPIES)]
            choices[row] = choices_of(torch.cat([self(part) for part in parts])[None])
        return choices

    @abstractmethod
    def _noise(self, draws: Draws, name: str, images: Tensor) -> Tensor:
        """Return noise for one copy of each of the draws' images; only shape and type of `images` matter."""


@dataclass(frozen=True, eq=False)
class PixelNoiseVote(PixelSampling):
    """The network votes over copies of the image, each with uniform noise of its own on every pixel.

    The score of an answer is its votes, 0 to N. Source: the noisy baselines of the paper, 100 copies with noise in
    [-32/255, 32/255] at inference only. The paper does not say that noisy copies are clipped to [0, 1], so they are
    not.

    Attributes:
        radius: of the noise, in pixel units of [0, 1].
    """

    name: str = "pixel-noise-vote"
    radius: float = 32 / 255

    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) by vote; image i has noise counter first + i."""
        policy = vote_policy(self.num_samples, self.radius, self.threshold)
        return answers_of(decide(self._choices(images, first), policy))

    def _noise(self, draws: Draws, name: str, images: Tensor) -> Tensor:
        return self.radius * (2 * draws.uniform(name, *images.shape[1:]).to(images) - 1)


@dataclass(frozen=True, eq=False)
class Smoothing(PixelSampling):
    """Randomized smoothing's prediction: Gaussian noise, a vote, and a test whether its winner is the likeliest class.

    The test is two-sided, on the two highest counts. With its p-value p the score of an answer is 1 - p, and the
    threshold 1 - alpha.

    Source: Cohen et al., ICML 2019 (PREDICT). Its noise is not clipped to [0, 1], nor is that of the training.

    Attributes:
        sigma: standard deviation of the noise, in pixel units of [0, 1]: that of the training.
    """

    name: str = "smoothing"
    threshold: float = 1 - ALPHA
    sigma: float = 0.25

    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) by vote and test; image i has noise counter first + i."""
        choices = self._choices(images, first)
        labels = answers_of(decide(choices, SmoothingPolicy(self.num_samples, self.sigma))).labels
        scores = np.array([1 - two_sided_p(*_two_highest(row)) for row in choices], np.float64)
        return Answers(labels, scores, scores >= self.threshold)

    def _noise(self, draws: Draws, name: str, images: Tensor) -> Tensor:
        return self.sigma * draws.normal(name, *images.shape[1:]).to(images)


def _two_highest(image_choices: IntArray) -> tuple[int, int]:
    counts = np.sort(np.bincount(image_choices, minlength=2))
    return int(counts[-1]), int(counts[-2])


@cache
def two_sided_p(first: int, second: int) -> float:
    """Return the p-value of two counts of a fair coin, two-sided and exact, in (0, 1].

    It is the chance that the counts of as many throws differ by at least as much, in either direction.
    """
    throws, larger = first + second, max(first, second)
    if first == second:
        return 1.0
    tail = sum(math.comb(throws, heads) for heads in range(larger, throws + 1))
    return float(Fraction(2 * tail, 2**throws))
