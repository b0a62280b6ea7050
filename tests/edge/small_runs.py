"""Training runs of a second or two, for the tests that stop, kill, divide and repeat them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flss_edge.checkpoint import load_checkpoint
from flss_edge.data import ImageSet
from flss_edge.hardware import Hardware
from flss_edge.model import ModelConfig
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import Recipe
from flss_edge.trainer import Trainer
from flss_edge.training_data import TrainingData

SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 10, "peak_lr": 0.01, "attack_steps": 1, "selection_steps": 2}
# Width 8 is computed with channels last, width 4 is not (see Trainer).
OFFICIAL_MODEL = ModelConfig(num_classes=3, width=8, image_size=16, blocks=(1, 1))
PLUS_MODEL = replace(OFFICIAL_MODEL, width=4, activation="silu")


def recipe(name: str, **settings: Any) -> Recipe:
    """A recipe with a few steps of a mini-batch of ten, and other settings."""
    chosen = recipe_named(name)
    return replace(chosen, config=replace(chosen.config, **{**SMALL, **settings}))


def bars(count: int, seed: int) -> ImageSet:
    """Three classes that a small network can tell apart: horizontal bars, vertical bars, a blob."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(60, 130, (count, 16, 16, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        offset = random.integers(0, 3)
        if label == 0:
            image[offset::4] += 110
        elif label == 1:
            image[:, offset::4] += 110
        else:
            image[4:12, 4:12] += 110
    return ImageSet(images, labels.astype(np.int64), ("rows", "columns", "blob"), "bars")


def small_data(count: int = 45, selection: int = 30) -> TrainingData:
    """45 images are four mini-batches of ten and one of five."""
    return TrainingData(bars(count, 0), bars(selection, 1))


def official_run(folder: Path, hardware: Hardware | None = None, save_every: float = 120.0, **settings: Any) -> Trainer:
    """A run of 15 mini-batches: weights are perturbed from the fifth on, channels last."""
    chosen = recipe("official", **{"awp_start": 0.3, **settings})
    return Trainer(chosen, OFFICIAL_MODEL, small_data(), folder, hardware=hardware, save_every=save_every)


def plus_run(folder: Path, hardware: Hardware | None = None, save_every: float = 120.0, **settings: Any) -> Trainer:
    """A run of 15 mini-batches with everything that `plus` adds; each epoch is selected."""
    chosen = recipe("plus", **{"attack_steps": 1, "rejection_samples": 4, "selection": "last", **settings})
    return Trainer(chosen, PLUS_MODEL, small_data(), folder, hardware=hardware, save_every=save_every)


RUNS = {"official": official_run, "plus": plus_run}


def records(folder: Path) -> list[dict[str, Any]]:
    """The log, without what no two runs have in common."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def assert_same_end(ended: Path, expected: Path) -> None:
    """Both folders hold the same finished run, bit for bit, and nothing else."""
    assert records(ended) == records(expected)
    for name in ("best.pt", "last.pt"):
        a, b = load_checkpoint(ended / name), load_checkpoint(expected / name)
        assert a.training == b.training
        assert_same_tensors(a.model.state_dict(), b.model.state_dict())
    assert sorted(path.name for path in ended.iterdir()) == ["best.pt", "last.pt", "log.jsonl", "state.pt"]


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """The same names and bits."""
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
