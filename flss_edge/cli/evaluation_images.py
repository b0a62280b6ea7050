"""Which images an evaluation of a checkpoint takes: those to attack, and those that freeze the thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flss_edge.checkpoint import Checkpoint
from flss_edge.cli.evaluation_options import QUICK_IMAGES, EvaluationOptions
from flss_edge.cli.labelled import align_classes
from flss_edge.data import ImageSet, load_images
from flss_runtime.errors import UsageError
from flss_runtime.images import InputSpec


def images_of(checkpoint: Checkpoint, options: EvaluationOptions) -> tuple[ImageSet, ImageSet]:
    """Return the images to evaluate and those that freeze the thresholds."""
    images = split_of(checkpoint, options.split, options)
    if options.calibration is not None:
        split = "train" if _plain_folder(options.calibration) else "calibration"
        stored = split_of(checkpoint, split, replace(options, data=options.calibration))
    else:
        stored = split_of(checkpoint, "calibration", options)
        if stored.source.partition("[")[0].endswith(":all") or stored.source.startswith(images.source):
            raise UsageError(
                f"{options.data} has no images of its own for the threshold", "add --calibration DATA with other images"
            )
    return spaced(images, options), stored


def split_of(checkpoint: Checkpoint, split: str, options: EvaluationOptions) -> ImageSet:
    """Return a split of the data at the network's size, with its class numbers and its validation part."""
    assert options.data is not None
    size, per_class = checkpoint.model.config.image_size, checkpoint.training.get("validation_per_class")
    found = load_images(options.data, split, spec=InputSpec(size, size), validation_per_class=per_class)
    return align_classes(found, checkpoint.class_names)


def _plain_folder(path: Path) -> bool:
    """Return whether all of it are pictures by class; anything else has a part that training left out."""
    parts = ("train", "cifar-10-batches-py", "cifar-100-python")
    inside = any((path / name).is_dir() for name in parts) or path.name in parts
    return path.is_dir() and not inside


def spaced(images: ImageSet, options: EvaluationOptions) -> ImageSet:
    """Return evenly spaced images, because folders are sorted by class."""
    limit = options.limit or (QUICK_IMAGES if options.suites == ("quick",) else len(images))
    if limit >= len(images):
        return images
    index = np.arange(limit) * len(images) // limit
    return images.take(index, f"{images.source}[{limit} evenly spaced]")
