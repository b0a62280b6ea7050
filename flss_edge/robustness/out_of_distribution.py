"""Does a classifier decline images of classes that it does not know? NumPy only.

The inside images are of the classifier's own classes, the outside images of others. A good rejector accepts the first
and declines the second; its score should be higher on the first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from flss_edge.classifiers.answers import Answers, BoolArray, FloatArray
from flss_edge.data import ImageSet
from flss_edge.robustness.metrics import Share, share_of
from flss_runtime.errors import DataError
from flss_runtime.statistics import clopper_pearson

NORMAL_QUANTILE = 1.959963984540054  # 97.5 %
TRUE_POSITIVES = (95, 100)  # kept as whole numbers: 0.95 * n is not exact

# CIFAR-100 and CIFAR-10 share no class: "mutually exclusive ... neither of these classes includes images of pickup
# trucks" (Krizhevsky, 2009, section 3). For these eight, though, CIFAR-10's word is no blunder but what a person with
# only those ten words would say: the same family of animals, or a box-bodied vehicle for people or goods on the road.
# Left in are those that merely look alike (tank, tractor, train, cattle, camel, lizard, rocket): that word is an error.
NEAR_CIFAR10: Mapping[str, str] = MappingProxyType(
    {
        "bus": "truck",
        "pickup_truck": "truck",
        "streetcar": "truck",
        "fox": "dog",
        "wolf": "dog",
        "leopard": "cat",
        "lion": "cat",
        "tiger": "cat",
    }
)
"""Class of CIFAR-100 -> the class of CIFAR-10 that it is a relative of."""


@dataclass(frozen=True)
class OutOfDistribution:
    """How the answers to inside and outside images differ.

    Attributes:
        inside_accepted: share of the inside images that the classifier accepts at its own threshold.
        outside_accepted: the same of the outside images, each of which it had better decline.
        auroc: probability that an inside image scores higher than an outside image, ties counted half; in [0, 1].
        auroc_interval: 95 %, see `auroc`.
        threshold: the highest score that at least 95 % of the inside images reach ("95 % TPR").
        false_positives: share of the outside images that reach it ("FPR at 95 % TPR"). The interval takes the threshold
            for given.
    """

    inside_accepted: Share
    outside_accepted: Share
    auroc: float
    auroc_interval: tuple[float, float]
    threshold: float
    false_positives: Share

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self) | {"auroc_interval": list(self.auroc_interval)}


def out_of_distribution(inside: Answers, outside: Answers) -> OutOfDistribution:
    """Compare the answers to images of the classifier's classes with those to images of other classes.

    Raises:
        DataError: fewer than two images on a side, or a score that is not a number.
    """
    threshold = _threshold(inside.scores)
    area, interval = auroc(inside.scores, outside.scores)
    return OutOfDistribution(
        inside_accepted=_share_of(inside.accepted),
        outside_accepted=_share_of(outside.accepted),
        auroc=area,
        auroc_interval=interval,
        threshold=threshold,
        false_positives=_share_of(outside.scores >= threshold),
    )


def auroc(inside: FloatArray, outside: FloatArray) -> tuple[float, tuple[float, float]]:
    """Return the area under the ROC curve and its 95 % interval.

    The area is the rank statistic of Mann and Whitney: over all pairs of an inside (n,) and an outside (m,) score, the
    share of pairs in order, ties counted half. The interval is DeLong's (Biometrics 44, 1988), normal, cut to [0, 1].
    Where every pair says the same, DeLong's has no width; then the min(n, m) disjoint pairs, which are independent,
    bound the share of pairs that would have said otherwise (97.5 %, exact).

    Raises:
        DataError: fewer than two scores on a side, or one that is not a number.
    """
    _check(inside, "inside")
    _check(outside, "outside")
    n, m = len(inside), len(outside)
    # Twice the number of outside scores below each inside score (a tie counts one), and the other way round: integers,
    # so that the sum is exact.
    below = _twice_below(inside, outside)  # (n,)
    above = 2 * n - _twice_below(outside, inside)  # (m,)
    area = int(below.sum()) / (2 * n * m)
    variance = float((below / (2 * m)).var(ddof=1) / n + (above / (2 * n)).var(ddof=1) / m)
    if variance > 0:
        margin = NORMAL_QUANTILE * math.sqrt(variance)
    else:
        margin = clopper_pearson(0, min(n, m))[1]
    return area, (max(0.0, area - margin), min(1.0, area + margin))


def outside_images(images: ImageSet, inside: ImageSet, *, leave_out: Collection[str] = ()) -> ImageSet:
    """Return the images whose classes the classifier does not know.

    Args:
        images: of other classes, such as CIFAR-100's; its own labels mean nothing to the classifier.
        inside: of the classifier's classes.
        leave_out: classes of `images` that are too near to an inside class, such as `NEAR_CIFAR10`.

    Raises:
        DataError: pictures of another size, a class that is inside too, an unknown class, or nothing left.
    """
    size, expected = images.images.shape[1:3], inside.images.shape[1:3]
    if size != expected:
        raise DataError(
            f"the images of {images.source} are {size[0]} x {size[1]}, those of {inside.source} "
            f"{expected[0]} x {expected[1]}",
            "Resize them to the classifier's input, and mind that their sharpness alone may then tell them apart.",
        )
    if unknown := sorted(set(leave_out) - set(images.class_names)):
        raise DataError(
            f"{images.source} has no class {unknown[0]!r} to leave out",
            "Name its own classes; an .npz names them in its array `class_names`.",
        )
    keep = [name not in leave_out for name in images.class_names]
    kept = {name for name, kept in zip(images.class_names, keep, strict=True) if kept}
    if shared := sorted(kept & set(inside.class_names)):
        raise DataError(
            f"{images.source} has the classifier's own class {shared[0]!r}",
            "Leave that class out, or give the classes names that tell them apart.",
        )
    index = np.flatnonzero(np.asarray(keep)[images.labels])
    if len(index) == 0:
        raise DataError(f"no image of {images.source} is left", "Leave out fewer classes.")
    without = f":without {', '.join(sorted(leave_out))}" if leave_out else ""
    return images.take(index, f"{images.source}{without}")


def _share_of(part: BoolArray) -> Share:
    found = share_of(part)
    assert found is not None, "a side without images has been refused before"
    return found


def _threshold(scores: FloatArray) -> float:
    _check(scores, "inside")
    share, whole = TRUE_POSITIVES
    needed = -(-share * len(scores) // whole)  # rounded up
    return float(np.sort(scores)[len(scores) - needed])


def _twice_below(scores: FloatArray, others: FloatArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, for each score, twice the number of others below it, plus the number of its equals."""
    ordered = np.sort(others)
    return np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")


def _check(scores: FloatArray, side: str) -> None:
    if len(scores) < 2:
        raise DataError(f"{len(scores)} {side} images are too few to compare", "Give at least two of each.")
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} {side} scores are not a number", "Look at the classifier first."
        )
