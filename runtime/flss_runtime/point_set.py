"""Votes without chance: a fixed, evenly spread set of points stands for the standard normals.

The points are those of the Halton sequence, one prime base a coordinate: 2, 3, 5, … From base 17 on the digits of each
place are permuted at random but always alike (Owen, "A randomized Halton algorithm in R", 2017), because coordinates of
large bases run in parallel otherwise. The first N // 2 points go through the normal quantile function, and each is
joined by its mirror image in the origin. An odd N gets the origin too, which is the mean path.

Each class is one coordinate of the Cholesky factor. The first coordinates, which are spread most evenly, go to the
classes with the highest mean logits: which of these is ahead decides the vote. What that gains, beside other point sets
and orders, is in benchmarks/results/README.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flss_runtime.logit_sampling import FloatArray, IntArray, LogitSampling, Order
from flss_runtime.normal_stream import NormalStream

_PERMUTED_FROM = 17
_KEY = 0  # of the permutations; it is no secret
_FINEST = 2.0**-40  # digits below that change no float32


class PointSetSampling:
    """Turn the Gaussian that an image's logits have into N votes without noise: the same image, the same votes.

    Args:
        num_samples: N, >= 1.
        num_classes: K, 2 to `MAX_CLASSES`.
    """

    def __init__(self, num_samples: int, num_classes: int) -> None:
        self._sampling = LogitSampling(num_samples, num_classes)
        self._sampling.fix(normal_points(num_samples, num_classes)[None])

    @property
    def num_samples(self) -> int:
        """N."""
        return self._sampling.num_samples

    def draw(self, mean_logits: FloatArray, covariance: FloatArray, noise_scale: float) -> tuple[FloatArray, IntArray]:
        """Give the logits at the points and their classes; as `LogitSampling.draw`."""
        return self._sampling.draw(mean_logits, covariance, noise_scale, None, leading_first(mean_logits))


def leading_first(mean_logits: FloatArray) -> Order:
    """Return the classes (B, K) by falling mean logits (B, K); of equal ones the lowest index first."""
    return np.argsort(-mean_logits, axis=1, kind="stable")


def normal_points(num_points: int, dimensions: int) -> FloatArray:
    """Return the point set.

    Args:
        num_points: N, >= 1; a call takes a few microseconds a value.
        dimensions: >= 1.

    Returns:
        (N, dimensions) float32, read-only; the points sum to zero.
    """
    from statistics import NormalDist  # 12 ms of import that only this sampling needs

    half = np.zeros((num_points // 2, dimensions))
    for dimension, base in enumerate(_primes(dimensions)):
        half[:, dimension] = [NormalDist().inv_cdf(value) for value in _evenly_spread(len(half), dimension, base)]
    points = np.concatenate([half, -half, np.zeros((num_points % 2, dimensions))]).astype(np.float32)
    points.setflags(write=False)
    return points


def _evenly_spread(count: int, dimension: int, base: int) -> list[float]:
    """Return the first numbers of a coordinate, in (0, 1): the digits of 1, 2, 3, … mirrored at the point."""
    permutations = NormalStream(_KEY)
    index, value, weight, place = np.arange(1, count + 1), np.zeros(count), 1.0, 0
    while weight > _FINEST:
        digits: npt.NDArray[np.intp] = np.arange(base)
        if base >= _PERMUTED_FROM:
            digits = np.argsort(permutations.raw(0, dimension, place, base))
        weight /= base
        value += digits[index % base] * weight
        index //= base
        place += 1
    spread: list[float] = (value + weight / 2).tolist()
    return spread


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found
