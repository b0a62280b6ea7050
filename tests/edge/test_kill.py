"""Twenty runs killed with SIGKILL, at random moments and at named points, and resumed: all end bit for bit alike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_edge import evaluation
from flss_edge import trainer as trainer_module
from flss_edge.checkpoint import load_checkpoint
from flss_edge.run_folder import abandoned_files
from flss_edge.trainer import Trainer
from flss_edge.update import Update

from .nursery import Nursery
from .small_runs import RUNS, assert_same_end

NAMED = {
    "while state.pt is written": "plus",
    "before state.pt is renamed": "official",
    "after state.pt is renamed": "plus",
    "after last.pt": "official",
    "after the epoch's log line": "plus",
    "after the epoch's state.pt": "plus",
    "between the two updates": "official",
    "while the epoch is measured": "official",
}

LEFT_HALF_A_FILE = ("while state.pt is written", "before state.pt is renamed")
LEFT_BEST_BEHIND = ("after last.pt", "after the epoch's log line", "after the epoch's state.pt")


def nothing(rank: int) -> None:
    """Do nothing."""


def train(rank: int, name: str, folder: str, point: str = "") -> None:
    """Run or continue a training as a child of the nursery; at the named point it kills itself."""
    trainer_module.STEPS_BETWEEN_LOGS = 2
    if point:
        arm(point)
    trainer = RUNS[name](Path(folder), save_every=0.1)
    trainer.resume()
    trainer.run()


def die(at: int = 1) -> Callable[[], None]:
    """Return a function that kills this process at its call number `at`."""
    calls = count(1)

    def call() -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def arm(point: str) -> None:
    """Patch what passes the named point, so that the process dies there the second time, or later."""
    write_bytes, rename, save, log = Path.write_bytes, os.replace, trainer_module.save_checkpoint, Trainer._log
    descend, pgd = Update._descend, evaluation.pgd
    kill = die(at=18 if point == "between the two updates" else 2)

    def half_written(path: Path, content: bytes) -> int:
        if path.name.endswith("-state.pt"):
            write_bytes(path, content[: len(content) // 2])
            kill()
        return write_bytes(path, content)

    def renamed(source: Any, target: Any) -> None:
        is_state = Path(target).name == "state.pt"
        if is_state and point.startswith("before"):
            kill()
        rename(source, target)
        if is_state and point.startswith("after"):
            kill()

    def saved(path: Path, *arguments: Any) -> None:
        if path.name == "best.pt" and point == "after the epoch's state.pt":
            kill()
        save(path, *arguments)
        if path.name == "last.pt" and point == "after last.pt":
            kill()

    def logged(self: Trainer, record: dict[str, Any], report: Any) -> None:
        log(self, record, report)
        if record["event"] == "epoch":
            kill()

    def descended(self: Update, *arguments: Any) -> Any:
        kill()  # at an even call: before the second update
        return descend(self, *arguments)

    def attacked(*arguments: Any, **settings: Any) -> Any:
        kill()
        return pgd(*arguments, **settings)

    if point == "while state.pt is written":
        Path.write_bytes = half_written  # type: ignore[method-assign,assignment]
    elif point in ("before state.pt is renamed", "after state.pt is renamed"):
        os.replace = renamed  # type: ignore[assignment]
    elif point in ("after last.pt", "after the epoch's state.pt"):
        trainer_module.save_checkpoint = saved  # type: ignore[assignment]
    elif point == "after the epoch's log line":
        Trainer._log = logged  # type: ignore[method-assign]
    elif point == "between the two updates":
        Update._descend = descended  # type: ignore[method-assign]
    else:
        evaluation.pgd = attacked


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as process:
        yield process


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """The uninterrupted runs, and their seconds."""
    ended = {}
    nursery.run(nothing)  # imports this module there
    for name in RUNS:
        folder = tmp_path_factory.mktemp(name)
        started = time.monotonic()
        assert nursery.run(train, name, str(folder)) == [0]
        ended[name] = folder, time.monotonic() - started
    return ended


@pytest.mark.parametrize("number", range(12))
def test_killed_at_a_random_moment(
    number: int, nursery: Nursery, whole: dict[str, tuple[Path, float]], tmp_path: Path
) -> None:
    name = ("official", "plus")[number % 2]
    expected, seconds = whole[name]
    moment = float(np.random.default_rng(number).uniform(0.05, 0.95)) * seconds
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if nursery.run(train, name, str(folder), kill_after=moment) == [-signal.SIGKILL]:
            break
        moment *= 0.7  # this machine has become faster, and the run ended first
    else:
        pytest.fail("no run was killed before its end")
    assert nursery.run(train, name, str(folder)) == [0]
    assert_same_end(folder, expected)


@pytest.mark.parametrize("point", NAMED)
def test_killed_at_a_named_point(
    point: str, nursery: Nursery, whole: dict[str, tuple[Path, float]], tmp_path: Path
) -> None:
    expected, _ = whole[NAMED[point]]
    assert nursery.run(train, NAMED[point], str(tmp_path), point) == [-signal.SIGKILL]
    assert bool(abandoned_files(tmp_path)) == (point in LEFT_HALF_A_FILE)
    if point in LEFT_BEST_BEHIND:
        assert [load_checkpoint(tmp_path / name).training["epoch"] for name in ("last.pt", "best.pt")] == [2, 1]
    assert nursery.run(train, NAMED[point], str(tmp_path)) == [0]
    assert_same_end(tmp_path, expected)
