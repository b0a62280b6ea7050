"""Projected gradient descent in the L-infinity ball, for training and for checkpoint selection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def pgd(
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return images moved to raise the cross-entropy, inside the epsilon ball and [0, 1].

    Starts at a uniform random point of the ball, clamped to [0, 1]; each step follows the gradient's sign and projects
    to the ball, then to [0, 1]; the last iterate is returned. No gradient of any weight is computed or kept.

    Args:
        logits_of: images (B, 3, H, W) -> logits (B, K). Whatever noise it uses is its own affair.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64, the true classes.
        epsilon: radius in pixel units of [0, 1], e.g. 8/255.
        step_size: in the same units.
        steps: number of gradient steps; 0 returns the random start.
        generator: source of the start, on the images' device.
    """
    lower, upper = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    start = torch.empty_like(images).uniform_(-epsilon, epsilon, generator=generator)
    perturbed = torch.clamp(images + start, lower, upper)
    for _ in range(steps):
        perturbed.requires_grad_(True)
        loss = functional.cross_entropy(logits_of(perturbed), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = torch.clamp(perturbed.detach() + step_size * gradient.sign(), lower, upper)
    return perturbed.detach()
