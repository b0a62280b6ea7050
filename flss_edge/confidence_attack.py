"""The adaptive attack on confidence thresholds: momentum, and a step size that backtracks for each image.

Source: Stutz et al., ICML 2020 (CCAT) and its released code, which trains and evaluates with it. What is attacked is
the confidence in a wrong class: a classifier that rejects unsure answers is fooled by a sure wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import ObjectiveEach, spread, value_and_gradient
from flss_edge.minibatch import Draws

SMALLEST_STEP = 1e-20


def confidence_attack(
    objective: ObjectiveEach,
    images: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    factor: float = 1.5,
    momentum: float = 0.9,
) -> Tensor:
    """Return, for each image, the iterate with the highest objective in the L-infinity ball and [0, 1].

    Each step follows velocity <- momentum * velocity + (1 - momentum) * sign(gradient). An image whose objective would
    fall stays where it is and divides its step size by `factor`; its velocity is updated all the same. The released
    code evaluates the objective of every candidate twice, before and after it is accepted; once gives the same.

    Args:
        objective: images (B, 3, H, W) -> (B,), each value depending on its own image only, and the same every time.
        images: (B, 3, H, W) float in [0, 1], the centre of the ball.
        start: where to begin, the same shape; projected first.
        epsilon: radius in pixel units of [0, 1].
        step_size: of each image at first, in the same units. The first step is (1 - momentum) of that.
        steps: gradient steps; 0 returns the projected start.
        factor: above 1; the paper trains with 1.5 and evaluates with 1.1 at 1,000 steps of 0.001.
        momentum: in [0, 1).
    """
    lower, upper = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    current = best = torch.clamp(start, lower, upper)
    value, gradient = value_and_gradient(objective, current)
    sizes = torch.full_like(value, step_size)
    velocity = torch.zeros_like(current)
    for _ in range(steps):
        velocity = momentum * velocity + (1 - momentum) * gradient.sign()
        candidate = torch.clamp(current + spread(sizes) * velocity, lower, upper)
        candidate_value, candidate_gradient = value_and_gradient(objective, candidate)
        better, accepted = candidate_value > value, candidate_value >= value
        # Nothing is accepted that is worse, so `value` is also that of the best; on a plateau the best stays behind.
        best = torch.where(spread(better), candidate, best)
        current = torch.where(spread(accepted), candidate, current)
        gradient = torch.where(spread(accepted), candidate_gradient, gradient)
        value = torch.where(accepted, candidate_value, value)
        sizes = torch.where(accepted, sizes, (sizes / factor).clamp(min=SMALLEST_STEP))
    return best


def log_wrong_confidence(logits_of: Callable[[Tensor], Tensor], labels: Tensor) -> ObjectiveEach:
    """Return the objective of the largest wrong-class probability: its logarithm, for each image.

    The released code takes the probability itself. The logarithm has the same gradient signs and the same order, and
    does not underflow where the network is certain.
    """

    def objective(images: Tensor) -> Tensor:
        scores = functional.log_softmax(logits_of(images), dim=1)
        return scores.scatter(1, labels[:, None], -math.inf).max(dim=1).values

    return objective


def gaussian_start(images: Tensor, draws: Draws, epsilon: float, name: str = "start") -> Tensor:
    """Return images + normal noise of standard deviation epsilon / (2 ln D), D values an image."""
    values = images[0].numel()
    return images + epsilon / (2 * math.log(values)) * draws.normal(name, *images.shape[1:])


def uniform_norm_start(images: Tensor, draws: Draws, epsilon: float, name: str = "start") -> Tensor:
    """Return points whose L-infinity distance from their image is uniform in [0, epsilon)."""
    direction = draws.normal(name, *images.shape[1:])
    direction = direction / spread(direction.abs().amax(dim=(1, 2, 3)))
    return images + epsilon * spread(draws.uniform(f"{name} norm")) * direction
