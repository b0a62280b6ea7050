"""`flss-edge train`: what it prints and writes, how it is stopped and continued, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_edge.checkpoint import load_checkpoint
from flss_edge.cli.train import RECIPE_NAMES
from flss_edge.recipes import RECIPES

from .small_runs import assert_same_tensors
from .train_commands import ANY_RECIPE, COMMAND, QUICK, log, started, wait_for_a_record, weights

Runner = Callable[..., Any]
EVENTS = "events.out.tfevents.*"


def test_every_recipe_is_named_in_the_help(run: Runner) -> None:
    assert tuple(RECIPES) == RECIPE_NAMES
    assert "rs-trades" in run("train", "--help").out


def test_a_run_prints_its_checkpoint_and_draws_its_curves(run: Runner, data: Path) -> None:
    result = run("train", "--data", data, *QUICK, "--epochs", "2", "-o", "runs/new")
    assert (result.code, result.out) == (0, "runs/new/best.pt\n")
    assert "training official in runs/new on cpu in fp32: 10 steps" in result.err
    assert "epoch 2 of 2: clean " in result.err and "adversarial loss" in result.err and "images/s" in result.err
    assert "selected epoch" in result.err
    curves = Path("runs/new/curves.png")
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    assert curves.read_bytes().startswith(b"\x89PNG")


def test_network_and_device_come_from_recipe_and_options(run: Runner, data: Path) -> None:
    options = (
        "--recipe",
        "standard",
        "--activation",
        "silu",
        "--device",
        "auto",
        "--accumulate",
        "2",
        "--stem",
        "imagenet",
    )
    assert run("train", "--data", data, *ANY_RECIPE, *options, "--epochs", "1", "-o", "run").code == 0
    checkpoint = load_checkpoint("run/best.pt")  # type: ignore[arg-type]
    shape = checkpoint.model.config
    assert (shape.network, shape.width, shape.blocks, shape.activation) == ("classifier", 8, (1, 1), "silu")
    assert shape.stem == "imagenet" and shape.image_size == 16 and shape.num_classes == 3
    assert (checkpoint.training["parts"], checkpoint.training["precision"]) == (2, "fp32")


def test_show_config_prints_the_recipe_and_needs_no_data(run: Runner) -> None:
    arguments = ("train", "--show-config", "--recipe", "plus", "--set", "epsilon=4/255", "--width", "16")
    table = run(*arguments)
    assert table.code == 0 and "epsilon_ramp" in table.out and "silu" in table.out and table.err == ""
    shown = json.loads(run(*arguments, "--format", "json").out)["results"]
    assert shown["settings"]["epsilon"] == 4 / 255 and shown["settings"]["recipe"] == "plus"
    assert shown["network"]["width"] == 16 and shown["network"]["activation"] == "silu"
    assert shown["losses"] == ["adversarial_loss", "clean_loss"] and "paper" in shown["source"]


def test_a_setting_that_would_do_nothing_is_refused(run: Runner) -> None:
    refused = run("train", "--show-config", "--recipe", "standard", "--set", "attack_steps=1")
    assert refused.code == 2 and "recipe standard has no attack" in refused.err


def test_a_run_stopped_by_each_signal_continues_where_it_was(run: Runner, data: Path) -> None:
    epochs = ("--epochs", "12")
    assert run("train", "--data", data, *QUICK, *epochs, "-o", "whole").code == 0
    done = 0
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with started(data, *epochs, "-o", "stopped") as process:
            wait_for_a_record(Path("stopped"), process, after=done)
            process.send_signal(sent)
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert out == "" and "Traceback" not in err and (not done or f"after step {done} of 60" in err)
        assert "stopping after this mini-batch" in err and "the same command continues" in err
        before, done = done, int(err.partition("saved after step ")[2].split()[0])
        assert before < done < 60
        assert not [path for path in Path("stopped").iterdir() if path.name.startswith(".")]
    resumed = run("train", "--data", data, *QUICK, *epochs, "-o", "stopped")
    assert (
        resumed.code == 0 and f"continuing official in stopped on cpu in fp32: after step {done} of 60" in resumed.err
    )
    assert [record["step"] for record in log("whole")] == [record["step"] for record in log("stopped")]
    assert_same_tensors(weights(Path("whole/last.pt")), weights(Path("stopped/last.pt")))


def test_a_second_signal_leaves_at_once(data: Path) -> None:
    slow = ("--set", "attack_steps=3000", "--set", "batch_size=60", "-o", "run")
    with started(data, *slow) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first mini-batch has begun, and takes a minute
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        while "stopping after this mini-batch" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143
        assert "saved" not in process.stderr.read()
    assert not Path("run/state.pt").exists()


def test_an_ignored_signal_stays_ignored(data: Path) -> None:
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    command = [*COMMAND, "--data", str(data), *QUICK, "--epochs", "8", "-o", "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **ignore) as process:
        wait_for_a_record(Path("run"), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_second_run_in_the_same_folder_is_refused(run: Runner, data: Path) -> None:
    with started(data, "--epochs", "500", "-o", "run") as first:
        wait_for_a_record(Path("run"), first)
        for more in ((), ("--overwrite",)):
            second = run("train", "--data", data, *QUICK, "--epochs", "500", "-o", "run", *more)
            assert (
                second.code == 7 and "another run is training in run" in second.err and "choose another" in second.err
            )
        assert Path("run/log.jsonl").stat().st_size
        first.kill()  # which lets go of the folder
        first.communicate()
    assert run("train", "--data", data, *QUICK, "--epochs", "1", "-o", "run", "--overwrite").code == 0


def test_overwrite_clears_a_run_and_nothing_else(run: Runner, data: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    first = ("train", "--data", data, *QUICK, "--epochs", "1", "-o", "run")
    assert run(*first, "--tensorboard").code == 0
    for name in ("notes.txt", "tensorboard/notes.txt"):
        Path("run", name).write_text("mine")
    before = set(Path("run/tensorboard").glob(EVENTS))
    assert run(*first, "--seed", "2").code == 2  # another run's settings
    assert run(*first, "--seed", "2", "--overwrite").code == 0
    assert not before & set(Path("run/tensorboard").iterdir())
    assert Path("run/notes.txt").exists() and Path("run/tensorboard/notes.txt").exists()
    Path("run/state.pt").unlink()
    refused = run(*first, "--overwrite")
    assert refused.code == 7 and "notes.txt" in refused.err


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf and tensorboard
def test_tensorboard_has_every_record_once_after_a_kill(run: Runner, data: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    arguments = ("--epochs", "14", "-o", "run", "--tensorboard")
    with started(data, *arguments) as process:
        wait_for_a_record(Path("run"), process, count=9)
        process.kill()
        process.communicate()
    assert run("train", "--data", data, *QUICK, *arguments).code == 0
    assert len(list(Path("run/tensorboard").glob(EVENTS))) == 2
    written, records = scalars_of(Path("run/tensorboard")), log("run")
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    for tag, name, having in (
        ("loss/adversarial_loss", "adversarial_loss", steps),
        ("clean_loss/clean_kl_prior", "clean_kl_prior", steps),
        ("schedule/lr", "lr", steps),
        ("accuracy/selection_pgd", "selection_pgd_accuracy", epochs),
    ):
        assert [step for step, _ in written[tag]] == [record["step"] for record in having], tag
        assert [value for _, value in written[tag]] == pytest.approx([record[name] for record in having])


@pytest.mark.slow
def test_tensorboard_that_begins_later_gets_the_whole_log(run: Runner, data: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    arguments = ("train", "--data", data, *QUICK, "--epochs", "8", "-o", "run")
    assert run(*arguments).code == 0
    assert run(*arguments, "--tensorboard").code == 0
    assert [step for step, _ in scalars_of(Path("run/tensorboard"))["loss/clean_loss"]] == [20, 40]


def test_tensorboard_that_is_missing_is_said_before_anything_is_read(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = run("train", "--data", "nowhere", "--tensorboard")
    assert result.code == 6 and "pip install 'flss-edge[tensorboard]'" in result.err


def test_missing_matplotlib_costs_the_curves_only(run: Runner, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("train", "--data", data, *QUICK, "--epochs", "1", "-o", "run")
    assert (result.code, result.out) == (0, "run/best.pt\n")
    assert "pip install 'flss-edge[plot]'" in result.err and not Path("run/curves.png").exists()


@pytest.mark.parametrize("closing", ["2>&-", pytest.param("2>/dev/full", marks=pytest.mark.slow)])
def test_a_lost_log_does_not_end_the_training(closing: str, data: Path) -> None:
    command = [*COMMAND, "--data", str(data), *QUICK, "--epochs", "2", "-o", "run"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closing}', "sh", *command], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"run/best.pt\n")


@pytest.mark.parametrize("close_after", [None, pytest.param(b"step ", marks=pytest.mark.slow)])
def test_a_terminal_gets_a_display_and_may_be_closed(close_after: bytes | None, data: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "NO_COLOR": "1"}
    with started(data, "--epochs", "6", "-o", "run", stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 1 << 16):
                seen += chunk
                if close_after is not None and close_after in seen:
                    break
        except OSError:
            pass  # Linux's end of a terminal
        os.close(ours)
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None and process.stdout.read() == "run/best.pt\n"
    if close_after is None:
        for said in ("step 30 of 30", "100%", "images/s", "adversarial loss", "KL prior", "PGD accuracy", "best"):
            assert said.encode() in seen, said
        assert b"\x1b[3" not in seen  # no colour


def test_a_quiet_log_gets_a_sign_of_life(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flss_edge.cli import training_progress

    progress = training_progress.RunProgress(lambda: 30, total_steps=100, epochs=2)
    with training_progress.PlainLines(progress) as lines:
        lines.tick()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(training_progress, "_HEARTBEAT_S", 0.0)
        lines.tick()
    assert capsys.readouterr().err.startswith("step 30 of 100: ")


def test_too_little_memory_names_what_needs_less(data: Path) -> None:
    """With 16 GiB of address space, for a layer that wants 150."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))}
    command = [*COMMAND, "--data", str(data), "--width", "65536", "-o", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **limit)
    assert done.returncode == 6, done.stderr
    for said in ("memory is too small", "--accumulate 2", "batch_size", "--width"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
