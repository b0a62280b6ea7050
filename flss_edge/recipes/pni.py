"""Parametric noise injection (He et al., CVPR 2019): learned noise in the weights, clean and adversarial images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import cross_entropy_of
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes.adversarial import perturbed, random_start
from flss_edge.recipes.config import Recipe, TrainConfig
from flss_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PNIConfig(TrainConfig):
    """What PNI adds to the settings. The noise itself is in flss_edge/weight_noise.py.

    Attributes:
        adversarial_start: when the attack begins; clean images only before. 5 of 160 epochs in the released code.
        adversarial_weight: of the attacked images' cross-entropy from then on, the clean images having the rest; 1/2
            in the released code.
    """

    adversarial_start: float = 5 / 160
    adversarial_weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a negative weight of the clean images."""
        super().__post_init__()
        if self.adversarial_weight > 1:
            raise UsageError(f"adversarial_weight is {self.adversarial_weight:g}", "Give a share between 0 and 1.")


def attack(network: Network, batch: Minibatch, config: PNIConfig) -> Minibatch:
    """PGD away from the network's own answers, new noise in the weights at every step.

    The released code takes these answers from the training pass over the clean images; here a pass in eval mode gives
    them, the mode that the attack itself runs in.
    """
    if batch.progress < config.adversarial_start:
        return batch
    with torch.no_grad():
        answers = network(batch.images).argmax(dim=1)
    return perturbed(batch, cross_entropy_of(network, answers), random_start(batch, config), config)


def pni_loss(network: Network, batch: Minibatch, config: PNIConfig) -> dict[str, Tensor]:
    """Return the cross-entropy of the true classes, clean and attacked, each under noise of its own."""
    clean = functional.cross_entropy(network(batch.images), batch.labels)
    if batch.perturbed is None:
        return {"clean_cross_entropy": clean}
    adversarial = functional.cross_entropy(network(batch.perturbed), batch.labels)
    weight = config.adversarial_weight
    return {"clean_cross_entropy": (1 - weight) * clean, "adversarial_cross_entropy": weight * adversarial}


PNI = Recipe(
    PNIConfig(
        recipe="pni",
        epochs=160,
        lr_milestones=(80 / 160, 120 / 160),
        nesterov=True,
        weight_decay=3e-4,
        epsilon=0.031,
        attack_steps=7,
        attack_step_size=0.01,
    ),
    attack=attack,
    losses=(pni_loss,),
    network={"network": "classifier", "blocks": (3, 3, 3), "width": 16, "weight_noise": True},
    source="He et al., CVPR 2019 (PNI-W, channel-wise), released code",
)
