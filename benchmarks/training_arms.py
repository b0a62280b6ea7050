"""The arms of benchmarks/training.py and the blocks that time them."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from literal_update import literal_update

from flss_edge.data import ImageSet
from flss_edge.hardware import Hardware
from flss_edge.minibatch import Minibatch
from flss_edge.model import ModelConfig
from flss_edge.recipes.config import Recipe
from flss_edge.trainer import Trainer
from flss_edge.training_data import TrainingData
from flss_runtime.visits import palindrome

PROGRESS = 0.5  # of the training: all weights as from epoch 10 of 120 on, the weight perturbation included
LEARNING_RATE = 1e-3  # does not change the time, and a network that stays finite keeps its arithmetic ordinary


@dataclass(frozen=True)
class Arm:
    """One way to train on a mini-batch; `update` takes the number of the mini-batch and does all of it."""

    name: str
    trainer: Trainer
    update: Callable[[int], None]
    peak_memory_mib: float | None


class Clock:
    """Time on the device: events on a GPU, so that nothing waits between two updates; else the wall clock."""

    def __init__(self, device: torch.device) -> None:
        """Bind the device."""
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Note the present moment in the order of the device's work."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, marks: list[Any]) -> list[float]:
        """Return the time between each mark and the next, having waited for the last."""
        if not self.cuda:
            return [(after - before) * 1e3 for before, after in pairwise(marks)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(marks)]


def build_arm(name: str, recipe: Recipe, data: ImageSet, options: argparse.Namespace) -> Arm:
    """Build one arm and warm it up; every arm starts from the same weights."""
    cuda = torch.device(options.device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    trainer = new_trainer(recipe, data, options, compile_it=name == "compiled")
    config: Any = recipe.config

    def literal(step: int) -> None:
        batch = minibatch(trainer, step)
        literal_update(
            trainer.network,  # type: ignore[arg-type]
            trainer.optimizer,
            batch.images,
            batch.labels,
            batch.draws,
            config,
            PROGRESS,
        )

    def fast(step: int) -> None:
        trainer.update([minibatch(trainer, step)])

    update = literal if name == "literal" else fast
    for step in range(options.warm_up):
        update(step)
    peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if cuda else None
    return Arm(name, trainer, update, peak)


def new_trainer(recipe: Recipe, data: ImageSet, options: argparse.Namespace, *, compile_it: bool = False) -> Trainer:
    """Return a trainer whose network, optimiser and update are those of `flss-edge train`; it writes nothing."""
    trainer = Trainer(
        recipe,
        ModelConfig(num_classes=len(data.class_names), width=options.width, image_size=data.images.shape[1]),
        TrainingData(data, data),
        Path(),
        hardware=Hardware(options.device, options.precision, compile=compile_it),
    )
    for group in trainer.optimizer.param_groups:
        group["lr"], group["momentum"] = LEARNING_RATE, recipe.config.momentum
    return trainer


def minibatch(trainer: Trainer, step: int) -> Minibatch:
    """Return mini-batch `step`, made as the trainer makes it, of images that lie on the device."""
    size, count = trainer.config.batch_size, len(trainer.loader.labels)
    index = (torch.arange(size, device=trainer.device) + step * size) % count
    (whole,) = trainer.loader.parts(index, step)
    return replace(whole, progress=PROGRESS)


def run_blocks(arms: list[Arm], options: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """Return each arm's block values in milliseconds an update, and the number of timed updates of each arm."""
    by_name = {arm.name: arm for arm in arms}
    blocks: dict[str, list[float]] = {name: [] for name in by_name}
    step = options.warm_up
    for block in range(options.blocks):
        medians: dict[str, list[float]] = {name: [] for name in by_name}
        for name in palindrome(list(by_name), block):
            taken = _visit(by_name[name], step, options.updates)
            medians[name].append(statistics.median(taken))
            step += options.updates + 1
        for name, values in medians.items():
            blocks[name].append(statistics.mean(values))
        rates = ", ".join(f"{name} {options.batch_size / ms[-1] * 1e3:.1f}" for name, ms in blocks.items())
        print(f"block {block + 1} of {options.blocks}: {rates} images/s", file=sys.stderr, flush=True)
    return blocks, 2 * options.blocks * options.updates


def _visit(arm: Arm, step: int, updates: int) -> list[float]:
    clock = Clock(arm.trainer.device)
    arm.update(step)  # finds the other arm's weights in the caches, so it does not count
    marks = [clock.mark()]
    for index in range(updates):
        arm.update(step + 1 + index)
        marks.append(clock.mark())
    return clock.milliseconds(marks)
