"""The images of a training run, and whether they fit the network and the recipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flss_edge.data import ImageSet
from flss_edge.model import ModelConfig
from flss_edge.recipes.config import Recipe
from flss_runtime.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The images that are trained on, and those that choose the checkpoint; they share no image.

    `validation_per_class` says how the split was made, so that calibration can find its own half later.
    """

    fit: ImageSet
    selection: ImageSet
    validation_per_class: int | None = None


def check_fit(recipe: Recipe, model_config: ModelConfig, data: TrainingData, parts: int) -> None:
    """Refuse data, network and recipe that do not go together, before anything is built.

    Args:
        recipe: with its settings.
        model_config: the network.
        data: what to train on.
        parts: of a mini-batch that are normalised apart.

    Raises:
        UsageError: recipe, network, image size, classes or mini-batch do not fit.
        DataError: a label is out of range, or a class has no image.
    """
    config, names = recipe.config, data.fit.class_names
    for name in ("network", "weight_noise"):
        wanted = recipe.network.get(name, ModelConfig.__dataclass_fields__[name].default)
        if getattr(model_config, name) != wanted:
            raise UsageError(
                f"recipe {config.recipe} trains networks with {name} {wanted!r}, not {getattr(model_config, name)!r}",
                "Build the network with the fields of the recipe.",
            )
    if len(names) != model_config.num_classes:
        raise UsageError(
            f"the data has {len(names)} classes, the network {model_config.num_classes}",
            "Leave the number of classes to the data, or give a data set that fits.",
        )
    highest = int(data.fit.labels.max())
    if highest >= len(names):
        raise DataError(f"the label {highest} occurs, but there are {len(names)} classes", "Number classes from 0.")
    counts = np.bincount(data.fit.labels, minlength=len(names))
    if empty := [names[k] for k in range(len(names)) if counts[k] == 0]:
        raise DataError(f"no training image of class {empty[0]}", "Add images of it or leave the class out.")
    last = len(data.fit) % config.batch_size or config.batch_size
    if last < 2 * parts:
        raise UsageError(
            f"the last mini-batch of {len(data.fit)} images has {last}, for {parts} part(s) of at least 2 each",
            "Choose another --set batch_size=, or fewer processes and a smaller --accumulate.",
        )
    size = (model_config.image_size, model_config.image_size)
    if data.fit.images.shape[1:3] != size:
        raise UsageError(
            f"images are {data.fit.images.shape[1:3]}, the network takes {size}", "Set --image-size to the data's size."
        )
