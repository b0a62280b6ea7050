"""What users get wrong, in one table: the command, its exit code, and words of the message that name the remedy."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .mistakes.artefacts import BUNDLES, CHECKPOINTS
from .mistakes.images import DATA, PICTURES
from .mistakes.usage import OUTPUTS, USAGE
from .mistakes.world import Case, World

ENTRY = "import sys; from flss_edge.cli import main; sys.exit(main())"


CASES = [*BUNDLES, *CHECKPOINTS, *USAGE, *PICTURES, *DATA, *OUTPUTS]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_ends_with_its_code_and_a_remedy(case: Case, world: World, run: Callable[..., Any]) -> None:
    arguments = case.make(world)
    before = snapshot(world.here)
    result = run(*arguments)
    told = " ".join((result.err + result.out).split())
    assert result.code == case.code, told
    assert re.search(case.says, told), told
    assert "Traceback" not in told
    assert snapshot(world.here) == before  # a mistake changes and leaves nothing


def test_the_table_is_long_enough_and_names_are_unique() -> None:
    assert len(CASES) >= 30
    assert len({case.name for case in CASES}) == len(CASES)


def small_disk() -> None:
    """Let no file grow above 64 KiB: what a full disk does to a writer, without needing one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "ckpt.pt", "-o", "new.bundle"],
        ["train", "--data", "PICTURES", "--image-size", "32", "--width", "8", "--epochs", "1", "-o", "run"],
    ],
    ids=["export", "train"],
)
def test_a_full_disk_leaves_nothing_half_written(arguments: list[str], world: World) -> None:
    given = [str(world.pictures) if argument == "PICTURES" else argument for argument in arguments]
    quick = ["--set", "attack_steps=1", "--set", "selection_steps=1"] if arguments[0] == "train" else []
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *given, *quick],
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "fix:" in done.stderr and "Traceback" not in done.stderr
    assert not (world.here / "new.bundle").exists()
    left = [path.name for path in world.here.rglob("*") if path.is_file() and path.suffix in (".pt", ".onnx", ".npz")]
    assert sorted(left) == sorted(
        ["ckpt.pt", *(path.name for path in world.bundle.iterdir() if path.suffix != ".json")]
    )


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_during_training_keeps_the_run(world: World) -> None:
    command = ["train", "--data", str(world.pictures), "--image-size", "32", "--width", "8", "--epochs", "500"]
    quick = ["-o", "run", "--set", "attack_steps=1", "--set", "selection_steps=1", "--set", "batch_size=16"]
    arguments = [sys.executable, "-c", ENTRY, *command, *quick]
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    ) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epoch 1"):
            assert line, "training ended before its first epoch"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "Traceback" not in told and told.rstrip().endswith("interrupted")
    assert not [path for path in (world.here / "run").iterdir() if path.name.startswith(".")]
    assert zipfile.is_zipfile(world.here / "run" / "state.pt")
