"""Latent sampling by encoder and head in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flss_runtime.contract import check_fused
from flss_runtime.decision import IntArray
from flss_runtime.engines import Engine
from flss_runtime.engines.resident import Resident, bind, feed, keep, own, place
from flss_runtime.errors import UsageError
from flss_runtime.images import FloatArray
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource
from flss_runtime.sampling import LATENT


class FusedSampler:
    """Encoder and head as one graph: the same numbers, without a second call.

    Args:
        fused: images, noise (B or 1, N, D), noise_scale (1,) -> logits (B, N, K), choices (B, N), mean_logits (B, K).
        latent_dim: D.
        num_classes: K.

    Raises:
        BundleError: It is no such graph.
    """

    sampling = LATENT

    def __init__(self, fused: Engine, latent_dim: int, num_classes: int) -> None:
        check_fused(fused, latent_dim, num_classes)
        self.fused = fused
        self.engines: Mapping[str, Engine] = {"fused": fused}
        self.noise_dim = latent_dim
        self._scale = np.empty(1, np.float32)
        self.frame: FloatArray | None = None
        self._bound: dict[int, Resident] = {}  # number of samples -> the graph bound for it

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        """Run the graph; see `Sampler.sample`."""
        out = self._run(images, noise, num_samples, noise_scale)
        return out["logits"], out["choices"]

    def sample_with_mean(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Run the graph; see `Sampler.sample_with_mean`."""
        out = self._run(images, noise, num_samples, noise_scale)
        return out["logits"], out["choices"], out["mean_logits"].argmax(axis=1)

    def mean_choices(self, images: FloatArray) -> IntArray:
        """Run the graph under a single sample; see `Sampler.mean_choices`."""
        still = np.zeros((1, 1, self.noise_dim), np.float32)
        out = self.fused.run({"images": images, "noise": still, "noise_scale": np.zeros(1, np.float32)})
        choices: IntArray = out["mean_logits"].argmax(axis=1)
        return choices

    def encode(self, images: FloatArray) -> LatentGaussian:
        """Refuse; see `Sampler.encode`."""
        raise UsageError(
            "the fused graph gives votes only, not the latent Gaussian of an image",
            "open the classifier with fused=False",
        )

    def close(self) -> None:
        """Close the engine."""
        self._bound.clear()
        self.fused.close()

    def _run(self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float) -> dict[str, Any]:
        self._scale[0] = noise_scale
        window = noise.take(len(images), num_samples, self.noise_dim)
        if len(images) != 1:
            return self.fused.run({"images": images, "noise": window, "noise_scale": self._scale})
        bound = self._bound.get(num_samples)
        if bound is None:
            taken = {"images": own(images, self.frame), "noise": window.copy(), "noise_scale": self._scale}
            return keep(self._bound, num_samples, bind(self.fused, taken)).outputs  # runs on this image
        place(images, bound.inputs["images"])
        feed(bound, "noise", window)
        bound.run()
        return bound.outputs
