"""The processes of a benchmark end with it, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.benchmark import run_benchmark
from flss_runtime.bundle import Bundle
from flss_runtime.errors import InferenceError

from .test_benchmark import save_bundle

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
SCRIPT = """
import sys
from pathlib import Path
from flss_runtime.benchmark import run_benchmark
run_benchmark(Path(sys.argv[1]), profile="standard", progress=lambda *said: print(*said, flush=True))
"""


@pytest.fixture(scope="module")
def bundle(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    roles = ("encoder", "head", "deterministic")
    return save_bundle(tmp_path_factory.mktemp("bench"), tiny, roles=roles, reference=True)


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_long_benchmark(bundle: Bundle, scratch: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME), "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", SCRIPT, str(bundle.path)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint, env=environment
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("warm-up"):
            return child
    raise AssertionError(child.communicate()[1])


def workers(scratch: Path) -> list[int]:
    """Process numbers of the benchmark processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:  # ended in between
            continue
        if b"bench_worker" in words and str(scratch).encode() in words:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_benchmark_ends_its_process_and_removes_its_folder(bundle: Bundle, tmp_path: Path) -> None:
    child = start_long_benchmark(bundle, tmp_path)
    assert len(workers(tmp_path)) == 1
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert workers(tmp_path) == [] and list(tmp_path.glob("flss-bench-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_whose_benchmark_was_killed_ends_by_itself(bundle: Bundle, tmp_path: Path) -> None:
    child = start_long_benchmark(bundle, tmp_path)
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 20
    while workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_is_an_inference_error(bundle: Bundle, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def kill(phase: str, share: float) -> None:
        for number in workers(tmp_path):
            os.kill(number, signal.SIGKILL)

    with pytest.raises(InferenceError, match="ended with status -9"):
        run_benchmark(bundle, profile="standard", progress=kill)
    assert list(tmp_path.glob("flss-bench-*")) == []
