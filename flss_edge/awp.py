"""Adversarial weight perturbation (Wu et al., NeurIPS 2020) as the released FLSS code applies it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def perturbable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the tensors that are moved: more than one dimension and "weight" in the name (no batch norm, no bias)."""
    return {
        name: p
        for name, p in network.named_parameters()
        if p.dim() > 1 and "weight" in name and not name.endswith(".scale")  # the size of PNI's noise is no weight
    }


@contextmanager
def perturbed_weights(
    weights: Sequence[nn.Parameter], gradients: Sequence[Tensor], gamma: float, ascent_lr: float = 0.1
) -> Iterator[None]:
    """Move each weight tensor by `gamma` times its own norm along its gradient; undo the move on leaving.

    The released code copies the network, takes one plain SGD ascent step of `ascent_lr` there and rescales the step per
    tensor to the weight's norm: delta = |w| / (|step| + 1e-20) * step. Only the step's direction survives that, so no
    copy is needed: the gradient at the current weights gives it.

    Args:
        weights: the tensors, those of `perturbable`.
        gradients: of the loss that shall rise, one a tensor, in float32 or better.
        gamma: relative size of the perturbation, 0.005 in the recipe.
        ascent_lr: of the inner step; without effect but for the guard against a zero gradient.
    """
    deltas = []
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            step = ascent_lr * gradient
            delta = gamma * weight.norm() / (step.norm() + 1e-20) * step
            weight.add_(delta)
            deltas.append(delta)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, delta in zip(weights, deltas, strict=True):
                weight.sub_(delta)
