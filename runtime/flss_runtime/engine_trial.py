"""Does an engine really run here? One small graph, in a process of its own.

A library that imports may still lack a driver, a shared library or the processor's instructions, and some die of it
instead of raising. In a process of its own that is an answer like any other, and what the engine caches is thrown away.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flss_runtime.engines import parse_engine
from flss_runtime.errors import FLSSError

_TIMEOUT_S = 180.0  # building an engine of one layer on a slow board included
# ONNX, opset 18: y = 3x3 convolution of ones over x, (1, 1, 4, 4) -> (1, 1, 2, 2), float32. The runtime knows no onnx.
GRAPH = base64.b64decode(
    "CAg6hwEKDwoBeAoBdxIBeSIEQ29udhIFdHJpYWwqMwgBCAEIAwgDEAFCAXdKJAAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8A"
    "AIA/AACAP1obCgF4EhYKFAgBEhAKAggBCgIIAQoCCAQKAggEYhsKAXkSFgoUCAESEAoCCAEKAggBCgIIAgoCCAJCBAoAEBI="
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a trial.

    Attributes:
        engine: the spec that was tried, such as "ort:cuda".
        library: such as "onnxruntime 1.32.0"; None when it did not run.
        device: what it ran on, in the library's words.
        precision: arithmetic that it ran a float32 graph in.
        offers: execution providers or devices that the library has.
        problem: why it cannot be used here; empty when it can.
        fix: what to do about it.
    """

    engine: str
    library: str | None = None
    device: str | None = None
    precision: str | None = None
    offers: tuple[str, ...] = ()
    problem: str = ""
    fix: str = ""

    @property
    def usable(self) -> bool:
        """Whether the engine ran the graph, and right."""
        return not self.problem


def try_engine(engine: str) -> Trial:
    """Run the small graph in an engine.

    Args:
        engine: `ENGINE[:DEVICE]`.

    Returns:
        What became of it; nothing is raised for an engine that does not work.

    Raises:
        UsageError: there is no such engine.
    """
    parse_engine(engine)
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "FLSS_EDGE_CACHE": folder}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "flss_runtime.engine_trial", engine],
                cwd=folder,  # -m puts the working folder on the path: nothing of the user's may shadow a module there
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Trial(engine, problem=f"did not run one layer within {_TIMEOUT_S:g} s", fix="look at the machine")
    try:
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        return Trial(engine, **{**answer, "offers": tuple(answer.get("offers", ()))})
    except (ValueError, TypeError, AttributeError):
        said = done.stderr.strip().rpartition("\n")[2] or "it said nothing"
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        fix = "reinstall its library; after signal 4 install a build for this processor"
        return Trial(engine, problem=f"its process ended with {how}: {said}", fix=fix)


def run_graph(engine: str, folder: Path) -> dict[str, Any]:
    """Run the small graph in this process and return the fields of a `Trial`.

    Args:
        engine: `ENGINE[:DEVICE]`.
        folder: where the graph is written.
    """
    import numpy as np

    from flss_runtime.engines import open_engine

    graph = folder / "trial.onnx"
    graph.write_bytes(GRAPH)
    try:
        with open_engine(graph, engine, threads=1) as opened:
            result = opened.run({"x": np.ones((1, 1, 4, 4), np.float32)})["y"]
            facts: dict[str, Any] = {"library": opened.library, "device": opened.device, "offers": _offers()}
            if result.shape != (1, 1, 2, 2) or not np.allclose(result, 9.0):
                wrong = f"the convolution of ones gave {result.ravel().tolist()} instead of 9"
                return {**facts, "problem": wrong, "fix": "update its library and the driver"}
            return {**facts, "precision": opened.precision()}
    except FLSSError as error:
        return {"problem": error.problem, "fix": error.fix, "offers": _offers()}


def _offers() -> list[str]:
    """Return what the library that was imported could run on."""
    if (onnxruntime := sys.modules.get("onnxruntime")) is not None:
        return list(onnxruntime.get_available_providers())
    if (openvino := sys.modules.get("openvino")) is not None:
        return list(openvino.Core().available_devices)
    return []


if __name__ == "__main__":
    print(json.dumps(run_graph(sys.argv[1], Path.cwd())))
