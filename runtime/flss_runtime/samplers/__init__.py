"""From images to the class that each sample votes for: one way for each kind of graph that a bundle may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flss_runtime.decision import IntArray
from flss_runtime.engines import Engine
from flss_runtime.images import FloatArray
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource
from flss_runtime.samplers.fused import FusedSampler
from flss_runtime.samplers.logit import LogitSampler
from flss_runtime.samplers.two_graphs import TwoGraphSampler
from flss_runtime.sampling import DETERMINISTIC

__all__ = ["FusedSampler", "LogitSampler", "Sampler", "TwoGraphSampler", "make_sampler"]


class Sampler(Protocol):
    """Owns its engines and a few buffers: use one in one thread.

    Attributes:
        sampling: One of `sampling.SAMPLINGS`.
        engines: Role of a graph -> the engine that runs it, the encoder or what stands for it first.
        noise_dim: Normals that a sample of an image takes from the noise source.
        frame: An array (1, 3, H, W) that single images come in; graphs may be bound to it. Other arrays are copied.
    """

    sampling: str
    engines: Mapping[str, Engine]
    noise_dim: int
    frame: FloatArray | None

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        """Let the samples of each image vote.

        Args:
            images: (B, 3, H, W) float32 in [0, 1]. A single image in `frame` is read in place.
            noise: Each image takes the next window of it; deterministic sampling takes none.
            num_samples: N.
            noise_scale: Factor on the standard deviation.

        Returns:
            Logits (B, N, K) and choices (B, N), valid until the next call.

        Raises:
            InferenceError: An engine failed.
        """
        ...

    def sample_with_mean(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Do as `sample`, and add the class (B,) of each image's mean."""
        ...

    def mean_choices(self, images: FloatArray) -> IntArray:
        """Return the class (B,) of each image's mean, without samples and without noise."""
        ...

    def encode(self, images: FloatArray) -> LatentGaussian:
        """Return the Gaussian that each image has in the latent space.

        Raises:
            UsageError: This sampler's graph does not give it.
        """
        ...

    def close(self) -> None:
        """Close the engines."""
        ...


def make_sampler(engines: Mapping[str, Engine], sampling: str, latent_dim: int, num_classes: int) -> Sampler:
    """Make the sampler of a bundle's engines.

    Args:
        engines: Role -> engine, as `open_bundle_engines` opens them for this sampling; it owns all but the gate.
        sampling: One of `sampling.SAMPLINGS`.
        latent_dim: D.
        num_classes: K.

    Raises:
        BundleError: The graphs do not fit.
    """
    if "logit" in engines:
        return LogitSampler(engines["logit"], num_classes, deterministic=sampling == DETERMINISTIC)
    if "fused" in engines:
        return FusedSampler(engines["fused"], latent_dim, num_classes)
    return TwoGraphSampler(engines["encoder"], engines["head"], num_classes)
