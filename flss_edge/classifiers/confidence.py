"""Confidence thresholding without sampling: the baselines, and the control for FLSS itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flss_edge.classifiers.answers import Answers
from flss_edge.minibatch import Draws, seed_of
from flss_edge.model import Network
from flss_runtime.decision import confidences

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Confidence:
    """The answer is the class with the highest logit, its score the probability of that class.

    Scores are computed in float64, where those of a very sure network still differ.

    A network with noise in its weights (PNI) draws them once for all images of a call, from torch's global generator;
    `answer` and `sampled_logits` seed it and put it back. Its answers depend on which images come together.

    Attributes:
        network: in eval mode.
        name: in reports.
        threshold: an image is accepted iff its probability is at least that.
        seed: of the noise inside the network, if it has any.
    """

    network: Network
    name: str = "confidence"
    threshold: float = 0.0
    seed: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.network.config.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's logits (B, K)."""
        logits: Tensor = self.network(images)
        return logits

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return (S, B, K) as the protocol says; S = 1 where nothing is random."""
        if not self.network.config.weight_noise:
            return self(images)[None]
        logits = []
        for sample in range(samples):
            with seeded(seed_of(draws.seed, draws.step, f"{name} {sample}"), images.device):
                logits.append(self(images))
        return torch.stack(logits)

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return the probabilities (B, K), averaged over draws where there are any, whatever the temperature."""
        return self.sampled_logits(images, samples, draws, name).softmax(dim=2).mean(dim=0)

    @torch.no_grad()
    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W); `first` chooses the noise inside the network, if it has any."""
        with seeded(seed_of(self.seed, first, "weight noise"), images.device):
            logits = self(images)
        scores = confidences(logits.cpu().numpy())
        return Answers(logits.argmax(dim=1).cpu().numpy(), scores, scores >= self.threshold)

    def with_threshold(self, threshold: float) -> Self:
        """Return this classifier with another threshold."""
        return replace(self, threshold=threshold)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within the block, and put them back as they were after it.

    Only those that a network on `device` draws from: torch.manual_seed would also seed every other device.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
