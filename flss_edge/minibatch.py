"""One mini-batch, or one process's part of it, with its random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of one mini-batch, each asked for by name.

    A number depends on the run's seed, the mini-batch, its name and the image's place in the whole mini-batch, and on
    nothing else: not on what was drawn before, nor on how the mini-batch is divided. So a resumed run needs no random
    state, and many processes draw what one process would draw.

    Attributes:
        seed: of the run.
        step: of the mini-batch, counted from 0.
        size: images of the whole mini-batch.
        rows: those of this part.
        device: where the numbers are made.
        dtype: of the numbers.
    """

    seed: int
    step: int
    size: int
    rows: slice
    device: torch.device
    dtype: torch.dtype = torch.float32

    def normal(self, name: str, *shape: int) -> Tensor:
        """Return standard normal numbers (rows, *shape); the same name gives the same numbers."""
        return self._rows(name, torch.empty((self.size, *shape), device=self.device, dtype=self.dtype), Tensor.normal_)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Return numbers (rows, *shape) uniform in [0, 1); the same name gives the same numbers."""
        return self._rows(name, torch.empty((self.size, *shape), device=self.device, dtype=self.dtype), Tensor.uniform_)

    def _rows(self, name: str, numbers: Tensor, fill: Callable[..., Tensor]) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, self.step, name))
        return fill(numbers, generator=generator)[self.rows]


def seed_of(seed: int, step: int, name: str) -> int:
    """Return a seed below 2**63 for the numbers called `name` of mini-batch `step`."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Minibatch:
    """What an attack and a loss see.

    Attributes:
        images: (n, 3, H, W) float in [0, 1], augmented.
        labels: (n,) int64.
        draws: this mini-batch's random numbers.
        progress: fraction of the whole training that is done, in [0, 1).
        share: n divided by the images of the whole mini-batch; the loss of a part counts for that much.
        nominal: images of this part in a full mini-batch of the recipe, n but for the last mini-batch of an epoch.
        perturbed: (n, 3, H, W), what the recipe's attack made of the images.
        perturbed_view: (n, 3, H, W), the attacked second view, where the recipe has one.
        proxy: the loss is wanted for the direction of the weight perturbation only.
    """

    images: Tensor
    labels: Tensor
    draws: Draws
    progress: float
    share: float = 1.0
    nominal: float = 0.0
    perturbed: Tensor | None = None
    perturbed_view: Tensor | None = None
    proxy: bool = False
