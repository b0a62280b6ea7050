"""TRADES (Zhang et al., ICML 2019), without and with adversarial weight perturbation.

The released code evaluates the clean images twice in each update, once for the cross-entropy and once as the target of
the divergence. Both passes give the same logits, so one is enough; the running statistics of batch norm, which would
have moved once a pass, are made to move as far by its momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.adversary import Objective
from flss_edge.losses import kl_of_logits
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes.adversarial import perturbed
from flss_edge.recipes.config import Recipe, TrainConfig

START_SIZE = 0.001  # standard deviation of the attack's start: at the image itself the divergence has no gradient

# Three passes of momentum m = 0.1 over clean, adversarial, clean images turn the statistics r into
#   (1 - m)^3 r + ((1 - m)^2 m + m) clean + (1 - m) m adversarial = 0.729 r + 0.181 clean + 0.09 adversarial.
# Two passes do the same where the second, adversarial one moves by 0.09, and the first one by what leaves 0.729 of r:
# (1 - 0.181 / 0.91) * (1 - 0.09) = 0.729.
ADVERSARIAL_MOMENTUM = batch_norm.MOMENTUM * (1 - batch_norm.MOMENTUM)
CLEAN_MOMENTUM = 1 - (1 - batch_norm.MOMENTUM) ** 3 / (1 - ADVERSARIAL_MOMENTUM)


@dataclass(frozen=True, kw_only=True)
class TradesConfig(TrainConfig):
    """What TRADES adds to the settings.

    Attributes:
        beta: weight of KL(clean || adversarial); 6 in the released code.
    """

    beta: float = 6.0


def attack(network: Network, batch: Minibatch, config: TradesConfig) -> Minibatch:
    """PGD that raises KL(clean || perturbed), from a point close to the image; it needs no labels."""
    start = batch.images + START_SIZE * batch.draws.normal("attack start", *batch.images.shape[1:])
    return perturbed(batch, divergence_from(network, batch.images), start, config)


def divergence_from(network: Network, images: Tensor) -> Objective:
    """Return the objective x -> KL(network(images) || network(x)), summed over the images.

    The first argument is evaluated once and without gradient: a network in eval mode says the same at every step.
    """
    with torch.no_grad():
        clean_logits = network(images)
    return lambda perturbed: len(clean_logits) * kl_of_logits(clean_logits, network(perturbed))


def trades_loss(network: Network, batch: Minibatch, config: TradesConfig) -> dict[str, Tensor]:
    """Return the terms of TRADES; running statistics as after passes over clean, adversarial, clean images."""
    assert batch.perturbed is not None
    return clean_adversarial_clean(network, batch.images, batch.perturbed, batch.labels, config.beta)


def clean_adversarial_clean(
    network: Network, clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float
) -> dict[str, Tensor]:
    """Return the terms of TRADES from one pass over each batch (B, 3, H, W), which counts as the three of its code."""
    with batch_norm.moved_by(network, CLEAN_MOMENTUM):
        clean_logits = network(clean)
    with batch_norm.moved_by(network, ADVERSARIAL_MOMENTUM):
        adversarial_logits = network(adversarial)
    return terms(clean_logits, adversarial_logits, labels, beta)


def trades_awp_loss(network: Network, batch: Minibatch, config: TradesConfig) -> dict[str, Tensor]:
    """Return the same terms; running statistics as after passes over adversarial, clean, clean images."""
    assert batch.perturbed is not None
    adversarial_logits = network(batch.perturbed)
    with batch_norm.moved_by(network, batch_norm.after_passes(2)):
        clean_logits = network(batch.images)
    return terms(clean_logits, adversarial_logits, batch.labels, config.beta)


def terms(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, beta: float) -> dict[str, Tensor]:
    """Return cross-entropy and beta * KL(clean || adversarial) of logits (B, K); gradients flow through both sides."""
    return {
        "clean_cross_entropy": functional.cross_entropy(clean_logits, labels),
        "divergence": beta * kl_of_logits(clean_logits, adversarial_logits),
    }


TRADES = Recipe(
    TradesConfig(recipe="trades", epochs=76, lr_milestones=(74 / 76,), weight_decay=2e-4),
    attack=attack,
    losses=(trades_loss,),
    network={"network": "classifier"},
    source="Zhang et al., ICML 2019 (TRADES), released code; radius and step of the FLSS paper's Table 1",
)

TRADES_AWP = Recipe(
    TradesConfig(
        recipe="trades-awp", epochs=200, lr_milestones=(99 / 200, 149 / 200), awp_gamma=0.005, awp_start=9 / 200
    ),
    attack=attack,
    losses=(trades_awp_loss,),
    network={"network": "classifier"},
    source="Wu et al., NeurIPS 2020 (TRADES-AWP), released code",
)
