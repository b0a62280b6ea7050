"""Accuracy of the mean path in torch: on clean images and under PGD. `flss_runtime.decision` votes and rejects."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flss_edge.adversary import cross_entropy_of, frozen, pgd, uniform_start
from flss_edge.augment import to_float
from flss_edge.data import ImageSet
from flss_edge.model import Network

BATCH = 250


def _nothing() -> None:
    """Do nothing between two batches."""


def accuracy(
    network: Network,
    images: ImageSet,
    *,
    seed: int = 0,
    batch_size: int = BATCH,
    between_batches: Callable[[], None] = _nothing,
) -> float:
    """Return the clean accuracy in [0, 1] of the mean path (the paper's Acc_nat,NS); arguments as `pgd_accuracy`."""
    return _accuracy(network, images, lambda x, y: x, seed, batch_size, between_batches)


def pgd_accuracy(
    network: Network,
    images: ImageSet,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    seed: int = 0,
    batch_size: int = BATCH,
    between_batches: Callable[[], None] = _nothing,
) -> float:
    """Return the accuracy in [0, 1] of the mean path under PGD with a random start.

    The attack differentiates the same mean path (no noise anywhere), as checkpoint selection in the released code does.

    Args:
        network: it is left in eval mode.
        images: what to attack.
        epsilon: radius in pixel units of [0, 1].
        step_size: in the same units.
        steps: gradient steps.
        seed: of the random starts, and of the noise inside a network that has some.
        batch_size: images at a time; on a CPU the random starts do not depend on it.
        between_batches: called after every batch; what it raises ends the measurement.
    """
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        start = uniform_start(x, torch.rand(x.shape, generator=generator, device=device), epsilon)
        objective = cross_entropy_of(network, y)
        return pgd(objective, x, start, epsilon=epsilon, step_size=step_size, steps=steps)

    return _accuracy(network, images, attack, seed, batch_size, between_batches)


def _accuracy(
    network: Network,
    images: ImageSet,
    attack: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    batch_size: int,
    between_batches: Callable[[], None],
) -> float:
    network.eval()
    device = next(network.parameters()).device
    correct = 0
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for the noise inside a network that has some
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images.images[start : start + batch_size]).permute(0, 3, 1, 2).to(device)
            labels = torch.from_numpy(images.labels[start : start + batch_size]).to(device)
            with frozen(network):
                perturbed = attack(to_float(batch), labels)
            with torch.no_grad():
                correct += int((network(perturbed).argmax(dim=1) == labels).sum())
            between_batches()
    return correct / len(images)
