"""Models that an evaluation must not believe: their gradients are masked, mislead, or are not there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flss_edge.attacks import Victim
from flss_edge.data import ImageSet
from flss_edge.minibatch import Draws, seed_of

EPSILON = 8 / 255
COUNT = 30


def draws_of(name: str) -> Draws:
    return Draws(seed_of(0, 0, name), 0, COUNT, slice(0, COUNT), torch.device("cpu"), torch.float64)


class Reversed(torch.autograd.Function):
    """Passes images on, and their gradient with the opposite sign."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def setup_context(context: object, inputs: tuple[Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def quantised(network: Victim) -> Victim:
    """The image is rounded to 256 levels, which has no gradient: the classical mask."""
    return lambda images: network((images * 255).round() / 255)


def saturated(network: Victim) -> Victim:
    """Logits so large that the cross-entropy of a right answer is 0 to the last bit, and so is its gradient."""
    return lambda images: 1e4 * network(images)


def backwards(network: Victim) -> Victim:
    return lambda images: network(Reversed.apply(images))


def not_a_number(network: Victim) -> Victim:
    return lambda images: network(images) + (0 * images).sqrt().sum(dim=(1, 2, 3))[:, None]


def features_of(network: Victim) -> Callable[[Tensor], Tensor]:
    return lambda images: network.encoder(images)[0]  # type: ignore[attr-defined, no-any-return]


def image_set(start: int, count: int, source: str) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), np.uint8)[start : start + count]
    return ImageSet(images, np.zeros(count, np.int64), ("a", "b"), source)
