"""Training learns, stops readably, and survives kill -9 bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flss_edge import trainer as trainer_module
from flss_edge.checkpoint import load_checkpoint
from flss_edge.data import ImageSet, load_images
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.model import ModelConfig
from flss_edge.recipes import TrainConfig, recipe_named
from flss_edge.trainer import Trainer, TrainingData
from flss_runtime.errors import CheckFailed, CheckpointError, DataError, UsageError

CONFIG = replace(TrainConfig(), epochs=3, batch_size=10, peak_lr=0.01, attack_steps=1, crop_padding=0)
MODEL = ModelConfig(num_classes=3, width=4, image_size=16)


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


@pytest.fixture
def data() -> TrainingData:
    return TrainingData(bars(180, 0), bars(30, 1))


def test_a_small_network_learns_to_resist(tmp_path: Path, data: TrainingData) -> None:
    records: list[dict[str, object]] = []
    best = Trainer(replace(CONFIG, epochs=5), MODEL, data, tmp_path).run(records.append)
    checkpoint = load_checkpoint(best)
    test = bars(120, 2)
    assert accuracy(checkpoint.model, test) > 0.8
    assert pgd_accuracy(checkpoint.model, test, epsilon=8 / 255, step_size=2 / 255, steps=10) > 0.6
    epochs = [record for record in records if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == list(range(1, 6))
    robust = [record["selection_pgd_accuracy"] for record in epochs]
    assert checkpoint.training["epoch"] == 1 + robust.index(max(robust))  # type: ignore[type-var]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == records


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from test_trainer import CONFIG, MODEL, Trainer, TrainingData, bars
trainer = Trainer(CONFIG, MODEL, TrainingData(bars(120, 0), bars(30, 1)), Path(sys.argv[1]), save_every=0.05)
trainer.resume()
print("ready", flush=True)
trainer.run()
"""


def run_worker(folder: Path, kill_after: float | None) -> int:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent)), str(folder)], stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(worker.pid, signal.SIGKILL)
    worker.stdout.close()
    return worker.wait()


def test_a_killed_run_ends_where_the_uninterrupted_one_ends(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    started = time.monotonic()
    assert run_worker(whole, None) == 0
    duration = time.monotonic() - started
    kills = 0
    for fraction in (0.15, 0.1, 0.2, 0.12):
        kills += run_worker(killed, fraction * duration) == -signal.SIGKILL
    assert kills >= 2, "the runs ended before they were killed"
    assert run_worker(killed, None) == 0
    for name in ("best.pt", "last.pt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(killed / name)
        assert a.training == b.training
        for key, value in a.model.state_dict().items():
            assert torch.equal(value, b.model.state_dict()[key]), key

    def log(folder: Path) -> list[dict[str, object]]:
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]

    assert log(whole) == log(killed)
    assert sorted(path.name for path in killed.iterdir()) == ["best.pt", "last.pt", "log.jsonl", "state.pt"]


@pytest.mark.parametrize("files", range(6))
def test_best_and_state_agree_wherever_a_kill_comes(
    files: int, tmp_path: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs, each better than the last and of three files: the run dies before it writes number `files`."""
    accuracies = count(1)
    monkeypatch.setattr(trainer_module, "pgd_accuracy", lambda *_, **__: next(accuracies) / 100)
    written: list[str] = []

    def dying(write: Any) -> Any:
        def call(path: Path, *arguments: Any) -> Any:
            if len(written) == files:
                raise KeyboardInterrupt
            written.append(path.name)
            return write(path, *arguments)

        return call

    small = TrainingData(data.fit.take(np.arange(30), "bars"), data.selection)
    config = replace(CONFIG, epochs=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in ("save_checkpoint", "atomic_write"):
            patch.setattr(trainer_module, name, dying(getattr(trainer_module, name)))
        Trainer(config, MODEL, small, tmp_path).run()
    resumed = Trainer(config, MODEL, small, tmp_path)
    assert resumed.resume() == ("state.pt" in written)
    if resumed.best:
        assert load_checkpoint(tmp_path / "best.pt").training["epoch"] == resumed.best["epoch"]
        assert resumed.step == 3 * resumed.best["epoch"]
    best = resumed.run()
    assert load_checkpoint(best).training["epoch"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 6]  # epoch 1; the last step and epoch 2: nothing twice


def test_resuming_without_the_selected_checkpoint_is_refused(tmp_path: Path, data: TrainingData) -> None:
    small = TrainingData(data.fit.take(np.arange(30), "bars"), data.selection)
    Trainer(replace(CONFIG, epochs=2), MODEL, small, tmp_path).run()
    for name in ("best.pt", "last.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt is not the checkpoint of epoch"):
        Trainer(replace(CONFIG, epochs=2), MODEL, small, tmp_path).resume()


def test_leftovers_of_a_run_that_never_saved_are_dropped(tmp_path: Path, data: TrainingData) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 20}\n{"event": "st')
    (tmp_path / ".tmp-0123456789ab-state.pt").write_bytes(b"half")
    (tmp_path / ".tmp-notes").write_text("somebody else's")
    assert not Trainer(CONFIG, MODEL, data, tmp_path).resume()
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-notes", "log.jsonl"]


def test_every_update_gets_the_recipes_schedule_and_every_image_once_an_epoch(tmp_path: Path) -> None:
    """What reaches the optimiser and the update, not what is logged: 120 epochs of two updates that do nothing."""
    fit = bars(15, 0)
    config = replace(CONFIG, epochs=120, peak_lr=0.1)
    trainer = Trainer(config, MODEL, TrainingData(fit, bars(3, 1)), tmp_path)
    seen: list[tuple[float, float, float, int]] = []

    def update(images: torch.Tensor, labels: torch.Tensor, progress: float) -> dict[str, torch.Tensor]:
        (group,) = trainer.optimizer.param_groups
        seen.append((progress, group["lr"], group["momentum"], len(labels)))
        return {}

    trainer.update = update  # type: ignore[assignment]
    trainer._finish_epoch = lambda *_: None  # type: ignore[method-assign]
    trainer.run()
    assert [size for *_, size in seen] == [10, 5] * 120  # the incomplete batch is kept
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.0, max_lr=0.1, step_size_up=120)
    for _, lr, momentum, _ in seen:
        (group,) = optimizer.param_groups
        assert (lr, momentum) == pytest.approx((group["lr"], group["momentum"]), abs=1e-12)
        optimizer.step()
        scheduler.step()
    warming = [progress < config.kl_between_warmup for progress, *_ in seen]
    assert warming == [True] * (5 * 2) + [False] * (115 * 2)  # epochs 1 to 5
    perturbing = [progress >= config.awp_start for progress, *_ in seen]
    assert perturbing == [False] * (9 * 2) + [True] * (111 * 2)  # from epoch 10 on
    orders = [trainer._order(epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(15)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path, data: TrainingData) -> None:
    Trainer(CONFIG, MODEL, data, tmp_path).save()
    assert Trainer(CONFIG, MODEL, data, tmp_path).resume()
    with pytest.raises(UsageError, match="other settings \\(config\\)"):
        Trainer(replace(CONFIG, seed=2), MODEL, data, tmp_path).resume()
    with pytest.raises(UsageError, match=r"other settings \(data\)"):
        Trainer(CONFIG, MODEL, TrainingData(bars(150, 0), data.selection), tmp_path).resume()


def test_a_diverging_run_stops_and_says_how_to_go_on(tmp_path: Path, data: TrainingData) -> None:
    with pytest.raises(CheckFailed, match="no longer finite") as failure:
        Trainer(replace(CONFIG, peak_lr=1e6, epochs=8), MODEL, data, tmp_path).run()
    assert "peak_lr" in failure.value.fix


def test_a_diverged_network_is_never_saved(tmp_path: Path, data: TrainingData) -> None:
    trainer = Trainer(CONFIG, MODEL, data, tmp_path)
    trainer.save()
    before = (tmp_path / "state.pt").read_bytes()
    with torch.no_grad():
        trainer.model.head[-1].bias[0] = float("nan")
    with pytest.raises(CheckFailed, match="weights are no longer finite"):
        trainer.save()
    assert (tmp_path / "state.pt").read_bytes() == before


def test_data_that_does_not_fit_is_refused(tmp_path: Path, data: TrainingData) -> None:
    with pytest.raises(UsageError, match="3 classes, the network 5"):
        Trainer(CONFIG, replace(MODEL, num_classes=5), data, tmp_path)
    with pytest.raises(UsageError, match="the network takes"):
        Trainer(CONFIG, replace(MODEL, image_size=32), data, tmp_path)
    keep = np.flatnonzero(data.fit.labels != 1)
    with pytest.raises(DataError, match="no training image of class columns"):
        Trainer(CONFIG, MODEL, TrainingData(data.fit.take(keep, "x"), data.selection), tmp_path)


def test_settings_are_parsed_and_unknown_ones_refused() -> None:
    config = recipe_named("official").with_settings(["epsilon=4/255", "epochs=7", "flip=false"])
    assert (config.epsilon, config.epochs, config.flip) == (4 / 255, 7, False)
    unknown = ("speed=3", "epochs=many", "epochs", "flip=maybe", "recipe=x")
    for bad in (*unknown, "epsilon=8", "epsilon=nan", f"seed={2**32}"):
        with pytest.raises(UsageError):
            recipe_named("official").with_settings([bad])
    with pytest.raises(UsageError, match="no recipe 'fast'"):
        recipe_named("fast")


def test_official_is_the_released_recipe_on_cifar10(cifar10: Path) -> None:
    config = recipe_named("official")
    fit = load_images(cifar10, "fit")
    steps = -(-len(fit) // config.batch_size)
    assert (len(fit), steps, config.epochs * steps) == (49_000, 383, 45_960)
    assert config.kl_between_warmup * config.epochs * steps == pytest.approx(5 * steps)
    assert config.awp_start * config.epochs * steps == pytest.approx(9 * steps)
    assert len(load_images(cifar10, "selection")) == len(load_images(cifar10, "calibration")) == 500
