"""Whether evaluated images served before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from flss_edge.data import ImageSet
from flss_edge.robustness.check import Check

NEW_DATA = "Evaluate on images that neither the training nor the threshold has seen; their figures flatter."


def data_is_new(evaluated: ImageSet, known: Mapping[str, ImageSet | str]) -> Check:
    """Check that no evaluated image served before: for the threshold, or for the training.

    Args:
        evaluated: images of the evaluation.
        known: use ("calibration", "training", ...) -> its images, compared one by one; or, where only that is on
            record, the sha256 or the source of the whole set.
    """
    seen: dict[str, int] = {}
    for use, data in known.items():
        if isinstance(data, str):
            seen[use] = len(evaluated) if data in (evaluated.sha256, evaluated.source) else 0
        else:
            before = _digests(data)
            seen[use] = sum(digest in before for digest in _digests_in_order(evaluated))
    name, values = "evaluated data is new", {"images": len(evaluated), "seen": seen}
    if not known:
        return Check(name, None, "nobody knows which images calibrated the threshold", values, NEW_DATA)
    used = [f"{count} of {len(evaluated)} served for {use}" for use, count in seen.items() if count]
    return Check(
        name, not used, "; ".join(used) or f"none served for {' or '.join(known)}", values, NEW_DATA if used else ""
    )


def _digests(images: ImageSet) -> set[bytes]:
    return set(_digests_in_order(images))


def _digests_in_order(images: ImageSet) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images.images]
