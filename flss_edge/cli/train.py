"""`flss-edge train`: images to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flss_edge.cli.options import FormatOption, OverwriteOption, ThreadsOption, require_training
from flss_edge.cli.output import emit, say
from flss_edge.cli.tensorboard import ScalarWriter, require_tensorboard
from flss_edge.cli.training_progress import RunProgress, training_display
from flss_edge.cli.training_session import StopSignal, entered_by_first, readable_torch_errors
from flss_edge.cli.training_setup import (
    blocks_of,
    configured,
    description,
    load_training_data,
    model_config,
    resolved_device,
    resolved_precision,
)
from flss_edge.training_log import read_log
from flss_runtime.errors import FLSSError, UsageError

if TYPE_CHECKING:
    from flss_edge.trainer import Trainer

# Listed here because importing the recipes imports torch; a test compares the two.
RECIPE_NAMES = (
    *("official", "paper", "plus", "standard", "pgd-at", "at-awp", "trades", "trades-awp", "ccat", "rs", "rs-trades"),
    "pni",
)


def train(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Labelled images: .npz, CIFAR in torchvision's layout, or one folder a class."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run; an unfinished run in it is continued.")
    ] = Path("runs/flss"),
    recipe: Annotated[str, typer.Option("--recipe", help=f"What to train: {', '.join(RECIPE_NAMES)}.")] = "official",
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the data; by default the recipe's.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed; by default the recipe's.")] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Channels of the first stage; by default the recipe's, mostly 64.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option("--blocks", help="Residual blocks of each stage, such as 2,2,2,2 for ResNet-18.")
    ] = None,
    activation: Annotated[str | None, typer.Option("--activation", help="relu or silu.")] = None,
    latent_dim: Annotated[
        int | None, typer.Option("--latent-dim", help="Size of the latent space; by default the last stage's channels.")
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
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1 …; auto is cuda where torch sees a GPU.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, tf32 or bf16; by default bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Parts of a mini-batch, one after the other, to save memory.")
    ] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the network with torch.compile.")
    ] = False,
    threads: ThreadsOption = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's scalars into the run's folder as well.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the recipe with every setting, and train nothing.")
    ] = False,
    form: FormatOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a classifier that may decline to answer, or one to compare it with.

    Prints the path of the selected checkpoint. A run that was stopped, by Ctrl-C, SIGTERM or a power cut, continues
    when the same command is given again; with --overwrite it starts anew. docs/training.md says more.
    """
    require_training("train")
    import torch

    from flss_edge.hardware import Hardware
    from flss_edge.parallel import join
    from flss_edge.run_folder import occupied
    from flss_edge.trainer import Trainer

    chosen = configured(recipe, epochs, seed, settings or [])
    shape = {"width": width, "blocks": blocks_of(blocks), "activation": activation, "latent_dim": latent_dim}
    given = {**shape, "hidden": tuple(hidden) if hidden else None, "stem": stem}
    network = {**chosen.network, **{name: value for name, value in given.items() if value is not None}}
    if show_config:
        emit(description(chosen, network), form, None)
        return
    if data is None:
        raise UsageError("--data is missing", "give --data with an .npz, a CIFAR folder or a folder of pictures")
    if tensorboard:
        require_tensorboard()
    device = resolved_device(device)
    precision = resolved_precision(precision, device)
    if threads is not None:
        torch.set_num_threads(threads)
    with readable_torch_errors():
        images = load_training_data(data, image_size, validation_per_class)
        config = model_config(network, images)
        with join(device) as (processes, own_device):
            hardware = Hardware(own_device, precision, processes, accumulate, compiled)
            with entered_by_first(occupied(output, overwrite), processes):
                trainer = Trainer(chosen, config, images, output, hardware=hardware)
                best = _run(trainer, tensorboard)
                if processes.first:
                    print(best)


def _run(trainer: Trainer, tensorboard: bool) -> Path:
    """Train from where the run stands, and return the selected checkpoint; only the first process says anything."""
    from flss_edge.trainer import Stopped

    resumed, hardware = trainer.resume(), trainer.hardware
    if not hardware.processes.first:
        with StopSignal(announce=False) as stop:
            try:
                return trainer.run(stop=lambda: bool(stop))
            except Stopped:
                raise SystemExit(stop.exit_code) from None
    place = f"{hardware.device} in {hardware.precision}" + (f", {hardware.parts} parts" if hardware.parts > 1 else "")
    where = f"after step {trainer.step:,} of {trainer.total_steps:,}" if resumed else f"{trainer.total_steps:,} steps"
    say(f"{'continuing' if resumed else 'training'} {trainer.config.recipe} in {trainer.folder} on {place}: {where}")
    try:
        with StopSignal() as stop:
            best = _shown(trainer, stop, tensorboard)
    except Stopped:
        say(f"saved after step {trainer.step:,} of {trainer.total_steps:,}; the same command continues")
        _draw_curves(trainer.folder)
        raise SystemExit(stop.exit_code) from None
    chosen = trainer.best
    accuracies = f"clean {chosen['selection_accuracy']:.1%}, PGD {chosen['selection_pgd_accuracy']:.1%}"
    say(f"selected epoch {chosen['epoch']}: {accuracies} on {len(trainer.data.selection):,} images")
    _draw_curves(trainer.folder)
    return best


def _shown(trainer: Trainer, stop: StopSignal, tensorboard: bool) -> Path:
    """Train with the progress on stderr and, if wanted, in TensorBoard."""
    from flss_edge.run_folder import TENSORBOARD

    log = trainer.folder / "log.jsonl"
    records = read_log(log) if log.exists() and log.stat().st_size else []
    progress = RunProgress(lambda: trainer.step, trainer.total_steps, trainer.config.epochs, list(records))
    writer = ScalarWriter(trainer.folder / TENSORBOARD, trainer.step, records) if tensorboard else None

    def report(record: dict[str, Any]) -> None:
        display.record(record)
        if writer is not None:
            writer(record)

    def asked() -> bool:
        display.tick()
        return bool(stop)

    try:
        with training_display(progress) as display:
            return trainer.run(report, asked)
    finally:
        if writer is not None:
            writer.close()


def _draw_curves(folder: Path) -> None:
    from flss_edge.training_plot import plot_training

    try:
        plot_training(read_log(folder / "log.jsonl"), folder / "curves.png", title=folder.name)
    except FLSSError as error:
        say(f"no {folder / 'curves.png'}: {error.problem}; {error.fix}")
