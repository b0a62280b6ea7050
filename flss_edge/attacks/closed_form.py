"""Objectives for the adaptive attacks that need no sampling: the closed form of a linear head, and a cascade's gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import ObjectiveEach
from flss_edge.classifiers.deterministic import linear_head
from flss_edge.model import FLSS
from flss_runtime.errors import UsageError

SMALLEST_DEVIATION = 1e-12  # two classes with equal weights never change places


def closed_form_objective(classifier: object, target: Tensor) -> ObjectiveEach:
    """Return the objective of one target class an image: its smallest pairwise margin, in standard deviations.

    With a linear head the logits of one vote are Gaussian, and class j beats class k with probability
    Phi((m_j - m_k) / sd_jk): m is the mean path's logits, sd_jk the noise scale times the root of
    sum_i (W_ji - W_ki)^2 std_i^2. The least of these margins over k rises with the share of votes that j gets, has no
    noise, and keeps a gradient where every sampled vote agrees.

    Args:
        classifier: one that votes with the samples of an FLSS network (it has a `network` and a `noise_scale`); of a
            cascade, its vote.
        target: (B,) int64.

    Raises:
        UsageError: there is no such network, its head is not linear, or there is no noise.
    """
    network, noise_scale = _linear_vote(classifier)
    head = linear_head(network)
    weight = head.weight.detach()
    difference_squared = (weight[target][:, None] - weight).square()  # (B, K, D)

    def smallest_margin(images: Tensor) -> Tensor:
        mean, logvar = network.encoder(images)
        logits = head(mean)
        variance = torch.einsum("bkd,bd->bk", difference_squared, logvar.exp())
        deviation = noise_scale * variance.clamp_min(SMALLEST_DEVIATION**2).sqrt()
        margins = (logits.gather(1, target[:, None]) - logits) / deviation
        smallest: Tensor = margins.scatter(1, target[:, None], math.inf).min(dim=1).values
        return smallest

    return smallest_margin


def gate_objective(classifier: object, target: Tensor) -> ObjectiveEach:
    """Return the objective of a cascade whose gate is to accept while the mean path says the target class.

    The gate asks only whether its own network is sure, of whatever class; the answer is the mean path's and is never
    rejected. So what rises is the logarithm of the gate's confidence plus that of the target's probability. Far from
    the gate this has a gradient where the cascade's soft scores have none left.

    Args:
        classifier: a cascade: it has a `gate` and a `vote`, both victims.
        target: (B,) int64.

    Raises:
        UsageError: it is not a cascade.
    """
    gate, vote = getattr(classifier, "gate", None), getattr(classifier, "vote", None)
    if not (callable(gate) and callable(vote)):
        raise UsageError(
            f"{_name(classifier)} has no gate to open",
            "Use the objective 'gate' on the cascade only, 'score' elsewhere.",
        )

    def open_and_wrong(images: Tensor) -> Tensor:
        confidence: Tensor = functional.log_softmax(gate(images), dim=1).max(dim=1).values
        answer: Tensor = functional.log_softmax(vote(images), dim=1).gather(1, target[:, None])[:, 0]
        return confidence + answer

    return open_and_wrong


def _linear_vote(classifier: object) -> tuple[FLSS, float]:
    vote = getattr(classifier, "vote", classifier)
    network, noise_scale = getattr(vote, "network", None), getattr(vote, "noise_scale", None)
    if not isinstance(network, FLSS) or noise_scale is None:
        raise UsageError(
            f"{_name(classifier)} does not vote with latent samples, so it has no closed form",
            "Use the objective 'score', which works on every classifier.",
        )
    if not noise_scale > 0:
        raise UsageError(f"noise_scale is {noise_scale}, so there are no votes to part", "Use the objective 'score'.")
    return network, float(noise_scale)


def _name(classifier: object) -> str:
    return str(getattr(classifier, "name", type(classifier).__name__))
