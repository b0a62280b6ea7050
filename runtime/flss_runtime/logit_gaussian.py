"""The Gaussian of the logits, as encoder and head give it, and the votes that one has at the fixed points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.batches import Batches
from flss_runtime.bundle import Bundle
from flss_runtime.comparison import Outputs, count_votes
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import Engine
from flss_runtime.images import FloatArray
from flss_runtime.point_set import PointSetSampling
from flss_runtime.sampling import DETERMINISTIC, LOGIT

Gaussian = Callable[[FloatArray], Mapping[str, npt.NDArray[Any]]]
"""Images (B, 3, H, W) -> "mean_logits" (B, K) and "covariance" (B, K, K)."""

_ROWS = 100  # of the unit matrix in one call of the head


class TwoGraphs:
    """What encoder and head say of the logits' Gaussian for some images.

    Args:
        engines: "encoder" and "head".
        pixels: (B, 3, H, W).
    """

    def __init__(self, engines: Mapping[str, Engine], pixels: FloatArray) -> None:
        self._head = engines["head"]
        self._latent = engines["encoder"].run({"images": pixels})

    def gaussian(self) -> dict[str, npt.NDArray[Any]]:
        """Return both, as a logit graph does."""
        return {"mean_logits": self.mean_logits(), "covariance": self.covariance()}

    def mean_logits(self) -> FloatArray:
        """Return the logits of the mean, (B, K)."""
        return self._logits(self._latent["mean"], self._still)[:, 0]

    def covariance(self) -> npt.NDArray[np.float64]:
        """Return the covariance (B, K, K) that a linear head makes of the standard deviations.

        The unit matrix in place of noise gives what each latent dimension adds, std_d W_d, for which nobody has to read
        the weights out of an ONNX file. The mean stays out of it: rounding beside its logits would show.
        """
        nothing = np.zeros_like(self._latent["mean"])
        unit = np.eye(nothing.shape[1], dtype=np.float32)[None]
        rows = [self._logits(nothing, unit[:, first : first + _ROWS]) for first in range(0, unit.shape[1], _ROWS)]
        added = np.concatenate(rows, axis=1).astype(np.float64) - self._logits(nothing, self._still)  # (B, D, K)
        product: npt.NDArray[np.float64] = added.transpose(0, 2, 1) @ added
        return product

    @property
    def _still(self) -> FloatArray:
        return np.zeros((1, 1, self._latent["mean"].shape[1]), np.float32)

    def _logits(self, mean: FloatArray, noise: FloatArray) -> FloatArray:
        tensors = {"mean": mean, "std": self._latent["std"], "noise": noise, "noise_scale": np.ones(1, np.float32)}
        logits: FloatArray = self._head.run(tensors)["logits"]
        return logits


def votes_at_points(
    bundle: Bundle,
    gaussian: Gaussian,
    images: npt.NDArray[np.uint8],
    policy: SmoothingPolicy,
    progress: Callable[[float], None],
) -> Outputs:
    """Return the votes that a Gaussian has at the fixed points, and its tensors.

    Args:
        bundle: That the images are for.
        gaussian: Called with a batch at a time.
        images: (M, H, W, 3) uint8.
        policy: Number of points, and the factor on the standard deviation.
        progress: Told the share that is done.

    Raises:
        DataError: An image does not fit the bundle.
        InferenceError: A covariance is none.
    """
    sampling = PointSetSampling(policy.num_samples, bundle.num_classes)
    votes, tensors, done = [], [], 0
    for pixels in Batches(bundle.input, _ROWS * bundle.latent_dim * np.dtype(np.float32).itemsize).of(images):
        progress(done / len(images))
        found = gaussian(pixels)
        choices = sampling.draw(found["mean_logits"], found["covariance"], policy.noise_scale)[1]
        votes.append(count_votes(choices, bundle.num_classes))
        done += len(pixels)
        tensors.append({name: np.array(found[name]) for name in ("mean_logits", "covariance")})  # engines reuse buffers
    joined = {name: np.concatenate([each[name] for each in tensors]) for name in tensors[0]}
    return Outputs(np.concatenate(votes), joined)


def logit_min_votes(bundle: Bundle, num_samples: int | None = None, noise_scale: float | None = None) -> int | None:
    """Return the threshold at the fixed points, else that of logit sampling, for which they stand; None without either.

    Args:
        bundle: Whose calibrations are looked through.
        num_samples: N; None takes the bundle's policy.
        noise_scale: None takes the bundle's; it has no calibration of another.
    """
    if noise_scale not in (None, bundle.noise_scale):
        return None
    for sampling in (DETERMINISTIC, LOGIT):
        entry = bundle.calibration(num_samples, sampling)
        if entry is not None:
            return int(entry["min_votes"])
    return None
