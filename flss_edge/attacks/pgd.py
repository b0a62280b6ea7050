"""Projected gradient descent: on the cross-entropy, on the margin, with many steps and restarts, and in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flss_edge import adversary
from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import Loss, cross_entropy, margin, per_image, strongest, summed
from flss_edge.minibatch import Draws


def fgsm(victim: Victim, images: Tensor, labels: Tensor, *, epsilon: float, draws: Draws) -> Tensor:
    """Attack in one step of epsilon on the cross-entropy, from the image itself; nothing is drawn.

    Source: Goodfellow et al., ICLR 2015.
    """
    objective = summed(per_image(victim, cross_entropy, labels))
    return adversary.pgd(objective, images, images, epsilon=epsilon, step_size=epsilon, steps=1)


def pgd_attack(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 100,
    step_size: float | None = None,
) -> Tensor:
    """Attack the cross-entropy with a fixed step from a uniform start; the last iterate is returned.

    The released evaluation leaves its first point outside [0, 1] where the noise takes it there; ours is projected.
    Source: Madry et al., ICLR 2018; steps and size as the released FLSS evaluation.

    Args:
        victim: what is attacked.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: radius in pixel units of [0, 1].
        draws: of this batch.
        steps: gradient steps.
        step_size: in the units of epsilon; None for epsilon / 4, the published 2/255 at 8/255.
    """
    objective = summed(per_image(victim, cross_entropy, labels))
    size = epsilon / 4 if step_size is None else step_size
    start = _uniform(images, draws, epsilon)
    return adversary.pgd(objective, images, start, epsilon=epsilon, step_size=size, steps=steps)


def pgd_restarts(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 1000,
    step_size: float | None = None,
    restarts: int = 10,
) -> Tensor:
    """Run `pgd_attack` from several starts; each image keeps the end with the largest margin.

    The paper's check that 1,000 steps and ten restarts find little more than 100 steps and one. Arguments as
    `pgd_attack`, and `restarts`, the number of runs.
    """
    objective = summed(per_image(victim, cross_entropy, labels))
    size = epsilon / 4 if step_size is None else step_size
    starts = (_uniform(images, draws, epsilon, f"start {restart}") for restart in range(restarts))
    runs = (adversary.pgd(objective, images, start, epsilon=epsilon, step_size=size, steps=steps) for start in starts)
    return strongest(runs, per_image(victim, margin, labels))


def pgd_cw(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 100,
    step_size: float | None = None,
) -> Tensor:
    """Attack the margin of the logits from a uniform start, with a step that falls to a tenth at 50 % and 75 %.

    The paper's PGD-CW. Arguments as `pgd_attack`, but `step_size` is the first one and None means 2 epsilon, the
    published 16/255 at 8/255. The last iterate is returned.
    """
    start = _uniform(images, draws, epsilon)
    sizes = falling_sizes(2 * epsilon if step_size is None else step_size, steps, (50, 75))
    return scheduled_pgd(victim, lambda step: margin, images, labels, start, epsilon=epsilon, sizes=sizes)


def falling_sizes(first: float, steps: int, drops: tuple[int, ...]) -> list[float]:
    """Return the size of every step, divided by ten once each of the `drops` (percent of all steps) is reached."""
    return [first / 10 ** sum(100 * step >= drop * steps for drop in drops) for step in range(steps)]


def scheduled_pgd(
    victim: Victim,
    loss_at: Callable[[int], Loss],
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    sizes: Sequence[float],
) -> Tensor:
    """Return the last iterate of PGD whose loss and step size depend on the step.

    Args:
        victim: what is attacked.
        loss_at: step, from 0 -> the loss to be raised there.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        start: where to begin, the same shape as the images; projected first.
        epsilon: radius in pixel units of [0, 1].
        sizes: of every step, in the same units; none returns the projected start.
    """
    perturbed = torch.clamp(start, (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))
    for step, size in enumerate(sizes):
        objective = summed(per_image(victim, loss_at(step), labels))
        perturbed = adversary.pgd(objective, images, perturbed, epsilon=epsilon, step_size=size, steps=1)
    return perturbed


def _uniform(images: Tensor, draws: Draws, epsilon: float, name: str = "start") -> Tensor:
    return adversary.uniform_start(images, draws.uniform(name, *images.shape[1:]), epsilon)
