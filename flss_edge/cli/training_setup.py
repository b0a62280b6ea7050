"""What the options of `flss-edge train` mean: recipe, network, data, device and precision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flss_edge.cli.output import Document
from flss_runtime.errors import EngineUnavailable, UsageError

if TYPE_CHECKING:
    from flss_edge.data import ImageSet
    from flss_edge.model import ModelConfig
    from flss_edge.recipes.config import Recipe
    from flss_edge.training_data import TrainingData

_LARGEST_CIFAR_STEM = 64  # pixels a side; larger images get the stem that halves them twice
_FROM_THE_DATA = ("num_classes", "image_size", "stem")  # unless somebody chose the stem


def configured(name: str, epochs: int | None, seed: int | None, settings: list[str]) -> Recipe:
    """Return the recipe of that name with what the user changed."""
    from flss_edge.recipes import recipe_named

    recipe = recipe_named(name).with_settings(settings)
    config = recipe.config
    config = replace(
        config,
        epochs=config.epochs if epochs is None else epochs,
        seed=config.seed if seed is None else seed,
    )
    return replace(recipe, config=config)


def blocks_of(text: str | None) -> tuple[int, ...] | None:
    """Return the blocks of each stage that "2,2,2,2" means."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"--blocks {text} is no list of whole numbers", "write it as 2,2,2,2") from None


def description(recipe: Recipe, network: Mapping[str, Any]) -> Document:
    """Return everything that the recipe determines, as --show-config prints it."""
    from flss_edge.model import ModelConfig

    settings = recipe.config.to_json()
    shape = {
        name: value
        for name, value in ModelConfig(**network).to_json().items()
        if name in network or name not in _FROM_THE_DATA
    }
    facts = {"source": recipe.source, "losses": [loss.__name__ for loss in recipe.losses]}
    named = [*settings.items(), *((f"network {name}", value) for name, value in shape.items()), *facts.items()]
    rows = [{"name": name, "value": _in_words(value)} for name, value in named]
    return Document(
        command="train",
        columns={"name": "", "value": "value"},
        rows=rows,
        results={"settings": settings, "network": shape, **facts},
    )


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "default" if value is None else str(value)


def resolved_device(name: str) -> str:
    """Return the device that `name` means here, "auto" resolved.

    Raises:
        UsageError: the name means nothing.
        EngineUnavailable: torch does not see that GPU, or fewer than torchrun started processes here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    fix = "choose cpu, cuda, cuda:INDEX or auto"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}", fix) from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", fix)
    wanted = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), (device.index or 0) + 1)
    if device.type == "cuda" and wanted > torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise EngineUnavailable(
            f"{wanted} GPU(s) are needed for device {name}, but torch sees {seen}",
            "train with --device cpu, or let torchrun start as many processes as there are GPUs",
        )
    return name


def resolved_precision(name: str | None, device: str) -> str:
    """Return the precision that was asked for, or the fastest that suits the device: bf16 on a GPU that has it.

    Raises:
        UsageError: a precision that the device does not have.
    """
    import torch

    on_gpu = device.startswith("cuda")
    if name is None:
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if name == "tf32" and not on_gpu:
        raise UsageError("tf32 is a precision of GPUs", "train with --precision fp32, or on a GPU")
    return name


def load_training_data(data: Path, image_size: int | None, validation_per_class: int | None) -> TrainingData:
    """Return the images that are trained on and those that select the checkpoint."""
    from flss_edge.data import load_images
    from flss_edge.training_data import TrainingData
    from flss_runtime.images import InputSpec

    spec = None if image_size is None else InputSpec(image_size, image_size)

    def part(split: str) -> ImageSet:
        return load_images(data, split, spec=spec, validation_per_class=validation_per_class)

    fit = part("fit")
    height, width = fit.images.shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UsageError(
            f"--image-size is {image_size}, but the images in {data} are {height}x{width}; only folders are resized",
            "drop --image-size, or give a folder of pictures per class",
        )
    return TrainingData(fit, part("selection"), validation_per_class)


def model_config(network: Mapping[str, Any], data: TrainingData) -> ModelConfig:
    """Return the shape of the network: what recipe and user say, the rest from the data."""
    from flss_edge.model import ModelConfig

    size = data.fit.images.shape[1]
    stem = "cifar" if size <= _LARGEST_CIFAR_STEM else "imagenet"
    return ModelConfig(**{"stem": stem, **network}, num_classes=len(data.fit.class_names), image_size=size)
