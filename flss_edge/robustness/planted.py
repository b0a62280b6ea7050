"""Adversarial examples that are known to exist: does the attack find them?

Source: Zimmermann, Brendel, Tramer and Carlini, NeurIPS 2022 ("Increasing confidence in adversarial robustness
evaluations"). They train a logistic readout for each image; the closed form here is Fisher's discriminant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.minibatch import Draws
from flss_edge.robustness.check import Check

Features = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> (B, D), differentiable."""

CLOSENESS = 0.999  # where the border lies on the way from the innermost inner point to the planted one
MUST_FIND = 0.95  # share of the planted examples
TOO_EASY = 0.5  # share that random search may find before the planted examples show nothing
NOT_FOUND = "The attack misses what is there: remove what masks the gradients, try other losses, steps and step sizes."
FEWEST_INNER = 100
RIDGE = 1e-3  # of the mean variance, added to the covariance of fewer points than features


@dataclass(frozen=True)
class Planted:
    """A detector of one planted point around each image, on frozen features.

    Called with images it gives the logits (B, 2) of "an inner point" and "the planted point".

    Attributes:
        features: of the network under test.
        direction: (B, D) of each image's readout, one unit from the inner points' mean to the planted point.
        border: (B,) readout above which a point counts as planted.
        valid: (B,) bool, where the planted point lies beyond the border, and the image itself does not.
    """

    features: Features
    direction: Tensor
    border: Tensor
    valid: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, 2)."""
        readout = (self.features(images).to(self.direction) * self.direction).sum(dim=1) - self.border
        return torch.stack([torch.zeros_like(readout), readout], dim=1).to(images.dtype)

    def found(self, images: Tensor) -> Tensor:
        """Return which images (B,) are taken for the planted point."""
        with torch.no_grad():
            logits = self(images)
        return (logits[:, 1] > logits[:, 0]) & self.valid


def plant(features: Features, images: Tensor, *, epsilon: float, draws: Draws, inner: int | None = None) -> Planted:
    """Plant one corner of each image's ball as its adversarial example.

    Args:
        features: of the network under test.
        images: (B, 3, H, W) float in [0, 1].
        epsilon: radius in pixel units of [0, 1].
        draws: random numbers of this batch.
        inner: points of the ball that the readout has to keep apart from the planted one, beside the image itself. None
            takes 100, or three for each feature: fewer leave the readout so much freedom that anything at the ball's
            edge passes for the planted one, and random search finds it.
    """
    with torch.no_grad():
        centre = features(images)
        count = max(FEWEST_INNER, 3 * centre.shape[1]) if inner is None else inner
        points = (_anywhere(images, draws, epsilon, f"inner {number}") for number in range(count))
        inside = torch.stack([centre, *(features(point) for point in points)]).double()  # (n, B, D)
        planted = features(_corner(images, draws, epsilon, "planted")).double()
        mean = inside.mean(dim=0)
        centred = inside - mean
        covariance = torch.einsum("nbd,nbe->bde", centred, centred) / len(inside)
        size = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)  # (B,)
        ridge = (RIDGE * size).clamp_min(torch.finfo(size.dtype).tiny)
        covariance = covariance + ridge[:, None, None] * torch.eye(mean.shape[1], device=mean.device, dtype=mean.dtype)
        direction = torch.linalg.solve(covariance, planted - mean)  # (B, D)
        length = (direction * (planted - mean)).sum(dim=1)
        direction = direction / length.clamp_min(torch.finfo(length.dtype).tiny)[:, None]
        innermost = (inside * direction).sum(dim=2).max(dim=0).values
        reach = (planted * direction).sum(dim=1)
        border = innermost + CLOSENESS * (reach - innermost)
        valid = torch.isfinite(border) & (reach > innermost)
    return Planted(features, direction, border, valid)


def found_by(
    attack: Attack, planted: Planted, images: Tensor, *, epsilon: float, draws: Draws, tries: int = 50
) -> tuple[Tensor, Tensor]:
    """Return where (B,) the attack finds what was planted, and where random search with `tries` points does."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    by_attack = planted.found(attack(planted, images, labels, epsilon=epsilon, draws=draws))
    by_chance = torch.zeros_like(by_attack)
    for number in range(tries):
        sample = _corner if number % 2 else _anywhere
        by_chance |= planted.found(sample(images, draws, epsilon, f"try {number}"))
    return by_attack, by_chance


def planted_are_found(attack: Attack, features: Features, images: Tensor, *, epsilon: float, draws: Draws) -> Check:
    """Check that the attack finds adversarial examples that are known to exist."""
    planted = plant(features, images, epsilon=epsilon, draws=draws)
    by_attack, by_chance = found_by(attack, planted, images, epsilon=epsilon, draws=draws)
    count = int(planted.valid.sum())
    values = {"planted": count, "found": int(by_attack.sum()), "found_by_random_search": int(by_chance.sum())}
    name = "planted examples"
    if not count:
        text = f"on none of {len(images)} images do the features tell a planted example from the rest of the ball"
        return Check(name, None, text, values, "See whether the features change at all within the ball.")
    text = f"of {count} planted examples the attack finds {values['found']}"
    text += f", random search {values['found_by_random_search']}"
    if values["found_by_random_search"] > TOO_EASY * count:
        return Check(name, None, text, values, "Random search finds them too, so they show nothing: plant closer ones.")
    passed = values["found"] >= MUST_FIND * count
    return Check(name, passed, text, values, "" if passed else NOT_FOUND)


def _anywhere(images: Tensor, draws: Draws, epsilon: float, name: str) -> Tensor:
    return (images + epsilon * (2 * draws.uniform(name, *images.shape[1:]) - 1)).clamp(0, 1)


def _corner(images: Tensor, draws: Draws, epsilon: float, name: str) -> Tensor:
    return (images + epsilon * (2 * draws.uniform(name, *images.shape[1:]) - 1).sign()).clamp(0, 1)
