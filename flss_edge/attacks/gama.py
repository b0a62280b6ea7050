"""GAMA-PGD and GAMA-MT: the margin of the probabilities, at first relaxed by a squared distance from the start.

Source: Sriramanan et al., NeurIPS 2020, and the settings of the released FLSS evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flss_edge.attacks import Victim
from flss_edge.attacks.objectives import Loss, other_classes, over_draws, softmax_margin, targeted_softmax_margin
from flss_edge.attacks.pgd import falling_sizes, scheduled_pgd
from flss_edge.minibatch import Draws
from flss_runtime.errors import UsageError

RELAXATION = 50.0  # lambda of the first step
DROPS = (60, 85)  # percent of the steps after which the step size falls to a tenth


def gama_pgd(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 100,
    step_size: float | None = None,
) -> Tensor:
    """Attack max p_other - p_true + lambda * |p(start) - p|^2 from random corners of the ball; the last iterate counts.

    lambda falls linearly from 50 to 0 within the first quarter of the steps: 50, 48, ... 2 in 25 of 100. The distance
    is from the probabilities at the noisy start, as in the released code, not from those of the image.

    Args:
        victim: what is attacked.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: radius in pixel units of [0, 1].
        draws: of this batch.
        steps: gradient steps.
        step_size: the first one, in the units of epsilon, a tenth from 60 % and a hundredth from 85 % of the steps on;
            None for 2 epsilon, the published 16/255 at 8/255.
    """
    return gama_mt(victim, images, labels, epsilon=epsilon, draws=draws, steps=steps, step_size=step_size)


def gama_mt(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    draws: Draws,
    steps: int = 100,
    step_size: float | None = None,
    rank: int | None = None,
) -> Tensor:
    """Attack as `gama_pgd` does, with p_target - p_true in place of the margin; one run of the paper's five.

    The released code counts ranks among all classes: where the clean image is misclassified, one of its targets is the
    true class and that run has no gradient. Here ranks are counted among the other classes, so every run attacks.

    Args:
        victim: what is attacked.
        images: (B, 3, H, W) float in [0, 1].
        labels: (B,) int64.
        epsilon: radius in pixel units of [0, 1].
        draws: of this batch.
        steps: gradient steps.
        step_size: as for `gama_pgd`.
        rank: the target is the clean image's likeliest other class for 2, and so on to 5; the least likely one where
            there are fewer. None for the untargeted margin.

    Raises:
        UsageError: the rank is below 2.
    """
    loss = softmax_margin if rank is None else targeted_softmax_margin(_ranked(victim, images, labels, rank))
    signs = torch.where(draws.uniform("start", *images.shape[1:]) < 0.5, -1.0, 1.0)
    start = (images + epsilon * signs).clamp(0, 1)
    with torch.no_grad():
        anchor = over_draws(victim(start).softmax(dim=-1), dims=2)
    weights = relaxation_weights(steps)
    sizes = falling_sizes(2 * epsilon if step_size is None else step_size, steps, DROPS)
    return scheduled_pgd(
        victim, lambda step: relaxed(loss, anchor, weights[step]), images, labels, start, epsilon=epsilon, sizes=sizes
    )


def relaxation_weights(steps: int) -> list[float]:
    """Return lambda at every step."""
    return [RELAXATION * max(0.0, 1 - 4 * step / steps) for step in range(steps)]


def relaxed(loss: Loss, anchor: Tensor, weight: float) -> Loss:
    """Return loss + weight * sum over classes of (anchor - p)^2, for probabilities `anchor` (B, K)."""
    if weight == 0:
        return loss

    def sum_of_both(logits: Tensor, labels: Tensor) -> Tensor:
        distance = (anchor - logits.softmax(dim=-1)).square().sum(dim=-1)
        return loss(logits, labels) + weight * distance

    return sum_of_both


def _ranked(victim: Victim, images: Tensor, labels: Tensor, rank: int) -> Tensor:
    if rank < 2:
        raise UsageError(
            f"gama_mt has no rank {rank}", "Use 2 for the likeliest other class, 3 for the next, and so on."
        )
    others = other_classes(victim, images, labels)
    return others[:, min(rank - 2, others.shape[1] - 1)]
