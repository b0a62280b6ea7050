"""Adversarial weight perturbation (Wu et al., NeurIPS 2020) as the released FLSS code applies it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def perturbable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the tensors that are moved: more than one dimension and "weight" in the name (no batch norm, no bias)."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1 and "weight" in name}


@contextmanager
def perturbed_weights(
    model: nn.Module, loss_of: Callable[[], Tensor], gamma: float, ascent_lr: float = 0.1
) -> Iterator[None]:
    """Raise the loss by moving each weight tensor by `gamma` times its own norm; undo the move on leaving.

    The released code copies the model, takes one plain SGD ascent step of `ascent_lr` there and rescales the step per
    tensor to the weight's norm: delta = |w| / (|step| + 1e-20) * step. Only the step's direction survives that, so no
    copy is needed: the gradient at the current weights gives it. Running statistics must not move during `loss_of`;
    the caller freezes them.

    Args:
        model: the network; its gradients (.grad) are neither used nor changed.
        loss_of: the loss at the model's current weights.
        gamma: relative size of the perturbation, 0.005 in the recipe.
        ascent_lr: of the inner step; without effect but for the guard against a zero gradient.
    """
    weights = perturbable(model)
    gradients = torch.autograd.grad(loss_of(), list(weights.values()))
    deltas = []
    with torch.no_grad():
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            step = ascent_lr * gradient
            delta = gamma * weight.norm() / (step.norm() + 1e-20) * step
            weight.add_(delta)
            deltas.append(delta)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, delta in zip(weights.values(), deltas, strict=True):
                weight.sub_(delta)
