"""What attacks raise: losses of the logits, image by image, averaged over a random model's draws.

Sources: cross-entropy (Madry et al., ICLR 2018); the margin of Carlini and Wagner, S&P 2017; DLR, plain and targeted
(Croce and Hein, ICML 2020); the margin of the probabilities (Sriramanan et al., NeurIPS 2020, GAMA).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import Objective, ObjectiveEach, spread
from flss_edge.attacks import Victim

SMALLEST_SPREAD = 1e-12  # added to DLR's denominator, as AutoAttack does

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits (..., B, K) and the true labels (B,) int64 -> (..., B), to be raised."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log p_true."""
    return -_of(functional.log_softmax(logits, dim=-1), labels)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus the true one: above 0 where the answer is wrong."""
    return _without(logits, labels).max(dim=-1).values - _of(logits, labels)


def targeted_margin(target: Tensor) -> Loss:
    """Return the loss z_target - z_true, for a target class (B,) of each image."""
    return lambda logits, labels: _of(logits, target) - _of(logits, labels)


def softmax_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the margin of the probabilities, in [-1, 1]."""
    return margin(logits.softmax(dim=-1), labels)


def targeted_softmax_margin(target: Tensor) -> Loss:
    """Return the loss p_target - p_true, for a target class (B,) of each image."""
    return lambda logits, labels: targeted_margin(target)(logits.softmax(dim=-1), labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio, margin / (z_1 - z_3), z_1 >= z_2 >= ... the sorted logits.

    Two classes have no third logit, and z_1 - z_2 would make it constant: there it is the margin.
    """
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    highest = logits.topk(3, dim=-1).values
    return margin(logits, labels) / (highest[..., 0] - highest[..., 2] + SMALLEST_SPREAD)


def targeted_dlr(target: Tensor) -> Loss:
    """Return the loss (z_target - z_true) / (z_1 - (z_3 + z_4) / 2), for a target class (B,) of each image.

    With three classes the denominator is z_1 - z_3, with two it is 1.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        difference = targeted_margin(target)(logits, labels)
        if logits.shape[-1] < 3:
            return difference
        highest = logits.topk(min(4, logits.shape[-1]), dim=-1).values
        return difference / (highest[..., 0] - highest[..., 2:].mean(dim=-1) + SMALLEST_SPREAD)

    return loss


def per_image(victim: Victim, loss: Loss, labels: Tensor) -> ObjectiveEach:
    """Return the objective images (B, 3, H, W) -> (B,): the loss, averaged over the draws where the victim has some."""

    def objective(images: Tensor) -> Tensor:
        return over_draws(loss(victim(images), labels))

    return objective


def over_draws(values: Tensor, dims: int = 1) -> Tensor:
    """Return the mean over the leading axis of draws, where there is one: where `values` has more than `dims` axes."""
    return values.mean(dim=0) if values.dim() > dims else values


def summed(objective: ObjectiveEach) -> Objective:
    """Return the objective of all images together, as `flss_edge.adversary.pgd` wants it."""
    return lambda images: objective(images).sum()


def other_classes(victim: Victim, images: Tensor, labels: Tensor) -> Tensor:
    """Return every image's K - 1 wrong classes (B, K - 1), by falling logit; of equal ones the lower class first.

    A random victim's logits are averaged over its draws.
    """
    with torch.no_grad():
        logits = over_draws(victim(images), dims=2)
    ordered = logits.argsort(dim=1, descending=True, stable=True)
    return ordered[ordered != labels[:, None]].reshape(len(labels), -1)


def strongest(candidates: Iterable[Tensor], score: ObjectiveEach) -> Tensor:
    """Return, for each image, the candidate with the highest score, the earliest of equals.

    Args:
        candidates: at least one, each (B, 3, H, W); made one after the other, so that only two are in memory.
        score: images -> (B,); one pass a candidate, without a gradient.
    """
    best: Tensor | None = None
    for candidate in candidates:
        with torch.no_grad():
            value = score(candidate)
        if best is None:
            best, highest = candidate, value
        else:
            higher = value > highest
            best, highest = torch.where(spread(higher), candidate, best), torch.where(higher, value, highest)
    assert best is not None, "no candidates"
    return best


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    index = classes[:, None].expand(*logits.shape[:-1], 1)
    return logits.gather(-1, index).squeeze(-1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    index = labels[:, None].expand(*logits.shape[:-1], 1)
    return logits.scatter(-1, index, -math.inf)
