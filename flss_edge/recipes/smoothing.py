"""Training for randomized smoothing: Gaussian noise on the images (Cohen et al., ICML 2019), and with TRADES on top."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import Objective, input_gradient
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes.config import Recipe, TrainConfig
from flss_edge.recipes.trades import START_SIZE, TradesConfig, clean_adversarial_clean, divergence_from


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig(TrainConfig):
    """What Gaussian noise adds to the settings. Epsilon serves the measured PGD accuracy only.

    Attributes:
        sigma: standard deviation of the noise, in pixel units of [0, 1]. The source trains with 0.12, 0.25, 0.5 and 1;
            100,000 samples certify up to 3.8 sigma, so that 0.25 reaches an L2 radius of 0.95.
    """

    sigma: float = 0.25


@dataclass(frozen=True, kw_only=True)
class SmoothingTradesConfig(TradesConfig):
    """What noise and an L2 attack add to TRADES. Epsilon serves the measured PGD accuracy only.

    Attributes:
        sigma: standard deviation of the noise, in pixel units of [0, 1]; 0.12 in the source.
        l2_radius: of the attack; 0.435 in the source, the L2 norm of 2/255 in each of 3,072 values. The attack's step
            size is in L2 too: two radii divided by the number of steps, in the source.
    """

    sigma: float = 0.12
    l2_radius: float = 0.435


def noise_loss(network: Network, batch: Minibatch, config: SmoothingConfig) -> dict[str, Tensor]:
    """Return the cross-entropy of the noisy images, which may leave [0, 1]."""
    noisy = batch.images + _noise(batch, config.sigma)
    return {"noisy_cross_entropy": functional.cross_entropy(network(noisy), batch.labels)}


def attack(network: Network, batch: Minibatch, config: SmoothingTradesConfig) -> Minibatch:
    """PGD in the L2 ball that raises KL(noisy image || noisy perturbed image), with the loss's noise in both."""
    noise = _noise(batch, config.sigma)
    divergence = divergence_from(network, batch.images + noise)
    perturbed = pgd_l2(
        lambda images: divergence(images + noise),
        batch.images,
        batch.images + START_SIZE * batch.draws.normal("attack start", *batch.images.shape[1:]),
        radius=config.l2_radius,
        step_size=config.attack_step_size,
        steps=config.attack_steps,
    )
    return replace(batch, perturbed=perturbed)


def noise_trades_loss(network: Network, batch: Minibatch, config: SmoothingTradesConfig) -> dict[str, Tensor]:
    """Return the terms of TRADES, clean and attacked images under one noise."""
    assert batch.perturbed is not None
    noise = _noise(batch, config.sigma)
    return clean_adversarial_clean(network, batch.images + noise, batch.perturbed + noise, batch.labels, config.beta)


def pgd_l2(
    objective: Objective, images: Tensor, start: Tensor, *, radius: float, step_size: float, steps: int
) -> Tensor:
    """Return images moved to raise `objective`, inside the L2 ball around each image and [0, 1].

    Each step has the length `step_size` along the gradient; then come [0, 1] and last the ball. The ball shortens the
    way back to the image, which ends in [0, 1], so both hold afterwards. Without a gradient an image stays.

    Args:
        objective: images (B, 3, H, W) -> a sum over the images, each term depending on its own image only.
        images: (B, 3, H, W) float in [0, 1], the centres of the balls.
        start: where to begin, the same shape; the first gradient is taken there, as released.
        radius: L2 norm over an image's values, in pixel units of [0, 1].
        step_size: in the same units.
        steps: number of gradient steps; 0 returns the start.
    """
    smallest = torch.finfo(images.dtype).tiny
    perturbed = start
    for _ in range(steps):
        gradient = input_gradient(objective, perturbed)
        moved = perturbed + step_size * gradient / _norms(gradient).clamp(min=smallest)
        delta = moved.clamp(0, 1) - images
        perturbed = images + delta * (radius / _norms(delta).clamp(min=max(radius, smallest)))
    return perturbed.clamp(0, 1)


def _norms(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True)
    return norms


def _noise(batch: Minibatch, sigma: float) -> Tensor:
    return sigma * batch.draws.normal("smoothing", *batch.images.shape[1:])


RESNET110 = {"network": "classifier", "blocks": (18, 18, 18), "width": 16}

RS = Recipe(
    SmoothingConfig(
        recipe="rs", epochs=90, batch_size=400, lr_milestones=(30 / 90, 60 / 90), weight_decay=1e-4, selection="last"
    ),
    losses=(noise_loss,),
    network=RESNET110,
    source="Cohen et al., ICML 2019 (randomized smoothing), released code",
)

RS_TRADES = Recipe(
    SmoothingTradesConfig(
        recipe="rs-trades",
        epochs=55,
        batch_size=256,
        lr_milestones=(50 / 55,),
        weight_decay=1e-4,
        attack_steps=10,
        attack_step_size=2 * 0.435 / 10,
        selection="last",
    ),
    attack=attack,
    losses=(noise_trades_loss,),
    network=RESNET110,
    source="Blum et al., JMLR 2020 (TRADES for randomized smoothing), released code",
)
