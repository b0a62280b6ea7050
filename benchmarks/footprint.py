"""What it takes to have us beside the engine: start-up, memory and size, each against the bare engine doing the same.

usage: python benchmarks/footprint.py c10.bundle -o footprint.json
       python benchmarks/footprint.py c10.bundle --install -o footprint.json   # also builds the wheel and installs it

| figure | ours | the bare engine |
| --- | --- | --- |
| import | `from flss_runtime import open_classifier`, and ONNX Runtime with it | `import numpy, onnxruntime` |
| first decision | process start to first decision, the bundle's files verified | to the first vote of a bare loop |
| memory | resident after 200 frames | resident after 200 frames of a bare loop on the same graphs |
| wheel | its size | the installed engine |
| environment | the wheel with `[cpu]` | numpy and onnxruntime alone |

Processes alternate between ours and the bare one; a ratio is the median over pairs. Files lie in the system's cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import add_result_options, require_at_least, run_timing
from footprint_plot import plot_footprint

from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import load_bundle
from flss_runtime.environment import describe_environment
from flss_runtime.errors import InferenceError
from flss_runtime.machine import Snapshot
from flss_runtime.validity import machine_flags, profile_flags, run_flags

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 200

IMPORT_OURS = "import onnxruntime; from flss_runtime import open_classifier"
IMPORT_BARE = "import numpy, onnxruntime"
MEMORY = "print([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')][0])"
OURS = """
import sys
from flss_runtime import SeededNoise, SmoothingPolicy, load_bundle, open_classifier
import numpy as np
bundle = load_bundle(sys.argv[1])
policy = SmoothingPolicy(100, bundle.noise_scale, 0, 0.0 if bundle.has_gate else None)
classifier = open_classifier(bundle, policy=policy, noise=SeededNoise(0), threads=1)
image = np.zeros((bundle.input.height, bundle.input.width, 3), np.uint8)
for _ in range(int(sys.argv[2])):
    classifier.classify(image)
"""
BARE = """
import json, sys
sys.path.insert(0, sys.argv[3])
import numpy as np
import onnxruntime
from types import SimpleNamespace
from pathlib import Path
from peer_loops import voting_loop
root = Path(sys.argv[1])
manifest = json.loads((root / "manifest.json").read_text())
graphs = manifest["graphs"]
bundle = SimpleNamespace(
    graph=lambda role: root / graphs[role],
    latent_dim=manifest["latent_dim"],
    num_classes=manifest["num_classes"],
    noise_scale=json.loads((root / "policy.json").read_text())["noise_scale"],
    input=SimpleNamespace(height=manifest["input"]["height"], width=manifest["input"]["width"]),
)
loop = voting_loop(bundle, ["fused"] if "fused" in graphs else ["encoder", "head"], 1, 100)
image = np.zeros((bundle.input.height, bundle.input.width, 3), np.uint8)
for _ in range(int(sys.argv[2])):
    loop(image)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 5 not valid, else FLSSError's."""
    return run_timing("footprint.py", arguments, parse=_parse, measure=measure, plot=plot_footprint, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every figure; return the result's JSON values without the command."""
    bundle = load_bundle(options.bundle)
    environment = describe_environment()
    before = Snapshot.take()
    rows = start_up(options.bundle, options.repeats)
    counters = before.until(Snapshot.take())
    if options.install:
        with tempfile.TemporaryDirectory() as folder:
            rows += installed(Path(folder))
    # The processes that are measured count as others here: what else the machine did cannot be told apart from them.
    flags = profile_flags("quick" if options.quick else "standard") + machine_flags(environment, 1)
    flags += run_flags(
        [{**counters, "other_cpu_share": None}], environment["load_average"], environment["logical_cores"]
    )
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {"repeats": options.repeats, "frames": FRAMES, "threads": 1},
        "results": {"rows": rows},
        "validity": {"valid": not flags, "flags": flags, "counters": counters},
    }


def start_up(bundle: Path, repeats: int) -> list[dict[str, Any]]:
    """Return import, first decision and memory.

    Args:
        bundle: its folder.
        repeats: pairs of processes of each figure, after one that warms the caches up.
    """
    here = str(Path(__file__).resolve().parent)
    one, many = [str(bundle), "1", here], [str(bundle), str(FRAMES), here]
    return [
        paired("import", "ms", repeats, lambda: timed(IMPORT_OURS), lambda: timed(IMPORT_BARE)),
        paired("first decision", "ms", repeats, lambda: timed(OURS, *one), lambda: timed(BARE, *one)),
        paired("memory", "MiB", repeats, lambda: resident(OURS, *many), lambda: resident(BARE, *many)),
    ]


def paired(name: str, unit: str, repeats: int, ours: Callable[[], float], bare: Callable[[], float]) -> dict[str, Any]:
    """Alternate between the two and return medians and the median ratio of a pair."""
    print(name, file=sys.stderr, flush=True)
    ours(), bare()
    pairs: list[tuple[float, float]] = []
    for turn in range(repeats):
        if turn % 2:
            first = ours()
            pairs.append((first, bare()))
        else:
            second = bare()
            pairs.append((ours(), second))
    return {
        "name": name,
        "unit": unit,
        "ours": statistics.median(pair[0] for pair in pairs),
        "bare": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(mine / other for mine, other in pairs),
        "pairs": pairs,
    }


def timed(code: str, *arguments: str) -> float:
    """Return the milliseconds of a process that runs the code."""
    began = time.perf_counter()
    run_python(code, *arguments)
    return (time.perf_counter() - began) * 1e3


def cpu_ms(code: str, *arguments: str) -> float:
    """Return the milliseconds of processor time of a process that runs the code: other processes hardly change it."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python(code, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def resident(code: str, *arguments: str) -> float:
    """Return the MiB that are resident in a process once it has run the code."""
    return int(run_python(f"{code}\n{MEMORY}", *arguments).split()[-1]) / 1024


def run_python(code: str, *arguments: str) -> str:
    """Run the code in a Python of its own and return what it prints.

    Raises:
        InferenceError: it failed.
    """
    paths = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "export")]
    # One thread each: how many a library would start depends on the machine, and so does the memory of their stacks.
    settled = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **settled, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        # An FLSSError ends in its problem and its fix, anything else in its type and message.
        said = " ".join(line.strip() for line in done.stderr.strip().splitlines()[-2:])
        raise InferenceError(f"a process failed: {said}", "mend what it names, and measure again")
    return done.stdout


def installed(folder: Path) -> list[dict[str, Any]]:
    """Build the wheel, install it with `[cpu]`, install the engine alone, and return the sizes."""
    print("wheel and environments", file=sys.stderr, flush=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    _succeed([sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-w", str(folder), str(ROOT)])
    (wheel,) = folder.glob("flss_edge-*.whl")
    sizes = {}
    for name, what in (("ours", [f"{wheel}[cpu]"]), ("bare", ["numpy", "onnxruntime"])):
        venv.create(folder / name, with_pip=False)
        python = folder / name / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, "--no-compile", *what]
        _succeed(command)
        sizes[name] = size_of(folder / name) / 2**20
    engine = sum(size_of(path) for path in (folder / "bare").rglob("onnxruntime") if path.is_dir()) / 2**20
    mine = wheel.stat().st_size / 2**20
    return [
        {"name": "wheel", "unit": "MiB", "ours": mine, "bare": engine, "ratio": mine / engine},
        {"name": "environment", "unit": "MiB", **sizes, "ratio": sizes["ours"] / sizes["bare"]},
    ]


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder, links not followed."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _succeed(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InferenceError(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-300:]}", "leave --install out")


def _summary(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{row['name']}: {row['ours']:.1f} {row['unit']}, bare engine {row['bare']:.1f}, ratio {row['ratio']:.3f}"
        for row in result["results"]["rows"]
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, help="pairs of processes; by default 20, with --quick 3")
    parser.add_argument("--install", action="store_true", help="build and install the wheel too (needs an index)")
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    if options.repeats is None:
        options.repeats = 3 if options.quick else 20
    require_at_least(options, repeats=1)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
