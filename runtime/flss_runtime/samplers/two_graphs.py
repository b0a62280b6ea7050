"""Latent sampling by encoder, then head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flss_runtime.contract import check_pair
from flss_runtime.decision import IntArray
from flss_runtime.engines import Engine
from flss_runtime.engines.pair import join
from flss_runtime.engines.resident import Resident, bind, feed, keep, own, place
from flss_runtime.images import FloatArray
from flss_runtime.latent import LatentGaussian
from flss_runtime.noise import NoiseSource
from flss_runtime.sampling import LATENT

_UNKNOWN_DIM = 4096  # where the graph leaves it free: only memory is planned with it


class TwoGraphSampler:
    """Encoder, then head: what every bundle has.

    Args:
        encoder: images (B, 3, H, W) -> mean (B, D), std (B, D).
        head: mean, std, noise (B or 1, N, D), noise_scale (1,) -> logits (B, N, K), choices (B, N). Give it one thread:
            its work is too small to share, and a second pool of threads slows the encoder down.
        num_classes: K.

    Raises:
        BundleError: The graphs are not such a pair.
    """

    sampling = LATENT

    def __init__(self, encoder: Engine, head: Engine, num_classes: int) -> None:
        check_pair(encoder, head, num_classes)
        self.encoder, self.head = encoder, head
        self.engines: Mapping[str, Engine] = {"encoder": encoder, "head": head}
        latent_dim = head.inputs["mean"].shape[-1]
        self.noise_dim = latent_dim if isinstance(latent_dim, int) else _UNKNOWN_DIM
        self.pair = join(encoder, head)
        self._scale = np.empty(1, np.float32)
        self.frame: FloatArray | None = None
        self._encoder_bound: Resident | None = None
        self._heads_bound: dict[int, Resident] = {}  # number of samples -> the head bound for it

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        """Run both graphs; see `Sampler.sample`."""
        if self.pair is not None:
            return self.pair.sample(images, noise, num_samples, noise_scale)
        self._scale[0] = noise_scale
        if len(images) == 1:
            return self._sample_frame(images, noise, num_samples)
        return self._vote(self.encode(images), noise, num_samples)

    def sample_with_mean(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Run the encoder once and the head twice; see `Sampler.sample_with_mean`."""
        self._scale[0] = noise_scale
        if len(images) != 1:
            latent = self.encode(images)
            return *self._vote(latent, noise, num_samples), self._mean_choices(latent)
        votes = self._sample_frame(images, noise, num_samples)
        assert self._encoder_bound is not None
        left = self._encoder_bound.outputs
        return *votes, self._mean_choices(LatentGaussian(left["mean"], left["std"]))

    def mean_choices(self, images: FloatArray) -> IntArray:
        """Run both graphs under a noise of zeros; see `Sampler.mean_choices`."""
        self._scale[0] = 0
        return self._mean_choices(self.encode(images))

    def encode(self, images: FloatArray) -> LatentGaussian:
        """Run the encoder; see `Sampler.encode`."""
        out = self.encoder.run({"images": images})
        return LatentGaussian(out["mean"], out["std"])

    def close(self) -> None:
        """Close the engines."""
        self._encoder_bound = None
        self._heads_bound.clear()
        if self.pair is not None:
            self.pair.close()
        self.encoder.close()
        self.head.close()

    def _sample_frame(self, images: FloatArray, noise: NoiseSource, num_samples: int) -> tuple[FloatArray, IntArray]:
        """Run both graphs on one image; the head reads the latent where the encoder left it."""
        encoder = self._encoder_bound
        if encoder is None:
            encoder = bind(self.encoder, {"images": own(images, self.frame)})  # runs on this image
            self._encoder_bound = encoder
        else:
            place(images, encoder.inputs["images"])
            encoder.run()
        head = self._heads_bound.get(num_samples)
        if head is None:
            taken = np.zeros((1, num_samples, encoder.outputs["mean"].shape[1]), np.float32)
            inputs = {**encoder.outputs, "noise": taken, "noise_scale": self._scale}
            head = keep(self._heads_bound, num_samples, bind(self.head, inputs))
        feed(head, "noise", noise.take(*head.inputs["noise"].shape))
        head.run()
        return head.outputs["logits"], head.outputs["choices"]

    def _vote(self, latent: LatentGaussian, noise: NoiseSource, num_samples: int) -> tuple[FloatArray, IntArray]:
        out = self._run_head(latent, noise.take(len(latent.mean), num_samples, latent.mean.shape[1]))
        return out["logits"], out["choices"]

    def _mean_choices(self, latent: LatentGaussian) -> IntArray:
        choices: IntArray = self._run_head(latent, np.zeros((1, 1, latent.mean.shape[1]), np.float32))["choices"]
        return choices[:, 0]

    def _run_head(self, latent: LatentGaussian, noise: FloatArray) -> dict[str, Any]:
        return self.head.run({"mean": latent.mean, "std": latent.std, "noise": noise, "noise_scale": self._scale})
