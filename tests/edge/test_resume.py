"""A run that is stopped ends bit for bit where the uninterrupted one ends; what cannot be resumed is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional

from flss_edge import run_state
from flss_edge import trainer as trainer_module
from flss_edge.checkpoint import load_checkpoint
from flss_edge.hardware import Hardware
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes.config import Recipe, TrainConfig
from flss_edge.trainer import Stopped, Trainer
from flss_edge.training_data import TrainingData
from flss_runtime.errors import CheckpointError, UsageError

from .small_runs import OFFICIAL_MODEL, RUNS, SMALL, assert_same_end, bars, official_run, recipe, small_data


def stopping(at: int) -> Callable[[], bool]:
    """Return a `stop` that says yes when asked the time number `at`."""
    asked = count(1)
    return lambda: next(asked) == at


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_twice_ends_as_if_it_was_not(name: str, tmp_path: Path) -> None:
    """In the middle of an epoch, then while the first epoch is measured."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    RUNS[name](whole).run()
    first = RUNS[name](stopped)
    assert not first.resume()
    with pytest.raises(Stopped):
        first.run(stop=stopping(3))
    assert first.step == 3
    second = RUNS[name](stopped)
    assert second.resume()
    assert second.step == 3
    with pytest.raises(Stopped):
        second.run(stop=stopping(3))  # after mini-batches 4 and 5, and the first measurement
    assert (second.step, second.evaluated) == (5, 0)
    assert not (stopped / "last.pt").exists()
    third = RUNS[name](stopped)
    assert third.resume()
    assert (third.step, third.evaluated) == (5, 0)
    third.run()
    assert_same_end(stopped, whole)


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path: Path) -> None:
    official_run(tmp_path, epochs=1).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
        again = official_run(tmp_path, epochs=1)
        assert again.resume()
        assert again.run() == tmp_path / "best.pt"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def noisy_run(folder: Path) -> Trainer:
    """One epoch of a classifier with noise in its weights, measured on two batches of images."""

    def cross_entropy(network: Network, batch: Minibatch, config: TrainConfig) -> dict[str, Tensor]:
        return {"cross_entropy": functional.cross_entropy(network(batch.images), batch.labels)}

    fields = {"network": "classifier", "weight_noise": True}
    noisy = Recipe(TrainConfig(**{**SMALL, "epochs": 1}), losses=(cross_entropy,), source="", network=fields)
    return Trainer(noisy, replace(OFFICIAL_MODEL, **fields), small_data(selection=300), folder)


def test_the_noise_inside_a_network_is_repeated_too(tmp_path: Path) -> None:
    """Stopped while it is measured, a network with noise in its weights is measured with the same noise again."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    noisy_run(whole).run()
    with pytest.raises(Stopped):
        noisy_run(stopped).run(stop=stopping(7))
    resumed = noisy_run(stopped)
    resumed.resume()
    resumed.run()
    assert_same_end(stopped, whole)


CONFIG = recipe("official", epochs=2)


def short(folder: Path, config: Recipe = CONFIG, data: TrainingData | None = None, **hardware: Any) -> Trainer:
    """A run of two epochs of three mini-batches."""
    data = data or TrainingData(bars(30, 0), bars(30, 1))
    return Trainer(config, OFFICIAL_MODEL, data, folder, hardware=Hardware(**hardware))


@pytest.mark.parametrize("files", range(6))
def test_best_and_state_agree_wherever_a_write_fails(
    files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in ("save_checkpoint", "write_state"):
            patch.setattr(trainer_module, name, dying(getattr(trainer_module, name)))
        short(tmp_path).run()
    resumed = short(tmp_path)
    assert resumed.resume() == ("state.pt" in written)
    if resumed.best:
        assert load_checkpoint(tmp_path / "best.pt").training["epoch"] == resumed.best["epoch"]
        assert resumed.step == 3 * resumed.best["epoch"]
    best = resumed.run()
    assert load_checkpoint(best).training["epoch"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 6]  # epoch 1; the last step and epoch 2: nothing twice


def test_resuming_without_the_selected_checkpoint_is_refused(tmp_path: Path) -> None:
    short(tmp_path).run()
    for name in ("best.pt", "last.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt is not the checkpoint of epoch"):
        short(tmp_path).resume()


def test_leftovers_of_a_run_that_never_saved_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 20}\n{"event": "st')
    (tmp_path / ".tmp-0123456789ab-state.pt").write_bytes(b"half")
    (tmp_path / ".tmp-notes").write_text("somebody else's")
    assert not short(tmp_path).resume()
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-notes", "log.jsonl"]


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    short(tmp_path).save()
    assert short(tmp_path).resume()
    with pytest.raises(UsageError, match=r"other settings \(config\)"):
        short(tmp_path, recipe("official", epochs=2, seed=2)).resume()
    with pytest.raises(UsageError, match=r"other settings \(data\)"):
        short(tmp_path, data=TrainingData(bars(60, 0), bars(30, 1))).resume()
    with pytest.raises(UsageError, match=r"other settings \(selection\)"):
        short(tmp_path, data=TrainingData(bars(30, 0), bars(30, 2))).resume()
    with pytest.raises(UsageError, match=r"other settings \(parts\)"):
        short(tmp_path, accumulate=2).resume()
    with pytest.raises(UsageError, match=r"other settings \(precision\)"):
        short(tmp_path, precision="bf16").resume()
    with pytest.raises(UsageError, match=r"other settings \(model\)"):
        wider = replace(OFFICIAL_MODEL, hidden=(8,))
        Trainer(CONFIG, wider, TrainingData(bars(30, 0), bars(30, 1)), tmp_path).resume()


def test_a_damaged_or_older_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "STATE_VERSION", 1)
        short(tmp_path).save()
    with pytest.raises(CheckpointError, match="version"):
        short(tmp_path).resume()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        short(tmp_path).resume()
