"""What the tests of `flss-edge train` share: short commands, and what they leave in a run's folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flss_edge.checkpoint import load_checkpoint

COMMAND = [sys.executable, "-m", "flss_edge", "train"]
ANY_RECIPE = ("--width", "8", "--blocks", "1,1", "--set", "selection_steps=1", "--set", "batch_size=12")
QUICK = (*ANY_RECIPE, "--set", "attack_steps=1")  # five mini-batches an epoch


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the command respects that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(data: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [*COMMAND, "--data", str(data), *QUICK, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, preexec_fn=heed_sigint, **{**pipes, **options})


def wait_for_a_record(folder: Path, process: subprocess.Popen[str], after: int = 0, count: int = 1) -> None:
    """Wait until the run's log has `count` records later than mini-batch `after`."""
    deadline = time.monotonic() + 60
    while len([record for record in log(folder) if record["step"] > after]) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the record never came"
        time.sleep(0.02)


def weights(checkpoint: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoint).model.state_dict()


def log(folder: Path | str) -> list[dict[str, Any]]:
    """The records of a run, without a line that is being written."""
    path = Path(folder) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
