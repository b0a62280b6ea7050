"""What else a user would run on the same graphs, beside what we run, in the same processes.

usage: python benchmarks/peers.py c10.bundle --threads 1 -o peers.json

| ours | beside | boundary |
| --- | --- | --- |
| plain network (`ort`) | a bare ONNX Runtime loop, written by hand | image to class |
| classifier, N samples | a bare ONNX Runtime loop that samples and votes, on the same graphs | image to decision |
| classifier, N samples | randomized smoothing: N forward passes of noisy images, as one batch | image to decision |
| plain network (`openvino`) | OpenVINO's own `benchmark_app`, synchronous, one stream | filled tensor to logits |

Loops take turns in palindromes within each process start. `benchmark_app` is a process of its own: it and our engine
run one after the other, in pairs of alternating order.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from command_line import add_result_options, require_at_least, run_timing, timing_flags
from peer_loops import plain_loop, smoothing_loop, voting_loop
from peers_plot import plot_peers

from flss_runtime import latency
from flss_runtime.arms import Arm, Setting, open_arm
from flss_runtime.atomic import refuse_existing
from flss_runtime.bench_results import overhead_row
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.engines import open_engine
from flss_runtime.engines.resident import bind
from flss_runtime.environment import describe_environment
from flss_runtime.errors import InferenceError
from flss_runtime.image_pool import ImagePool, load_images
from flss_runtime.images import to_nchw
from flss_runtime.machine import Snapshot
from flss_runtime.profiles import PROFILES, Profile
from flss_runtime.throughput import measure_throughput
from flss_runtime.validity import Flag, flag
from flss_runtime.visits import block_medians, frame_seconds, run_blocks, settled, stream, warm_up

MAX_VARIATION = 0.05
# ours, beside, the boundary of the two
PAIRS = (
    ("deterministic", "plain loop", "image to class"),
    ("n{N}", "voting loop", "image to decision"),
    ("smoothing", "n{N}", "image to decision"),
    ("openvino", "benchmark_app", "filled tensor to logits"),
)
APP_MEDIAN = re.compile(r"Median:\s+([\d.]+) (s|ms|us)\b")
MILLISECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3}

Times = dict[str, list[float]]
"""Name -> one value in milliseconds a block; of two names compared with each other the blocks are the same."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 5 not valid, else FLSSError's."""
    return run_timing("peers.py", arguments, parse=_parse, measure=measure, plot=plot_peers, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every pair in every process start; return the result's JSON values without the command."""
    bundle = load_bundle(options.bundle)
    environment = describe_environment()
    profile = profile_of(options)
    starts = []
    for number in range(profile.processes):
        print(f"process start {number + 1} of {profile.processes}", file=sys.stderr, flush=True)
        # A process of its own: where its memory lies is drawn anew, and with it some percent of the speed.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            starts.append(pool.submit(one_start, str(options.bundle), vars(options), number).result())
    rows = [row for pair in PAIRS if (row := _compare(pair, starts, options.num_samples)) is not None]
    counters = [start["counters"] for start in starts]
    flags = timing_flags(options, environment, counters) + _variation_flags(rows)
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {
            "threads": options.threads,
            "num_samples": options.num_samples,
            "input": bundle.input.to_json(),
            "latent_dim": bundle.latent_dim,
            "graphs_of_the_votes": starts[0]["graphs"],
            "processes": profile.processes,
            "blocks": profile.blocks,
        },
        "results": {"rows": rows},
        "validity": {"valid": not flags, "flags": flags, "counters": counters},
    }


def profile_of(options: argparse.Namespace) -> Profile:
    """Return how long everything takes."""
    profile = PROFILES["quick" if options.quick else "standard"]
    return replace(profile, batches=())


def one_start(path: str, options: dict[str, Any], number: int) -> dict[str, Any]:
    """Do one process start: the loops in blocks, then the slow one, then OpenVINO and its tool one after the other."""
    chosen = argparse.Namespace(**options)
    bundle, profile = load_bundle(Path(path)), profile_of(chosen)
    pool = load_images(bundle)
    samples, times = chosen.num_samples, Times()
    with ExitStack() as stack:
        loops = _open_loops(bundle, chosen, number, stack)
        order = pool.order(number)
        warm = [warm_up(arm, pool, order, profile) for arm in loops.values()]
        settle, count = profile.frames_of_visit(frame_seconds(warm[0]))
        before = Snapshot.take()
        frames = settled(run_blocks(loops, pool, order, profile, settle + count, _say), settle)
        counters = before.until(Snapshot.take())
        times |= {name: block_medians(frames, index) for index, name in enumerate(loops)}
        ours = loops[f"n{samples}"]
        slow = Arm("smoothing", *[smoothing_loop(bundle, chosen.threads, samples)] * 2, lambda: None)
        rounds = _one_image_rounds([ours, slow], pool, profile)
        times |= {"smoothing": rounds["smoothing"], f"n{samples} beside smoothing": rounds[ours.name]}
        graphs = sorted(ours_roles(bundle))
    if chosen.openvino:
        times |= _openvino_and_its_tool(bundle, chosen, pool, number)
    return {"times": times, "counters": counters, "graphs": graphs}


def ours_roles(bundle: Bundle) -> list[str]:
    """Return the graphs that the classifier votes with by default on a CPU: the voting loop takes the same."""
    return ["fused"] if "fp32" in bundle.precisions("fused") else ["encoder", "head"]


def _open_loops(bundle: Bundle, options: argparse.Namespace, number: int, stack: ExitStack) -> dict[str, Arm]:
    setting = Setting("ort", "fp32", options.threads)
    makers = {
        "deterministic": lambda: open_arm(bundle, "deterministic", setting, 0),
        "plain loop": lambda: _bare("plain loop", plain_loop(bundle, options.threads)),
        f"n{options.num_samples}": lambda: open_arm(bundle, f"n{options.num_samples}", setting, 0),
        "voting loop": lambda: _bare(
            "voting loop", voting_loop(bundle, ours_roles(bundle), options.threads, options.num_samples)
        ),
    }
    names = list(makers)
    opened = {name: makers[name]() for name in names[number % 4 :] + names[: number % 4]}
    for arm in opened.values():
        stack.callback(arm.close)
    return {name: opened[name] for name in names}


def _bare(name: str, frame: Any) -> Arm:
    return Arm(name, frame, frame, lambda: None)


def _one_image_rounds(arms: list[Arm], pool: ImagePool, profile: Profile) -> Times:
    """Time single images of two arms of very different cost, call by call."""
    one = [Arm(arm.name, arm.frame, lambda images, arm=arm: arm.frame(images[0]), arm.close) for arm in arms]  # type: ignore[misc]
    (row,) = measure_throughput(one, pool, [1], profile.stream_s, _say)
    if row["error"]:
        raise InferenceError(f"randomized smoothing failed: {row['error']}", "try fewer samples: -n 10")
    found: Times = row["milliseconds"]
    return found


def _openvino_and_its_tool(bundle: Bundle, options: argparse.Namespace, pool: ImagePool, number: int) -> Times:
    """Alternate our engine with `benchmark_app`, which is another process: never at the same time."""
    times: Times = {"openvino": [], "benchmark_app": []}
    graph = bundle.graph("deterministic")
    seconds = 2 if options.quick else 3
    with open_engine(graph, "openvino", threads=options.threads) as engine:
        pixels = to_nchw(pool.images[0][None])
        resident = bind(engine, {"images": pixels})
        arm = Arm("openvino", lambda image: resident.run(), lambda images: None, lambda: None)
        stream(arm, pool, [0], 0, 1.0)
        for name in ("openvino", "benchmark_app")[:: -1 if number % 2 else 1]:
            print(f"  {name}", file=sys.stderr, flush=True)
            if name == "openvino":
                stream(arm, pool, [0], 0, 0.2)  # the clock and the caches after a pause
                times[name].append(float(np.median(stream(arm, pool, [0], 0, seconds))) / 1e6)
            else:
                times[name].append(_run_benchmark_app(graph, pixels.shape, options.threads, seconds))
    return times


def _run_benchmark_app(graph: Path, shape: tuple[int, ...], threads: int, seconds: int) -> float:
    """Return the median that the tool prints, milliseconds."""
    tool = shutil.which("benchmark_app", path=sysconfig.get_path("scripts")) or "benchmark_app"
    sizes = ",".join(map(str, shape))
    command = [tool, "-m", str(graph), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", str(threads)]
    command += ["-api", "sync", "-infer_precision", "f32", "-t", str(seconds), "-shape", f"images[{sizes}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    found = APP_MEDIAN.search(done.stdout)
    if found is None:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InferenceError(f"benchmark_app failed: {' '.join(said)}", "try --no-openvino")
    return float(found[1]) * MILLISECONDS[found[2]]


def _compare(pair: tuple[str, str, str], starts: list[dict[str, Any]], samples: int) -> dict[str, Any] | None:
    name, beside, boundary = (text.replace("{N}", str(samples)) for text in pair)
    key = f"{beside} beside {name}"
    columns = [[start["times"].get(each) for start in starts] for each in (name, key)]
    columns[1] = columns[1] if columns[1][0] is not None else [start["times"].get(beside) for start in starts]
    if columns[0][0] is None or columns[1][0] is None:
        return None
    fewest = min(len(values) for values in columns[0])
    ours, theirs = ([values[:fewest] for values in column] for column in columns)
    found = overhead_row(latency.overhead(name, beside, ours, theirs))
    return {
        "name": name,
        "beside": beside,
        "boundary": boundary,
        "ms": float(np.median(ours)),
        "beside_ms": float(np.median(theirs)),
        "block_ms": ours,
        "beside_block_ms": theirs,
        **{key: found[key] for key in ("ratio", "percent", "interval", "half_width", "blocks", "processes")},
    }


def _variation_flags(rows: list[dict[str, Any]]) -> list[Flag]:
    flags = []
    for row in rows:
        for name, values in ((row["name"], row["block_ms"]), (row["beside"], row["beside_block_ms"])):
            spread = latency.variation(np.ravel(values))
            if spread is not None and spread > MAX_VARIATION:
                flags.append(flag("variation", f"block values of {name} vary by {spread:.1%} (limit 5 %)"))
    return list({item["detail"]: item for item in flags}.values())


def _say(phase: str) -> None:
    print(f"  {phase}", file=sys.stderr, flush=True)


def _summary(result: dict[str, Any]) -> str:
    lines = []
    for row in result["results"]["rows"]:
        interval = row["interval"] and f" [{(row['interval'][0] - 1):+.2%}, {(row['interval'][1] - 1):+.2%}]"
        times = f"{row['ratio']:.1f} times" if row["ratio"] > 2 else f"{row['ratio'] - 1:+.2%}{interval or ''}"
        lines.append(f"{row['name']} {row['ms']:.3f} ms, {row['beside']} {row['beside_ms']:.3f} ms: {times}")
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-n", "--num-samples", type=int, default=100)
    parser.add_argument("--no-openvino", dest="openvino", action="store_false", help="leave OpenVINO out")
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, threads=1, num_samples=1)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
