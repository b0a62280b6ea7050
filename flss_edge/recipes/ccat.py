"""Confidence-calibrated adversarial training (Stutz et al., ICML 2020): less and less sure away from the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.confidence_attack import confidence_attack, gaussian_start, log_wrong_confidence, uniform_norm_start
from flss_edge.minibatch import Draws, Minibatch, seed_of
from flss_edge.model import Network
from flss_edge.recipes.config import Recipe, TrainConfig
from flss_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CCATConfig(TrainConfig):
    """What CCAT adds to the settings; the shared ones describe its attack (flss_edge/confidence_attack.py).

    Attributes:
        rho: how fast the target gets uniform with the distance, in (1 - min(1, distance / epsilon)) ** rho; 10 in the
            paper.
        attack_momentum: of the attack's steps; 0.9 in the paper.
        attack_factor: what an image's step size is divided by where a step would lower its objective; 1.5 in the paper.
    """

    rho: float = 10.0
    attack_momentum: float = 0.9
    attack_factor: float = 1.5

    def __post_init__(self) -> None:
        """Refuse what leaves the target undefined, or lets the step size grow."""
        super().__post_init__()
        if not self.epsilon:
            raise UsageError("epsilon is 0, and CCAT's target depends on distance / epsilon", "Give a radius above 0.")
        if self.attack_momentum >= 1 or self.attack_factor < 1:
            raise UsageError(
                f"attack_momentum is {self.attack_momentum:g} and attack_factor {self.attack_factor:g}",
                "Give a momentum below 1 and a factor of at least 1.",
            )


def attack(network: Network, batch: Minibatch, config: CCATConfig) -> Minibatch:
    """Attack the second half of the mini-batch for confidence in a wrong class; the first half stays clean."""
    half = len(batch.images) // 2
    images, labels = batch.images[half:], batch.labels[half:]
    attacked = confidence_attack(
        log_wrong_confidence(network, labels),
        images,
        _start(batch.images, batch.draws, config.epsilon)[half:],
        epsilon=config.epsilon,
        step_size=config.attack_step_size,
        steps=config.attack_steps,
        factor=config.attack_factor,
        momentum=config.attack_momentum,
    )
    return replace(batch, perturbed=torch.cat([batch.images[:half], attacked]))


def _start(images: Tensor, draws: Draws, epsilon: float) -> Tensor:
    """Return one of three starts, the same one for the whole mini-batch, as released."""
    kind = seed_of(draws.seed, draws.step, "kind of start") % 3  # known to the host: no waiting for the device
    if kind == 0:
        return gaussian_start(images, draws, epsilon)
    return uniform_norm_start(images, draws, epsilon) if kind == 1 else images


def ccat_loss(network: Network, batch: Minibatch, config: CCATConfig) -> dict[str, Tensor]:
    """Return the cross-entropy to the targets, clean and attacked half apart, from one pass over both.

    The two halves have weight 1/2 each; where the number of images is odd, the attacked half has one more, and every
    image the same weight.
    """
    assert batch.perturbed is not None
    logits = network(batch.perturbed)
    distance = (batch.perturbed - batch.images).abs().amax(dim=(1, 2, 3))
    target = targets(batch.labels, distance / config.epsilon, logits.shape[1], config.rho)
    each = -(target * functional.log_softmax(logits, dim=1)).sum(dim=1) / len(logits)
    half = len(logits) // 2
    return {"clean_cross_entropy": each[:half].sum(), "adversarial_cross_entropy": each[half:].sum()}


def targets(labels: Tensor, distance: Tensor, num_classes: int, rho: float) -> Tensor:
    """Return distributions (B, K): one-hot at distance 0, uniform from distance 1 on.

    Args:
        labels: (B,) int64, the true classes.
        distance: (B,) L-infinity norm of each perturbation, divided by epsilon.
        num_classes: K.
        rho: power of the transition.
    """
    certainty = (1 - distance.clamp(max=1))[:, None] ** rho
    true = distance.new_zeros(len(labels), num_classes).scatter(1, labels[:, None], 1.0)
    return certainty * true + (1 - certainty) / num_classes


CCAT = Recipe(
    CCATConfig(
        recipe="ccat",
        epochs=200,
        batch_size=100,
        schedule="exponential",
        peak_lr=0.075,
        lr_final=0.95**200,
        weight_decay=0.0,
        epsilon=0.03,
        attack_steps=40,
        attack_step_size=0.005,
        selection="last",
    ),
    attack=attack,
    losses=(ccat_loss,),
    network={"network": "classifier", "blocks": (3, 3, 3), "width": 64},
    source="Stutz et al., ICML 2020 (CCAT), configuration of the paper in the released code",
)
