"""Latent samples of an FLSS network: which noise they get, and their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flss_edge.minibatch import Draws
from flss_edge.model import FLSS
from flss_runtime.noise import SeededNoise

if TYPE_CHECKING:  # typing has it from Python 3.11 on
    from typing_extensions import Self

NOISE_BYTES = 64 * 2**20  # at a time


@dataclass(frozen=True, eq=False)
class LatentSampling:
    """What the classifiers with latent samples have in common; they differ in how they score.

    Attributes:
        network: in eval mode.
        name: in reports.
        num_samples: N, samples an image.
        noise_scale: factor on the standard deviation.
        threshold: an image is accepted iff its score is at least that.
        seed: of the noise.
        noise: "fresh" gives every image noise of its own; "fixed" has one (N, D) matrix for every image and query;
            "released" has the one of the released evaluation.
    """

    network: FLSS
    name: str = "vote"
    num_samples: int = 100
    noise_scale: float = 2.0
    threshold: float = 0.0
    seed: int = 0
    noise: Literal["fresh", "fixed", "released"] = "fresh"

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.network.config.num_classes

    def __call__(self, images: Tensor) -> Tensor:
        """Return the mean path's logits (B, K)."""
        logits: Tensor = self.network(images)
        return logits

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        """Return (S, B, K) as the protocol says; fixed noise has all its S = N rows."""
        if self.noise == "fresh":
            noise = draws.normal(name, samples, self.network.config.features).to(images)
        else:
            noise = self._fixed_noise.to(images)
        return self._logits(*self._latents(images), noise).transpose(0, 1)

    def with_threshold(self, threshold: float) -> Self:
        """Return this classifier with another threshold."""
        return replace(self, threshold=threshold)

    def _answer_logits(self, images: Tensor, first: int) -> Iterator[Tensor]:
        """Yield logits (b, N, K) for a few images at a time, as many as their noise may take memory."""
        mean, std = self._latents(images)
        size = max(1, NOISE_BYTES // (4 * self.num_samples * mean.shape[1]))
        for start in range(0, len(images), size):
            part = slice(start, min(start + size, len(images)))
            noise = self._noise_of(first + start, part.stop - start).to(images)
            yield self._logits(mean[part], std[part], noise)

    def _latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.network.encoder(images)
        return mean, torch.exp(0.5 * logvar)

    def _logits(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        return head_logits(self.network.head, mean, self.noise_scale * std, noise)

    def _noise_of(self, first: int, batch: int) -> Tensor:
        if self.noise != "fresh":
            return self._fixed_noise
        source = self._source
        if source.counter != first:  # a jump costs a new bank, some 20 ms
            source.counter = first
        # A copy: the source gives read-only memory that its next call may overwrite.
        return torch.from_numpy(source.take(batch, self.num_samples, self.network.config.features).copy())

    @cached_property
    def _source(self) -> SeededNoise:
        return SeededNoise(self.seed)

    @cached_property
    def _fixed_noise(self) -> Tensor:
        """The noise (1, N, D) of every image."""
        shape = self.num_samples, self.network.config.features
        rows = released_noise(*shape) if self.noise == "released" else SeededNoise(self.seed).at(0, *shape)
        return torch.from_numpy(rows.copy())[None]


def head_logits(head: nn.Sequential, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """Return the logits (B, N, K) of the samples mean + std * noise, which are never made.

    The standard deviation goes into the first layer's weight, as in the exported head: fewer bytes, and the same up to
    rounding.

    Args:
        head: linear layers with ReLU between them.
        mean: (B, D).
        std: (B, D), the noise scale included.
        noise: (B, N, D), or (1, N, D) for all images.
    """
    first, *others = head
    assert isinstance(first, nn.Linear)
    spread = torch.matmul(noise, std[:, :, None] * first.weight.t())  # (B, N, outputs)
    logits = functional.linear(mean, first.weight, first.bias)[:, None] + spread
    for layer in others:
        logits = layer(logits)
    return logits


@lru_cache(maxsize=2)
def released_noise(num_samples: int, latent_dim: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the noise matrix (N, D) of the released evaluation: row i holds the normals of NumPy's RandomState(i)."""
    rows = [np.random.RandomState(row).standard_normal(latent_dim) for row in range(num_samples)]
    return np.stack(rows).astype(np.float32)
