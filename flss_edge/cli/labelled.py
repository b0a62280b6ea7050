"""Labelled images as a bundle numbers its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flss_edge.data import ImageSet, load_images
from flss_runtime.errors import DataError

if TYPE_CHECKING:
    from flss_runtime.bundle import Bundle


def load_for_bundle(bundle: Bundle, data: Path, split: str, limit: int | None = None) -> ImageSet:
    """Load a split at the bundle's input size, with the bundle's class numbers and validation split.

    Args:
        bundle: what will see the images.
        data: labelled images, as for `load_images`.
        split: likewise.
        limit: take this many, evenly spaced; None for all.

    Raises:
        DataError: the data cannot be read, or names a class that the bundle does not know.
        UsageError: an unknown split.
    """
    per_class = bundle.manifest["data"].get("validation_per_class")
    found = load_images(data, split, spec=bundle.input, validation_per_class=per_class)
    if found.images.shape[1:3] != (bundle.input.height, bundle.input.width):
        height, width = found.images.shape[1:3]
        raise DataError(
            f"the images in {data} are {height}x{width}, the bundle takes {bundle.input.height}x{bundle.input.width}",
            "resize them, or give a folder of pictures per class, which is resized on reading",
        )
    found = align_classes(found, bundle.class_names)
    if limit is None or limit >= len(found):
        return found
    index = np.arange(limit) * len(found) // limit
    return found.take(index, f"{found.source}[{limit} evenly spaced]")


def align_classes(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Renumber the labels so that they index `class_names`; sets without names of their own are taken as numbered.

    Raises:
        DataError: a class is unknown, or there are more classes than names.
    """
    if images.class_names == tuple(class_names):
        return images
    fix = f"name the class folders after the bundle's classes: {', '.join(class_names[:10])}"
    if images.class_names == tuple(f"class_{index}" for index in range(len(images.class_names))):
        if len(images.class_names) > len(class_names):
            raise DataError(f"{images.source} has {len(images.class_names)} classes, not {len(class_names)}", fix)
        return replace(images, class_names=tuple(class_names))
    number = {name: index for index, name in enumerate(class_names)}
    unknown = [name for name in images.class_names if name not in number]
    if unknown:
        raise DataError(f"{images.source} has a class {unknown[0]!r} that the bundle does not know", fix)
    renumbered = np.array([number[name] for name in images.class_names], np.int64)
    return replace(images, labels=renumbered[images.labels], class_names=tuple(class_names))
