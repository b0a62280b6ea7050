"""A process that has imported torch once and forks a child for each run, so that twenty runs start at once.

It never computes anything itself: forking is safe only while torch has no threads.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 100.0  # seconds a child may take


class Nursery:
    """The test's end: `run` has a function of a test module executed in forked children."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "tests.edge.nursery"]
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(
        self, task: Callable[..., None], *arguments: Any, count: int = 1, kill_after: float | None = None
    ) -> list[int]:
        """Call task(rank, *arguments) in `count` children and return their exit codes; -9 is a kill.

        Args:
            task: a function of a module beside this one.
            arguments: what JSON can carry.
            count: of children at the same time.
            kill_after: seconds after the fork at which the children get SIGKILL.
        """
        module = task.__module__.rpartition(".")[2]
        request = {"module": module, "task": task.__name__, "arguments": arguments, "count": count, "after": kill_after}
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        codes: list[int] = json.loads(self._server.stdout.readline())
        return codes


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        task = getattr(importlib.import_module(f"tests.edge.{request['module']}"), request["task"])
        started = time.monotonic()
        children = [_fork(task, rank, request["arguments"]) for rank in range(request["count"])]
        if request["after"] is not None:
            time.sleep(max(0.0, request["after"] - (time.monotonic() - started)))
            _kill(children)
        print(json.dumps(_wait(children, started)), flush=True)


def _fork(task: Callable[..., None], rank: int, arguments: list[Any]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.dup2(2, 1)  # stdout belongs to the answers
    try:
        task(rank, *arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _wait(children: list[int], started: float) -> list[int]:
    """Return the exit codes; a child that fails takes the others with it, which would wait for it."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            done, status = os.waitpid(child, os.WNOHANG) if child not in codes else (0, 0)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() - started > LIMIT
        if late or any(codes.values()):
            _kill([child for child in children if child not in codes])
        time.sleep(0.002)
    return [codes[child] for child in children]


def _kill(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
