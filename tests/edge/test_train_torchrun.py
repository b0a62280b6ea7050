"""`flss-edge train` under torchrun: two processes train as one, and end together."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .train_commands import COMMAND, QUICK, log, wait_for_a_record, weights

Runner = Callable[..., Any]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND[1:]]


def torchrun(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_torchrun_trains_what_one_process_with_two_parts_trains(run: Runner, data: Path) -> None:
    common = ("--data", str(data), *QUICK, "--epochs", "2", "--threads", "1")
    done = torchrun(*common, "--device", "cpu", "-o", "two")
    assert (done.returncode, done.stdout) == (0, "two/best.pt\n"), done.stderr
    assert done.stderr.count("epoch 2 of 2") == 1 and "2 parts" in done.stderr
    assert run("train", *common, "--accumulate", "2", "-o", "one").code == 0
    assert len(log("two")) == len(log("one")) == 3
    ours, theirs = weights(Path("two/last.pt")), weights(Path("one/last.pt"))
    for name in ours.keys() - {key for key in ours if key.endswith("num_batches_tracked")}:  # counts the parts
        np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def test_torchrun_ends_when_the_first_process_is_refused(data: Path) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").touch()
    done = torchrun("--data", str(data), *QUICK, "-o", "mine")
    assert done.returncode != 0 and done.stderr.count("error: mine holds other files") == 1
    assert "internal error" not in done.stderr


@pytest.mark.slow
def test_torchrun_ends_when_the_first_process_fails_later(data: Path) -> None:
    """No file may grow above 32 KiB: the first process cannot write a checkpoint, and the second waits for it."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))}
    done = torchrun("--data", str(data), *QUICK, "-o", "run", **limit)
    assert done.returncode != 0 and "error: cannot write run/last.pt" in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.slow
def test_torchrun_passes_a_signal_on(data: Path) -> None:
    command = [*TORCHRUN, "--data", str(data), *QUICK, "--epochs", "500", "-o", "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_a_record(Path("run"), process)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert "saved after step" in err and "internal error" not in err
    assert Path("run/state.pt").exists()
