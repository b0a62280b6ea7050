"""Training learns, follows the recipe's schedule, selects what it says, and stops readably."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge import trainer as trainer_module
from flss_edge.checkpoint import load_checkpoint
from flss_edge.data import load_images
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.hardware import Hardware
from flss_edge.minibatch import Minibatch
from flss_edge.model import FLSS, ModelConfig
from flss_edge.recipes import recipe_named
from flss_edge.trainer import Trainer
from flss_edge.training_data import TrainingData
from flss_runtime.errors import CheckFailed, DataError, FLSSError, UsageError

from .small_runs import OFFICIAL_MODEL, bars, official_run, recipe, records, small_data

MODEL = replace(OFFICIAL_MODEL, width=4)


@pytest.fixture
def data() -> TrainingData:
    return small_data(180)


def test_a_small_network_learns_to_resist(tmp_path: Path, data: TrainingData) -> None:
    reported: list[dict[str, Any]] = []
    network = ModelConfig(num_classes=3, width=4, image_size=16)
    best = Trainer(recipe("official", epochs=5, crop_padding=0), network, data, tmp_path).run(reported.append)
    checkpoint = load_checkpoint(best)
    test = bars(120, 2)
    assert accuracy(checkpoint.model, test) > 0.8
    assert pgd_accuracy(checkpoint.model, test, epsilon=8 / 255, step_size=2 / 255, steps=10) > 0.6
    epochs = [record for record in reported if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == list(range(1, 6))
    robust = [record["selection_pgd_accuracy"] for record in epochs]
    assert checkpoint.training["epoch"] == 1 + robust.index(max(robust))
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == reported


@pytest.mark.parametrize(("selection", "chosen"), [("pgd", 2), ("clean", 1), ("last", 4)])
def test_the_recipe_says_what_selects_the_checkpoint(
    selection: str, chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties keep the earliest epoch; `best_epoch` of the log is the best so far."""
    clean, robust = iter([0.9, 0.8, 0.9, 0.1]), iter([0.2, 0.5, 0.5, 0.3])
    monkeypatch.setattr(trainer_module, "accuracy", lambda *_, **__: next(clean))
    monkeypatch.setattr(trainer_module, "pgd_accuracy", lambda *_, **__: next(robust))
    config = recipe("official", epochs=4, selection=selection)
    best = Trainer(config, MODEL, small_data(30), tmp_path).run()
    assert load_checkpoint(best).training["epoch"] == chosen
    assert load_checkpoint(tmp_path / "last.pt").training["epoch"] == 4
    so_far = [record["best_epoch"] for record in records(tmp_path) if record["event"] == "epoch"]
    assert so_far == {"pgd": [1, 2, 2, 2], "clean": [1, 1, 1, 1], "last": [1, 2, 3, 4]}[selection]


def test_the_checkpoint_says_how_it_was_made(tmp_path: Path) -> None:
    trainer = official_run(tmp_path, Hardware(accumulate=2), epochs=1)
    training = load_checkpoint(trainer.run()).training
    assert training["config"] == trainer.config.to_json()
    assert (training["precision"], training["parts"]) == ("fp32", 2)
    assert training["data_sha256"] == trainer.data.fit.sha256
    assert training["selection_sha256"] == trainer.data.selection.sha256


Seen = tuple[float, float, float, int]


def watch(trainer: Trainer) -> list[Seen]:
    """Replace the update by one that notes (progress, learning rate, momentum, images), and skip the measurements."""
    seen: list[Seen] = []

    def update(parts: Sequence[Minibatch]) -> dict[str, Tensor]:
        (group,) = trainer.optimizer.param_groups
        seen.append((parts[0].progress, group["lr"], group["momentum"], sum(len(part.labels) for part in parts)))
        return {}

    trainer.update = update  # type: ignore[assignment]
    trainer._finish_epoch = lambda epoch, *_: setattr(trainer, "evaluated", epoch)  # type: ignore[method-assign]
    return seen


def test_every_update_gets_the_recipes_schedule_and_every_image_once_an_epoch(tmp_path: Path) -> None:
    """What reaches the optimiser and the update, not what is logged: 120 epochs of two updates that do nothing."""
    config = recipe("official", epochs=120, peak_lr=0.1)
    trainer = Trainer(config, MODEL, TrainingData(bars(15, 0), bars(3, 1)), tmp_path)
    seen = watch(trainer)
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
    warming = [progress < config.config.kl_between_warmup for progress, *_ in seen]
    assert warming == [True] * (5 * 2) + [False] * (115 * 2)  # epochs 1 to 5
    perturbing = [progress >= config.config.awp_start for progress, *_ in seen]
    assert perturbing == [False] * (9 * 2) + [True] * (111 * 2)  # from epoch 10 on
    orders = [torch.cat(trainer.loader.order(epoch)) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(15)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


def test_other_schedules_reach_the_optimiser_too(tmp_path: Path) -> None:
    """Constant within an epoch, with constant momentum."""
    step = recipe("official", epochs=4, schedule="step", peak_lr=0.1, lr_milestones=(0.5, 0.75), momentum=0.7)
    trainer = Trainer(step, MODEL, TrainingData(bars(15, 0), bars(3, 1)), tmp_path)
    seen = watch(trainer)
    trainer.run()
    assert [lr for _, lr, *_ in seen] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert {momentum for _, _, momentum, _ in seen} == {0.7}


def test_a_part_has_its_rows_and_its_share(tmp_path: Path) -> None:
    """Three parts of seven images; together they are the mini-batch of one part."""
    whole = Trainer(recipe("official", batch_size=7), MODEL, small_data(49), tmp_path)
    (expected,) = whole.loader.parts(torch.arange(7), 0)
    divided = Trainer(
        recipe("official", batch_size=7), MODEL, small_data(49), tmp_path, hardware=Hardware(accumulate=3)
    )
    parts = divided.loader.parts(torch.arange(7), 0)
    assert [len(part.labels) for part in parts] == [2, 2, 3]
    assert [part.share for part in parts] == [2 / 7, 2 / 7, 3 / 7]
    assert [part.nominal for part in parts] == pytest.approx([2, 2, 3])
    assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)
    assert (expected.share, expected.nominal) == (1, 7)
    (incomplete,) = whole.loader.parts(torch.arange(5), 0)
    assert (incomplete.share, incomplete.nominal) == (1, 7)  # what a full mini-batch would have


def test_the_random_starts_do_not_depend_on_the_batch_size() -> None:
    network = FLSS(MODEL).eval()
    inputs: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].detach()))
    found = []
    for batch_size, seed in ((250, 3), (7, 3), (7, 4)):
        inputs.clear()
        robust = pgd_accuracy(
            network, bars(30, 1), epsilon=0.2, step_size=0.1, steps=0, seed=seed, batch_size=batch_size
        )
        found.append((robust, torch.cat(inputs)))
        assert len(inputs[0]) == min(batch_size, 30)
    whole, divided, other = found
    assert whole[0] == divided[0] and torch.equal(whole[1], divided[1])
    assert not torch.equal(divided[1], other[1])


def test_measurements_take_as_many_images_at_a_time_as_the_training(tmp_path: Path) -> None:
    """A part of nine images over two parts has five at most."""
    trainer = official_run(tmp_path, Hardware(accumulate=2), batch_size=9)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    trainer._measure(1, lambda: False)
    assert set(sizes) == {5}  # thirty selection images


def test_a_diverging_run_stops_and_says_how_to_go_on(tmp_path: Path, data: TrainingData) -> None:
    with pytest.raises(CheckFailed, match="no longer finite") as failure:
        Trainer(recipe("official", peak_lr=1e6, epochs=8), MODEL, data, tmp_path).run()
    assert "peak_lr" in failure.value.fix


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, data: TrainingData) -> None:
    trainer = Trainer(recipe("official"), MODEL, data, tmp_path)
    trainer.update = lambda parts: {"clean_loss": torch.tensor(float("nan"))}  # type: ignore[assignment]
    with pytest.raises(CheckFailed, match=r"the loss is no longer finite at step 20 .*clean_loss"):
        trainer.run()


def test_a_diverged_network_is_never_saved(tmp_path: Path, data: TrainingData) -> None:
    trainer = Trainer(recipe("official"), MODEL, data, tmp_path)
    trainer.save()
    before = (tmp_path / "state.pt").read_bytes()
    with torch.no_grad():
        trainer.network.head[-1].bias[0] = float("nan")
    with pytest.raises(CheckFailed, match="weights are no longer finite"):
        trainer.save()
    assert (tmp_path / "state.pt").read_bytes() == before


def refusal(error: type[FLSSError], match: str, build: Callable[[], object]) -> None:
    """The error says what is wrong and what to do."""
    with pytest.raises(error, match=match) as failure:
        build()
    assert failure.value.fix


def test_data_that_does_not_fit_is_refused(tmp_path: Path, data: TrainingData) -> None:
    official = recipe("official")

    def trainer(model: ModelConfig = MODEL, data: TrainingData = data, parts: int = 1, **settings: Any) -> Trainer:
        return Trainer(recipe("official", **settings), model, data, tmp_path, hardware=Hardware(accumulate=parts))

    refusal(UsageError, "3 classes, the network 5", lambda: trainer(replace(MODEL, num_classes=5)))
    refusal(UsageError, "the network takes", lambda: trainer(replace(MODEL, image_size=32)))
    refusal(UsageError, "networks with network 'flss'", lambda: trainer(replace(MODEL, network="classifier")))
    keep = np.flatnonzero(data.fit.labels != 1)
    lacking = TrainingData(data.fit.take(keep, "x"), data.selection)
    refusal(DataError, "no training image of class columns", lambda: trainer(data=lacking))
    fit = replace(data.fit, labels=data.fit.labels + 1)
    refusal(DataError, "label 3 occurs", lambda: trainer(data=TrainingData(fit, data.selection)))
    refusal(UsageError, "has 1, for 1 part", lambda: trainer(batch_size=179))
    refusal(UsageError, "has 5, for 3 part", lambda: trainer(batch_size=35, parts=3))
    assert trainer(batch_size=35, parts=2).config.batch_size == 35
    refusal(
        UsageError, "accumulate is 0", lambda: Trainer(official, MODEL, data, tmp_path, hardware=Hardware(accumulate=0))
    )


def test_settings_are_parsed_and_unknown_ones_refused() -> None:
    config = recipe_named("official").config
    changed = config.with_settings(["epsilon=4/255", "epochs=7", "flip=false", "lr_milestones=1/2,0.75"])
    assert (changed.epsilon, changed.epochs, changed.flip, changed.lr_milestones) == (4 / 255, 7, False, (0.5, 0.75))
    unknown = ("speed=3", "epochs=many", "epochs", "flip=maybe", "recipe=x", "schedule=cosine", "consistency=none")
    for bad in (*unknown, "epsilon=8", "epsilon=nan", "ema_decay=1", f"seed={2**32}", "lr_milestones=a"):
        with pytest.raises(UsageError):
            config.with_settings([bad])
    with pytest.raises(UsageError, match="no recipe 'fast'"):
        recipe_named("fast")


def test_official_is_the_released_recipe_on_cifar10(cifar10: Path) -> None:
    config: Any = recipe_named("official").config
    fit = load_images(cifar10, "fit")
    steps = -(-len(fit) // config.batch_size)
    assert (len(fit), steps, config.epochs * steps) == (49_000, 383, 45_960)
    assert config.kl_between_warmup * config.epochs * steps == pytest.approx(5 * steps)
    assert config.awp_start * config.epochs * steps == pytest.approx(9 * steps)
    assert config.learning_rate(22_980, steps) == (0.1, 0.8)
    assert len(load_images(cifar10, "selection")) == len(load_images(cifar10, "calibration")) == 500
