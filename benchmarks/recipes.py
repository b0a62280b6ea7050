"""Train every recipe for a few CPU minutes on real CIFAR-10 and check that each improves what it claims to improve.

usage: python benchmarks/recipes.py --data cifar10.npz --threads 1 -o recipes.json
       python benchmarks/recipes.py --data cifar10.npz --only ccat -o recipes.json      one recipe; the others as found

All recipes train the same narrow ResNet-18, so that they compare. Each has a folder of its own below --runs: a finished
one is not trained again, one that was stopped continues. The budgets say nothing about published accuracies.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import command_of
from recipe_claims import REFERENCE, claims_of, measure, measurement_settings
from training_plot import plot_recipes

from flss_edge.checkpoint import load_checkpoint
from flss_edge.data import ImageSet, load_images
from flss_edge.model import RESNET18, ModelConfig
from flss_edge.recipes import RECIPES, recipe_named
from flss_edge.recipes.config import Recipe
from flss_edge.trainer import Stopped, Trainer
from flss_edge.training_data import TrainingData
from flss_runtime.atomic import atomic_write, refuse_existing
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, FLSSError, UsageError

STOPPING = (signal.SIGINT, signal.SIGTERM)
SELECTION_PER_CLASS = 10  # the last epoch is kept; its accuracies are for the log
SAVE_EVERY_S = 20.0
# The trainer's selection is the dearest part of a short epoch, so the last epoch is taken and hardly measured.
COMMON = ("batch_size=64", "selection=last", "selection_steps=1")
TWO_STEPS = ("attack_steps=2", "attack_step_size=5/255")


@dataclass(frozen=True)
class Budget:
    """How long a recipe trains, and what is changed so that it learns in that time."""

    epochs: int
    settings: tuple[str, ...] = ()


# Of 5,000 images, about four minutes each, on one core that does 780 images/s forward and backward at width 8 and 1,100
# attack steps/s: fewer attack steps with a larger step size, and as many epochs as then fit.
SHORT = {
    "standard": Budget(22),
    "rs": Budget(26),
    "pgd-at": Budget(9, TWO_STEPS),
    "at-awp": Budget(7, TWO_STEPS),
    "trades": Budget(7, TWO_STEPS),
    "trades-awp": Budget(5, TWO_STEPS),
    "official": Budget(4, TWO_STEPS),
    "paper": Budget(4, TWO_STEPS),
    "plus": Budget(3, TWO_STEPS),
    # These two take twice as long: ccat is unsure of everything at first, rs-trades hardly above standard training.
    "ccat": Budget(24, ("attack_steps=4", "attack_step_size=0.03", "lr_final=0.1")),
    "rs-trades": Budget(11, ("attack_steps=2", "attack_step_size=0.435")),
    "pni": Budget(6, TWO_STEPS),
}
NEW_RECIPE = Budget(5, TWO_STEPS)
TOY = {name: Budget(1, ("attack_steps=1",)) for name in RECIPES}
BUDGETS = {"short": (SHORT, 5000, 1000), "toy": (TOY, 100, 40)}  # budgets, training images, test images


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code; 1: a claim does not hold."""
    given = sys.argv[1:] if arguments is None else arguments
    stopping: list[int] = []
    before = {number: signal.signal(number, lambda got, _: stopping.append(got)) for number in STOPPING}
    try:
        options = _parse(given)
        result = run(options, stopping)
        with atomic_write(options.output) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        plot_recipes(result, options.output.with_suffix(".png"))
        for claim in result["claims"]:
            print(_line(claim))
        if failed := sorted({claim["recipe"] for claim in result["claims"] if claim["holds"] is False}):
            raise CheckFailed(
                f"claims do not hold: {', '.join(failed)}",
                "Give the recipe a larger budget (--epochs, --images), or find what is wrong with it.",
            )
    except Stopped:
        print("stopped; the same command continues", file=sys.stderr)
        return 128 + stopping[0]
    except FLSSError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def run(options: argparse.Namespace, stopping: list[int]) -> dict[str, Any]:
    """Train and measure the recipes that are asked for, and judge all that were measured so far.

    Args:
        options: of the command line.
        stopping: the training stops once there is something in it.

    Raises:
        Stopped: it did.
    """
    data, test = _data(options)
    for name in options.only or sorted(RECIPES, key=lambda name: name != REFERENCE):  # the reference first
        _one(name, data, test, options, stopping)
    same = _measured_with(data, test, options)
    found = {name: _stored(options.runs / f"{name}.json") for name in RECIPES}
    rows = {name: row for name, row in found.items() if row.get("measured_with") == same}
    measured = {name: row["measured"] for name, row in rows.items()}
    return {
        "schema_version": 1,
        "command": command_of("recipes.py", options),
        "environment": describe_environment(),
        "config": {
            "budget": options.budget,
            "width": options.width,
            "data": data.fit.source,
            "training_images": len(data.fit),
            "test": test.source,
            "test_images": len(test),
            "threads": torch.get_num_threads(),
            "measurement": measurement_settings(),
            "spread": "one training a recipe: standard errors are those of the test images, not of trainings",
        },
        "recipes": rows,
        "claims": [claim.to_json() for name in measured for claim in claims_of(name, measured)],
        "missing": [name for name in RECIPES if name not in rows],
        "validity": {"flags": _flags(options)},
    }


def _one(name: str, data: TrainingData, test: ImageSet, options: argparse.Namespace, stopping: list[int]) -> None:
    """Bring one recipe to the end of its training and measure it, unless that is done already."""
    recipe, model_config = _short(name, options)
    folder = options.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, model_config, data, folder, save_every=SAVE_EVERY_S)
    trainer.resume()
    best = trainer.run(lambda record: _report(name, record), lambda: bool(stopping))

    def between_batches() -> None:
        if stopping:
            raise Stopped

    checkpoint = load_checkpoint(best)
    key = {"checkpoint_sha256": checkpoint.sha256, "measured_with": _measured_with(data, test, options)}
    path = options.runs / f"{name}.json"
    if {field: _stored(path).get(field) for field in key} == key:
        return
    rate = _rate(folder)
    row = {
        **key,
        "source": recipe.source,
        "config": recipe.config.to_json(),
        "deviations": _deviations(name, recipe, model_config),
        "images_per_s": rate,
        "derived_training_s": rate and recipe.config.epochs * len(data.fit) / rate,
        "measured": measure(recipe, checkpoint.model, test, between_batches),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def _rate(folder: Path) -> float | None:
    """Return the median images/s of a run's log records, None where it was too short for one."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [record["images_per_s"] for record in records if record["event"] == "step"]
    return statistics.median(rates) if rates else None


def _short(name: str, options: argparse.Namespace) -> tuple[Recipe, ModelConfig]:
    recipe = recipe_named(name)
    budget = BUDGETS[options.budget][0].get(name, NEW_RECIPE)
    config = recipe.config.with_settings([*COMMON, *budget.settings, *options.set])
    config = replace(config, epochs=options.epochs or budget.epochs)
    network = {**recipe.network, "width": options.width, "blocks": RESNET18}
    return replace(recipe, config=config), ModelConfig(**network)


def _deviations(name: str, recipe: Recipe, model_config: ModelConfig) -> dict[str, list[Any]]:
    """Return [the recipe's value, the one used] of everything that was changed."""
    default = RECIPES[name].config.to_json()
    changed = {key: [default[key], value] for key, value in recipe.config.to_json().items() if default[key] != value}
    published = ModelConfig(**RECIPES[name].network).to_json()
    network = {f"network.{key}": [published[key], value] for key, value in model_config.to_json().items()}
    return changed | {key: values for key, values in network.items() if values[0] != values[1]}


def _data(options: argparse.Namespace) -> tuple[TrainingData, ImageSet]:
    fit, selection = load_images(options.data, "fit"), load_images(options.data, "selection")
    parts = (
        (fit, options.images),
        (selection, SELECTION_PER_CLASS * 10),
        (load_images(options.data), options.test_images),
    )
    first, chosen, test = (_first(images, count // 10) for images, count in parts)
    return TrainingData(first, chosen), test


def _first(images: ImageSet, per_class: int) -> ImageSet:
    """Return the first images of each class, in file order."""
    classes = range(len(images.class_names))
    index = np.sort(np.concatenate([np.flatnonzero(images.labels == k)[:per_class] for k in classes]))
    return images.take(index, f"{images.source}:first {per_class} a class")


def _measured_with(data: TrainingData, test: ImageSet, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "width": options.width,
        "fit_sha256": data.fit.sha256,
        "test_sha256": test.sha256,
        "settings": measurement_settings(),
    }


def _stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _flags(options: argparse.Namespace) -> list[dict[str, str]]:
    if options.budget != "toy":
        return []
    return [{"name": "toy_budget", "detail": "the toy budget tests this script; nothing is learned in it"}]


def _report(name: str, record: dict[str, Any]) -> None:
    if record["event"] == "epoch":
        text = f"{name}: epoch {record['epoch']}, selection accuracy {record['selection_accuracy']:.0%}"
        print(text, file=sys.stderr, flush=True)


def _line(claim: dict[str, Any]) -> str:
    word = {True: "holds", False: "FAILS", None: "open"}[claim["holds"]]
    against = "" if claim["reference"] is None else f" against {claim['reference']:.4f}"
    error = "" if claim["standard_error"] is None else f", standard error {claim['standard_error']:.4f}"
    return f"{word}: {claim['recipe']}: {claim['claim']}: {claim['value']:.4f}{against}{error}"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as flss-edge train reads it")
    parser.add_argument("--only", action="append", metavar="NAME", help="train this recipe; repeatable")
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="short")
    parser.add_argument("--images", type=int, help="training images, the first of each class")
    parser.add_argument("--test-images", type=int, help="test images, the first of each class")
    parser.add_argument("--epochs", type=int, help="of every recipe, instead of the budget's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as flss-edge train --set")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("build/recipes"), help="folder of the trainings")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON, replaced; the plot goes beside it")
    options = parser.parse_args(arguments)
    for name in options.only or ():
        recipe_named(name)
    _, images, test_images = BUDGETS[options.budget]
    options.images, options.test_images = options.images or images, options.test_images or test_images
    if min(options.images, options.test_images) < 10:
        raise UsageError("fewer than 10 images", "Give at least one of each class.")
    refuse_existing(options.output, overwrite=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
