"""The Gaussian a stochastic encoder gives for an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LatentGaussian:
    """A Gaussian with independent dimensions for each image of a batch.

    Attributes:
        mean: (B, D) float32.
        std: (B, D) float32, > 0: the standard deviation, not the variance and not its logarithm.
    """

    mean: FloatArray
    std: FloatArray

    def sample(self, noise: FloatArray, noise_scale: float) -> FloatArray:
        """Draw latents: mean + noise_scale * std * noise, as written in the paper.

        The head graph computes the same without ever forming these latents; this is the plain statement of it.

        Args:
            noise: (B or 1, N, D) float32 standard normals.
            noise_scale: Factor on the standard deviation, >= 0.

        Returns:
            (B, N, D) float32.
        """
        spread = np.float32(noise_scale) * self.std  # (B, D)
        samples: FloatArray = self.mean[:, None] + spread[:, None] * noise
        return samples
