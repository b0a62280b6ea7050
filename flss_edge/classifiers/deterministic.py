"""The vote of a linear head without chance: its logits are Gaussian, and a fixed set of points stands for the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from flss_edge.classifiers.answers import Answers, joined
from flss_edge.classifiers.vote import answers_of, soft_shares, vote_policy
from flss_edge.minibatch import Draws
from flss_edge.model import FLSS
from flss_runtime.decision import decide
from flss_runtime.errors import UsageError
from flss_runtime.logit_sampling import JITTERS
from flss_runtime.point_set import PointSetSampling, normal_points

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self

VALUES = 2**24  # logits at a time
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class DeterministicVote:
    """FLSS whose vote is counted at fixed points of the logits' own distribution: no chance, no repeated tries.

    It is the runtime's deterministic sampling, with its points and its code, so that an exported bundle decides the
    same; an image's answer depends on nothing but the image (and rounding). The score of an answer is its votes, 0 to
    N. How close they come to those of a million samples is in benchmarks/results/README.md.

    Attributes:
        network: in eval mode, with a linear head.
        name: in reports.
        num_samples: N, points that vote.
        noise_scale: factor on the standard deviation.
        threshold: an image is accepted iff its score is at least that.

    Raises:
        UsageError: the head has hidden layers.
    """

    network: FLSS
    name: str = "deterministic-vote"
    num_samples: int = 100
    noise_scale: float = 2.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no such distribution."""
        linear_head(self.network)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.network.config.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        """Return the mean path's logits (B, K)."""
        logits: Tensor = self.network(images)
        return logits

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return (S, B, K) at all the S = N points; nothing is random."""
        return self._logits(images).transpose(0, 1)

    def class_scores(self, images: Tensor, samples: int, draws: Draws, name: str, temperature: float) -> Tensor:
        """Return the soft share (B, K) of the points that each class gets; nothing is random."""
        return soft_shares(self._logits(images).transpose(0, 1), temperature)

    @torch.no_grad()
    def answer(self, images: Tensor, first: int) -> Answers:
        """Answer images (B, 3, H, W) by vote; the noise counter plays no part."""
        policy = vote_policy(self.num_samples, self.noise_scale, self.threshold)
        size = max(1, VALUES // (self.num_samples * self.num_classes))
        sampling = PointSetSampling(self.num_samples, self.num_classes)
        answers = []
        for start in range(0, len(images), size):
            gaussian = logit_gaussian(self.network, images[start : start + size])
            mean_logits, covariance = (part.float().cpu().numpy() for part in gaussian)
            answers.append(answers_of(decide(sampling.draw(mean_logits, covariance, self.noise_scale)[1], policy)))
        return joined(answers)

    def with_threshold(self, threshold: float) -> Self:
        """Return this classifier with another threshold."""
        return replace(self, threshold=threshold)

    def _logits(self, images: Tensor) -> Tensor:
        """Return logits (B, N, K), differentiable: the same as the runtime's up to rounding."""
        mean_logits, covariance = logit_gaussian(self.network, images)
        order = (-mean_logits.detach()).argsort(dim=1, stable=True)  # as `leading_first`
        rows = torch.arange(len(images), device=images.device)[:, None]
        ordered = covariance[rows[:, :, None], order[:, :, None], order[:, None]]
        trace = ordered.diagonal(dim1=1, dim2=2).sum(dim=1).detach()
        jitter = (JITTERS[0] * trace + TINY)[:, None].expand(-1, self.num_classes).diag_embed()
        lower: Tensor = torch.linalg.cholesky(ordered + jitter)
        if self.num_classes == 2:  # as the runtime: one coordinate decides
            first, second = functional.normalize(lower[:, 0] - lower[:, 1], dim=1, eps=0).unbind(dim=1)
            turn = torch.stack([torch.stack([first, -second], dim=1), torch.stack([second, first], dim=1)], dim=1)
            lower = lower @ turn
        root = lower.gather(1, order.argsort(dim=1)[:, :, None].expand_as(lower))  # rows in the classes' own order
        points = torch.from_numpy(normal_points(self.num_samples, self.num_classes).copy()).to(images)
        spread = points @ root.transpose(1, 2).to(images.dtype)
        logits: Tensor = mean_logits[:, None] + self.noise_scale * spread
        return logits


def logit_gaussian(network: FLSS, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the logits of an image's samples are distributed by: their mean and, at noise scale 1, covariance.

    Args:
        network: in eval mode, with a linear head W, b.
        images: (B, 3, H, W) float in [0, 1].

    Returns:
        W mean + b, (B, K), and W diag(std^2) W^T, (B, K, K) float64; differentiable.

    Raises:
        UsageError: the head has hidden layers.
    """
    head = linear_head(network)
    mean, logvar = network.encoder(images)
    mean_logits: Tensor = head(mean)
    weight = head.weight.double()
    covariance: Tensor = (weight * logvar.double().exp()[:, None]) @ weight.t()
    return mean_logits, covariance


def win_probability(network: FLSS, images: Tensor, noise_scale: float) -> Tensor:
    """Return (B, K, K) float64: the chance that a sample's logit j is above its logit k, 1/2 for j = k; differentiable.

    Phi((m_j - m_k) / (s * sqrt(sum_i (W_ji - W_ki)^2 std_i^2))), with the mean path's logits m.

    Args:
        network: in eval mode.
        images: (B, 3, H, W) float in [0, 1].
        noise_scale: s, above 0.

    Raises:
        UsageError: the head has hidden layers.
    """
    head = linear_head(network)
    mean, logvar = network.encoder(images)
    logits: Tensor = head(mean).double()
    weight = head.weight.double()
    squares = (weight[:, None] - weight[None]).square()  # (K, K, D)
    variance = torch.einsum("jkd,bd->bjk", squares, logvar.double().exp())
    # The diagonal is 0 / 0; the least of float32's normal numbers gives it, and equal rows of W, a finite gradient.
    deviation = noise_scale * (variance + TINY).sqrt()
    probability: Tensor = torch.special.ndtr((logits[:, :, None] - logits[:, None]) / deviation)
    return probability


def linear_head(network: FLSS) -> nn.Linear:
    """Return the one layer of the head.

    Raises:
        UsageError: the head has hidden layers.
    """
    first = network.head[0]
    if len(network.head) > 1 or not isinstance(first, nn.Linear):
        raise UsageError(
            f"the head has {len(network.config.hidden)} hidden layers, so its logits are not Gaussian",
            "Use the sampled vote, or a network with a linear head.",
        )
    return first
