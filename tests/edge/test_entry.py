"""The first moments of a command, before there is a command line that could answer Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"


def console_script() -> str:
    """Return what the installed `flss-edge` runs."""
    (line,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("flss-edge = ")]
    module, _, function = line.partition(" = ")[2].strip('"').partition(":")
    return f"import sys; from {module} import {function}; sys.exit({function}())"


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("start", [["-m", "flss_edge"], ["-c", console_script()]], ids=["module", "script"])
@pytest.mark.parametrize("library", ["typer", "flss_runtime"])
def test_an_interrupt_while_it_is_imported_is_silent(start: list[str], library: str, tmp_path: Path) -> None:
    (tmp_path / f"{library}.py").write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *start, "--version"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=heed_sigint,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("start", [["-m", "flss_edge"], ["-c", console_script()]], ids=["module", "script"])
def test_exit_codes_are_those_of_the_commands(start: list[str]) -> None:
    for arguments, code in ((["--version"], 0), (["inspect", "none.bundle"], 3), (["preditc"], 2)):
        assert subprocess.run([sys.executable, *start, *arguments], capture_output=True, timeout=60).returncode == code
