"""Accuracy of the mean path in torch: on clean images and under PGD. `flss_runtime.decision` votes and rejects."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flss_edge.adversary import pgd
from flss_edge.augment import to_float
from flss_edge.data import ImageSet
from flss_edge.model import FLSS

BATCH = 250


def accuracy(model: FLSS, images: ImageSet) -> float:
    """Return the clean accuracy in [0, 1] of the mean path (the paper's Acc_nat,NS)."""
    return _accuracy(model, images, lambda x, y: x)


def pgd_accuracy(
    model: FLSS, images: ImageSet, *, epsilon: float, step_size: float, steps: int, seed: int = 0
) -> float:
    """Return the accuracy in [0, 1] of the mean path under PGD with a random start.

    The attack differentiates the same mean path (no noise anywhere), as checkpoint selection in the released code does.

    Args:
        model: the network; it is left in eval mode.
        images: what to attack.
        epsilon: radius in pixel units of [0, 1].
        step_size: in the same units.
        steps: gradient steps.
        seed: of the random starts.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return pgd(model, x, y, epsilon=epsilon, step_size=step_size, steps=steps, generator=generator)

    return _accuracy(model, images, attack)


def _accuracy(model: FLSS, images: ImageSet, attack: Callable[[Tensor, Tensor], Tensor]) -> float:
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images.images[start : start + BATCH]).permute(0, 3, 1, 2).to(device)
        labels = torch.from_numpy(images.labels[start : start + BATCH]).to(device)
        perturbed = attack(to_float(batch), labels)
        with torch.no_grad():
            correct += int((model(perturbed).argmax(dim=1) == labels).sum())
    return correct / len(images)
