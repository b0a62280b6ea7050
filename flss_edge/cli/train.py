"""`flss-edge train`: images to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import OverwriteOption, ThreadsOption, require_training
from flss_edge.cli.output import progress, say
from flss_runtime.errors import EngineUnavailable, OutputError, UsageError

if TYPE_CHECKING:
    from flss_edge.data import ImageSet
    from flss_edge.recipes import TrainConfig
    from flss_edge.trainer import TrainingData

_LARGEST_CIFAR_STEM = 64  # pixels a side; larger images get the stem that halves them twice


def train(
    data: Annotated[
        Path,
        typer.Option("--data", help="Labelled images: .npz, CIFAR in torchvision's layout, or one folder a class."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run; an unfinished run in it is continued.")
    ] = Path("runs/flss"),
    recipe: Annotated[str, typer.Option("--recipe", help="Training configuration to start from.")] = "official",
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the data; by default the recipe's.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed; by default the recipe's.")] = None,
    width: Annotated[int, typer.Option("--width", help="Channels of the first stage; 64 is the paper's.")] = 64,
    latent_dim: Annotated[
        int | None, typer.Option("--latent-dim", help="Size of the latent space; by default 8 * width.")
    ] = None,
    hidden: Annotated[
        list[int] | None, typer.Option("--hidden", help="Width of a hidden layer of the head; repeatable.")
    ] = None,
    stem: Annotated[
        str | None, typer.Option("--stem", help="cifar or imagenet; by default cifar up to 64 pixels.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Pixels a side; needed for folders, which are resized to it.")
    ] = None,
    validation_per_class: Annotated[
        int | None, typer.Option("--validation-per-class", min=2, help="Training images a class to hold out.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")] = "cpu",
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a classifier that may decline to answer.

    Prints the path of the selected checkpoint. A run that was stopped, by Ctrl-C or a power cut, continues when the
    same command is given again; with --overwrite it starts anew.
    """
    require_training("train")
    import torch

    from flss_edge.model import ModelConfig
    from flss_edge.recipes import recipe_named
    from flss_edge.trainer import Trainer

    config = _configure(recipe_named(recipe), epochs, seed, settings or [])
    _check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    images = _load(data, image_size, validation_per_class)
    size = images.fit.images.shape[1]
    model_config = ModelConfig(
        num_classes=len(images.fit.class_names),
        width=width,
        latent_dim=latent_dim,
        hidden=tuple(hidden or ()),
        stem=stem or ("cifar" if size <= _LARGEST_CIFAR_STEM else "imagenet"),
        image_size=size,
    )
    _prepare_folder(output, overwrite)
    trainer = Trainer(config, model_config, images, output, device=device)
    if trainer.resume():
        say(f"continuing {output} after step {trainer.step} of {trainer.total_steps}")
    with progress() as report:
        best = trainer.run(_reporter(report, trainer.step))
    say(f"selected epoch {trainer.best['epoch']}: PGD accuracy {trainer.best['selection_pgd_accuracy']:.1%}")
    print(best)


def _configure(config: TrainConfig, epochs: int | None, seed: int | None, settings: list[str]) -> TrainConfig:
    config = config.with_settings(settings)
    return replace(
        config,
        epochs=config.epochs if epochs is None else epochs,
        seed=config.seed if seed is None else seed,
    )


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}", "choose cpu, cuda or cuda:INDEX") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", "choose cpu, cuda or cuda:INDEX")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise EngineUnavailable(f"device {name} was asked for, but torch sees {seen} GPU", "train with --device cpu")


def _load(data: Path, image_size: int | None, validation_per_class: int | None) -> TrainingData:
    from flss_edge.data import load_images
    from flss_edge.trainer import TrainingData
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


def _prepare_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder of a run, or clear a run that is to start anew; other people's files are never touched."""
    from flss_edge.run_folder import RUN_FILES, abandoned_files

    ours = {*(folder / name for name in RUN_FILES), *abandoned_files(folder)}
    foreign = sorted(entry.name for entry in folder.iterdir() if entry not in ours) if folder.is_dir() else []
    if foreign and not (folder / "state.pt").exists():
        raise OutputError(f"{folder} holds other files ({', '.join(foreign[:3])})", "choose another folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in ours if overwrite else ():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "choose another folder with -o") from error


def _reporter(report: Callable[[str, float], None], first_step: int) -> Callable[[dict[str, Any]], None]:
    """Return what turns log records into a progress line with the time left, and a lasting line an epoch."""
    started = time.monotonic()

    def show(record: dict[str, Any]) -> None:
        if record["event"] == "epoch":
            say(
                f"epoch {record['epoch']}: accuracy {record['selection_accuracy']:.1%}, "
                f"PGD {record['selection_pgd_accuracy']:.1%} (best epoch {record['best_epoch']})"
            )
            return
        step, total = record["step"], record["total_steps"]
        left = (time.monotonic() - started) / max(1, step - first_step) * (total - step)
        report(f"step {step} of {total}, {record['images_per_s']:.0f} images/s, {left / 60:.0f} min left", step / total)

    return show
