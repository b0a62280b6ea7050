"""Logit and deterministic sampling by the graph of the Gaussian that the logits have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flss_runtime.contract import check_logit
from flss_runtime.decision import IntArray
from flss_runtime.engines import Engine
from flss_runtime.engines.resident import Resident, bind, keep, own, place
from flss_runtime.errors import UsageError
from flss_runtime.images import FloatArray
from flss_runtime.latent import LatentGaussian
from flss_runtime.logit_sampling import LogitSampling
from flss_runtime.noise import NoiseSource
from flss_runtime.point_set import PointSetSampling
from flss_runtime.sampling import DETERMINISTIC, LOGIT


class LogitSampler:
    """Logits drawn from the Gaussian that they have, where the head is linear (docs/method.md).

    Args:
        logit: images -> mean_logits (B, K), covariance (B, K, K).
        num_classes: K.
        deterministic: Whether a fixed set of points stands in for the noise, of which nothing is taken then.

    Raises:
        BundleError: It is no such graph.
    """

    def __init__(self, logit: Engine, num_classes: int, *, deterministic: bool = False) -> None:
        check_logit(logit, num_classes)
        self.logit = logit
        self.sampling = DETERMINISTIC if deterministic else LOGIT
        self.engines: Mapping[str, Engine] = {"logit": logit}
        self._classes = num_classes
        self.noise_dim = 0 if deterministic else num_classes
        self._draws: dict[int, LogitSampling | PointSetSampling] = {}  # by number of samples
        self.frame: FloatArray | None = None
        self._bound: Resident | None = None

    def sample(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        """Run the graph and draw; see `Sampler.sample`."""
        return self._draw(self._run(images), noise, num_samples, noise_scale)

    def sample_with_mean(
        self, images: FloatArray, noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray, IntArray]:
        """Run the graph and draw; see `Sampler.sample_with_mean`."""
        out = self._run(images)
        return *self._draw(out, noise, num_samples, noise_scale), out["mean_logits"].argmax(axis=1)

    def mean_choices(self, images: FloatArray) -> IntArray:
        """Run the graph; see `Sampler.mean_choices`."""
        choices: IntArray = self._run(images)["mean_logits"].argmax(axis=1)
        return choices

    def encode(self, images: FloatArray) -> LatentGaussian:
        """Refuse; see `Sampler.encode`."""
        raise UsageError(
            f"{self.sampling} sampling gives votes only, not the latent Gaussian of an image",
            "open the classifier with sampling='latent' and fused=False",
        )

    def close(self) -> None:
        """Close the engine."""
        self._bound = None
        self.logit.close()

    def _run(self, images: FloatArray) -> dict[str, Any]:
        if len(images) != 1:
            return self.logit.run({"images": images})
        if self._bound is None:
            self._bound = bind(self.logit, {"images": own(images, self.frame)})  # runs on this image
            return self._bound.outputs
        place(images, self._bound.inputs["images"])
        self._bound.run()
        return self._bound.outputs

    def _draw(
        self, out: Mapping[str, Any], noise: NoiseSource, num_samples: int, noise_scale: float
    ) -> tuple[FloatArray, IntArray]:
        draws = self._draws.get(num_samples)
        if draws is None:
            kind = LogitSampling if self.noise_dim else PointSetSampling
            draws = keep(self._draws, num_samples, kind(num_samples, self._classes))
        mean_logits, covariance = out["mean_logits"], out["covariance"]
        if isinstance(draws, PointSetSampling):
            return draws.draw(mean_logits, covariance, noise_scale)
        points = noise.take(len(mean_logits), num_samples, self._classes)
        return draws.draw(mean_logits, covariance, noise_scale, points)
