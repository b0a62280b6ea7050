"""The processes of a benchmark: each is started, listened to, and ended, whatever happens to the caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime import errors
from flss_runtime.bench_worker import ERROR, RESULT, SPEC, TIMES
from flss_runtime.errors import InferenceError

Progress = Callable[[str, float], None]
Times = dict[str, NDArray[np.int64]]


def run_processes(
    spec: dict[str, Any], processes: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Times]]:
    """Run a cold start and a measurement for every process start, one after the other.

    Args:
        spec: what the children are asked for, JSON values (see `bench_worker`).
        processes: process starts.
        progress: called with a phase and the share done in [0, 1].

    Returns:
        What the cold starts, the measurements, and the measurements' arrays hold, one entry a process start.

    Raises:
        FLSSError: as a child raised it.
        InferenceError: a child ended in any other way.
    """
    starts, runs, times = [], [], []
    with tempfile.TemporaryDirectory(prefix="flss-bench-") as scratch:
        for process in range(processes):

            def say(phase: str, share: float, process: int = process) -> None:
                progress(f"{phase} (process {process + 1} of {processes})", (process + share) / processes)

            say("cold start", 0.0)
            folder = Path(scratch) / str(process)
            starts.append(_start({**spec, "mode": "cold", "process": process}, folder / "cold", say))
            runs.append(_start({**spec, "mode": "measure", "process": process}, folder / "measure", say))
            with np.load(folder / "measure" / TIMES, allow_pickle=False) as stored:
                times.append({key: stored[key] for key in stored.files})
        progress("done", 1.0)
    return starts, runs, times


def _start(spec: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    """Run one child to its end; whatever happens here, Ctrl-C included, it does not outlive this call."""
    folder.mkdir(parents=True)
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # ONNX Runtime >= 1.29 starts a thread that uploads usage data unless told otherwise: not beside a timed frame.
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    environment = {**quiet, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    (folder / SPEC).write_text(json.dumps({**spec, "spawned_at": time.time()}), encoding="utf-8")
    with (folder / "stderr.txt").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "flss_runtime.bench_worker", str(folder)],
            cwd=folder,  # -m puts the working folder on the path: nothing of the user's may shadow a module there
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                _report(line, progress)
            status = child.wait()
        finally:
            _end(child)
    return _read_result(folder, status)


def _report(line: str, progress: Progress) -> None:
    try:
        said = json.loads(line)
        phase, share = str(said["phase"]), float(said["share"])
    except (ValueError, KeyError, TypeError):
        return  # a library's chatter on stdout
    progress(phase, share)


def _end(child: subprocess.Popen[str]) -> None:
    if child.stdout is not None:
        child.stdout.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _read_result(folder: Path, status: int) -> dict[str, Any]:
    if status == 0:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return result
    if (folder / ERROR).is_file():
        report = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        raise getattr(errors, report["kind"], InferenceError)(report["problem"], report["fix"])
    lines = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = lines[-1] if lines else "it said nothing"
    raise InferenceError(
        f"a benchmark process ended with status {status}: {why}",
        "run `flss-edge doctor` and `flss-edge verify`; a negative status is a signal (9: out of memory)",
    )
