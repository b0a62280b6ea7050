"""Standard training, and adversarial training with PGD (Madry et al., ICLR 2018), without and with AWP."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import Objective, cross_entropy_of, pgd, uniform_start
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes.config import Recipe, TrainConfig


def attack(network: Network, batch: Minibatch, config: TrainConfig) -> Minibatch:
    """PGD from a random point of the ball that raises the cross-entropy of the true classes."""
    return perturbed(batch, cross_entropy_of(network, batch.labels), random_start(batch, config), config)


def random_start(batch: Minibatch, config: TrainConfig) -> Tensor:
    """Return a uniform random point (n, 3, H, W) of the ball around each image."""
    return uniform_start(batch.images, batch.draws.uniform("attack start", *batch.images.shape[1:]), config.epsilon)


def perturbed(batch: Minibatch, objective: Objective, start: Tensor, config: TrainConfig) -> Minibatch:
    """Return the mini-batch with its images moved by PGD, with the steps and the radius of the settings.

    Args:
        batch: whose images (n, 3, H, W) are the centres.
        objective: what to raise, a sum over the images.
        start: (n, 3, H, W), where to begin; projected first.
        config: epsilon, step size and number of steps.
    """
    moved = pgd(
        objective,
        batch.images,
        start,
        epsilon=config.epsilon,
        step_size=config.attack_step_size,
        steps=config.attack_steps,
    )
    return replace(batch, perturbed=moved)


def clean_loss(network: Network, batch: Minibatch, config: TrainConfig) -> dict[str, Tensor]:
    """Return the cross-entropy of the clean images."""
    return {"cross_entropy": functional.cross_entropy(network(batch.images), batch.labels)}


def adversarial_loss(network: Network, batch: Minibatch, config: TrainConfig) -> dict[str, Tensor]:
    """Return the cross-entropy of the attacked images; the network never sees the clean ones."""
    assert batch.perturbed is not None
    return {"adversarial_cross_entropy": functional.cross_entropy(network(batch.perturbed), batch.labels)}


STANDARD = Recipe(
    TrainConfig(recipe="standard", lr_milestones=(100 / 110, 105 / 110), selection="clean"),
    losses=(clean_loss,),
    network={"network": "classifier"},
    source="no attack; optimiser and schedule of pgd-at, so that the two differ in the attack only",
)

PGD_AT = Recipe(
    TrainConfig(recipe="pgd-at", lr_milestones=(100 / 110, 105 / 110)),
    attack=attack,
    losses=(adversarial_loss,),
    network={"network": "classifier"},
    source="Pang et al., ICLR 2021 (Bag of Tricks for AT), released code's baseline command",
)

AT_AWP = replace(
    PGD_AT,
    config=TrainConfig(recipe="at-awp", epochs=200, lr_milestones=(100 / 200, 150 / 200), awp_gamma=0.01),
    source="Wu et al., NeurIPS 2020 (AT-AWP), released code as found in its copies",
)
