"""Projected gradient descent for training and for checkpoint selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Objective: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> a sum over the images, each term depending on its own image only."""

ObjectiveEach: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> (B,), each value depending on its own image only."""


def pgd(objective: Objective, images: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int) -> Tensor:
    """Return images moved to raise `objective`, inside the L-infinity ball of radius epsilon and [0, 1].

    Each step follows the gradient's sign and projects to the ball, then to [0, 1]; the last iterate is returned. No
    gradient of any weight is computed or kept.

    Args:
        objective: images (B, 3, H, W) -> a sum over the images, each term depending on its own image only.
        images: (B, 3, H, W) float in [0, 1], the centre of the ball.
        start: where to begin, the same shape; projected first.
        epsilon: radius in pixel units of [0, 1], e.g. 8/255.
        step_size: in the same units.
        steps: number of gradient steps; 0 returns the projected start.
    """
    lower, upper = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    perturbed = torch.clamp(start, lower, upper)
    for _ in range(steps):
        gradient = input_gradient(objective, perturbed)
        perturbed = torch.clamp(perturbed + step_size * gradient.sign(), lower, upper)
    return perturbed


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let no weight of the network want a gradient within the block.

    Autograd leaves out what nobody asked for; a compiled backward pass computes it all, unless it is frozen.
    """
    thawed = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def input_gradient(objective: Objective, images: Tensor) -> Tensor:
    """Return the gradient (B, 3, H, W) of `objective` at the images, computing none of any weight."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(images), images)
    return gradient


def value_and_gradient(objective: ObjectiveEach, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return every image's objective (B,) and its gradient (B, 3, H, W); no weight gets any."""
    images = images.detach().requires_grad_(True)
    values = objective(images)
    (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient


def spread(each: Tensor) -> Tensor:
    """Return one number an image (B,) as (B, 1, 1, 1)."""
    return each[:, None, None, None]


def cross_entropy_of(logits_of: Callable[[Tensor], Tensor], labels: Tensor) -> Objective:
    """Return the objective of the usual attack: the cross-entropy of the true classes, summed over the images."""
    return lambda images: functional.cross_entropy(logits_of(images), labels, reduction="sum")


def uniform_start(images: Tensor, numbers: Tensor, epsilon: float) -> Tensor:
    """Return a point of the ball around each image, from numbers (B, 3, H, W) uniform in [0, 1)."""
    return images + epsilon * (2 * numbers - 1)
