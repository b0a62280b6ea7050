"""Whether evaluated images served before; NumPy only, so that a bundle's evaluation asks the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from flss_edge.data import ImageSet
from flss_edge.robustness.check import Check
from flss_runtime.errors import DataError

NEW_DATA = "Evaluate on images that neither the training nor the threshold has seen; their figures flatter."
_KNOWN = ImageSet | str | None


def recorded_uses(
    training: Mapping[str, object], evaluated: ImageSet, load: Callable[[str], ImageSet], whose: str = ""
) -> dict[str, _KNOWN]:
    """Return what a network's training took images for, as `data_is_new` takes it.

    The parts that the record names are looked for in the data that the evaluated images come from, so that a few of
    them are recognised too. Images of the part "test" were left out of any training on the same data.

    Args:
        training: the training's record; `data_sha256` and `selection_sha256` of it count.
        evaluated: images of the evaluation.
        load: name of a split -> its images, of the same data.
        whose: network, where there is more than one.
    """
    suffix = f" {whose}" if whose else ""
    apart = evaluated.source.partition("[")[0].endswith(":test")
    known: dict[str, _KNOWN] = {}
    for use, key, splits in (
        ("training", "data_sha256", ("fit", "train")),
        ("choosing the checkpoint", "selection_sha256", ("selection",)),
    ):
        digest = training.get(key)
        if isinstance(digest, str):
            known[use + suffix] = digest if apart else _found(digest, splits, load)
        elif use == "training":
            known[use + suffix] = None
    return known


def calibrated_on(digest: object, load: Callable[[str], ImageSet]) -> _KNOWN:
    """Return the images that chose a bundle's threshold, None where they are none of these data's parts."""
    return _found(digest, ("calibration", "test", "validation", "train"), load) if isinstance(digest, str) else None


def data_is_new(evaluated: ImageSet, known: Mapping[str, _KNOWN]) -> Check:
    """Check that no evaluated image served before: for the threshold, or for the training.

    Args:
        evaluated: images of the evaluation.
        known: use ("calibration", "training", ...) -> its images, compared one by one; or the sha256 of a set that
            cannot overlap but as a whole; or None, where nobody can tell.
    """
    seen: dict[str, int | None] = {}
    for use, data in known.items():
        if data is None:
            seen[use] = None
        elif isinstance(data, str):
            seen[use] = len(evaluated) if data == evaluated.sha256 else 0
        else:
            before = set(_digests(data))
            seen[use] = sum(digest in before for digest in _digests(evaluated))
    used = [f"{count} of {len(evaluated)} served for {use}" for use, count in seen.items() if count]
    unused = [use for use, count in seen.items() if count == 0]
    untold = [use for use, count in seen.items() if count is None] or ([] if known else ["calibration"])
    texts = used or ([f"none served for {' or '.join(unused)}"] if unused else [])
    if untold:
        texts.append(f"nobody can tell which images served for {' or '.join(untold)}")
    passed = False if used else None if untold else True
    values = {"images": len(evaluated), "seen": seen}
    return Check("evaluated data is new", passed, "; ".join(texts), values, "" if passed else NEW_DATA)


def _found(digest: str, splits: tuple[str, ...], load: Callable[[str], ImageSet]) -> ImageSet | None:
    for split in splits:
        try:
            found = load(split)
        except DataError:  # these data have no such part
            continue
        if found.sha256 == digest:
            return found
    return None


def _digests(images: ImageSet) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images.images]
