"""Whether evaluated images served before; NumPy only, so that a bundle's evaluation asks the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from flss_edge.data import ImageSet
from flss_edge.robustness.check import Check

NEW_DATA = "Evaluate on images that neither the training nor the threshold has seen; their figures flatter."


def recorded_uses(
    training: Mapping[str, object],
    evaluated: ImageSet,
    load: Callable[[str], ImageSet],
    calibration_sha256: str | None = None,
) -> dict[str, ImageSet | str]:
    """Return what a network's records say that images were used for, as `data_is_new` takes it.

    Where the evaluated images are no part of their own ("test"), the parts that the records name are loaded from the
    same data, so that a few of them are recognised too; else only a whole set would be, by its record.

    Args:
        training: the training's record; `data_sha256` and `selection_sha256` of it count.
        evaluated: images of the evaluation.
        load: name of a split -> its images, of the data that the evaluated ones come from.
        calibration_sha256: of the images that chose a bundle's threshold.
    """
    records = {
        "training": ("fit", training.get("data_sha256")),
        "choosing the checkpoint": ("selection", training.get("selection_sha256")),
        "calibration": ("calibration", calibration_sha256),
    }
    apart = evaluated.source.partition("[")[0].endswith(":test")
    known: dict[str, ImageSet | str] = {}
    for use, (split, digest) in records.items():
        if isinstance(digest, str):
            found = None if apart else load(split)
            known[use] = digest if found is None or found.sha256 != digest else found
    return known


def data_is_new(evaluated: ImageSet, known: Mapping[str, ImageSet | str]) -> Check:
    """Check that no evaluated image served before: for the threshold, or for the training.

    Args:
        evaluated: images of the evaluation.
        known: use ("calibration", "training", ...) -> its images, compared one by one; or, where only that is on
            record, the sha256 of the whole set.
    """
    seen: dict[str, int] = {}
    for use, data in known.items():
        if isinstance(data, str):
            seen[use] = len(evaluated) if data == evaluated.sha256 else 0
        else:
            before = set(_digests(data))
            seen[use] = sum(digest in before for digest in _digests(evaluated))
    name, values = "evaluated data is new", {"images": len(evaluated), "seen": seen}
    if not known:
        return Check(name, None, "nobody knows which images calibrated the threshold", values, NEW_DATA)
    used = [f"{count} of {len(evaluated)} served for {use}" for use, count in seen.items() if count]
    return Check(
        name, not used, "; ".join(used) or f"none served for {' or '.join(known)}", values, NEW_DATA if used else ""
    )


def _digests(images: ImageSet) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images.images]
