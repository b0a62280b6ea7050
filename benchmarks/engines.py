"""Compare engines and precisions on one bundle: do they decide the same, and how long does an image take?

usage: python benchmarks/engines.py c10.bundle --data cifar10.npz --threads 1 -o engines.json

Every engine meets every precision. Decisions are compared by the gate of `flss-edge verify`: with torch's stored votes
on the reference images, and on the data with the float32 graphs on ONNX Runtime, which judge and with --checkpoint are
compared with torch on the same data (this alone needs torch). Times are those of
`classify` on one image, all arms in one process, in blocks that visit each arm twice (A, B, C, C, B, A), so that a
drift of the machine hits all alike; the threads of the arms that wait are idle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from command_line import add_result_options, require_at_least, run_timing
from engines_plot import plot_engines

from flss_edge.cli.labelled import load_for_bundle
from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.environment import describe_environment
from flss_runtime.equivalence import verify_bundle
from flss_runtime.latency import overhead, variation
from flss_runtime.machine import Snapshot
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.validity import Flag, flag, machine_flags, run_flags
from flss_runtime.visits import palindrome

BASE = "fp32"
MAX_VARIATION = 0.05
SETTLE = 3  # frames of a visit that do not count: the arm before it has emptied the caches

Name = tuple[str, str]
"""Engine and precision."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 a check failed, 5 not valid, else FLSSError's."""
    return run_timing("engines.py", arguments, parse=_parse, measure=measure, plot=plot_engines, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Verify and time every engine in every precision; return the result's JSON values without the command."""
    bundle = load_bundle(options.bundle)
    environment = describe_environment()
    names = [
        (engine, precision) for engine in options.engines.split(",") for precision in options.precisions.split(",")
    ]
    data = None if options.data is None else load_for_bundle(bundle, options.data, options.split)
    rows = []
    for engine, precision in names:
        print(f"verifying {engine} {precision}", file=sys.stderr, flush=True)
        judge = (engine, precision) == ("ort", BASE)
        images = None if data is None or judge else data.images[: options.limit]
        report = verify_bundle(bundle, engine, precision=precision, threads=options.threads, images=images)
        row = {"engine": engine, "precision": precision, "equivalence": report.to_json()}
        rows.append(row | {"flips": row["equivalence"]["flips"]})
        if judge and data is not None and options.checkpoint is not None:
            rows[-1] |= _against_torch(bundle, data.images[: options.limit], report.budget, options)
    before = Snapshot.take()
    blocks = _blocks(bundle, names, options)
    counters = before.until(Snapshot.take())
    flags = machine_flags(environment, options.threads)
    flags += run_flags([counters], environment["load_average"], environment["logical_cores"])
    for name, row in zip(names, rows, strict=True):
        row |= _times(name, blocks)
        row["size_bytes"] = bundle.graph("encoder", name[1]).stat().st_size
        flags += _variation_flags(name, row["variation"])
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {
            "data": None if data is None else {"source": data.source, "sha256": data.sha256},
            "threads": options.threads,
            "num_samples": bundle.num_samples,
            "input": bundle.input.to_json(),
            "latent_dim": bundle.latent_dim,
            "blocks": options.blocks,
            "frames_a_visit": options.frames,
            "timed": "classify on one uint8 image: conversion, encoder, noise, head, decision",
        },
        "results": {"rows": rows, "head_bytes": bundle.graph("head").stat().st_size},
        "validity": {"flags": flags, "counters": counters},
    }


def _against_torch(bundle: Bundle, images: Any, budget: float, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the judge with torch on the data: (M, H, W, 3) uint8."""
    from flss_edge.checkpoint import load_checkpoint
    from flss_export.parity import parity

    found = parity(load_checkpoint(options.checkpoint), bundle, images, threads=options.threads)
    return {"torch": found.to_json(), "flips": [test.to_json() for test in found.flip_tests(budget)]}


def _blocks(bundle: Bundle, names: list[Name], options: argparse.Namespace) -> dict[Name, list[float]]:
    """Return each arm's block values: the mean of its two visits' median milliseconds an image."""
    blocks: dict[Name, list[float]] = {name: [] for name in names}
    pixels = np.random.default_rng(0).integers(0, 256, (64, bundle.input.height, bundle.input.width, 3), dtype=np.uint8)
    gate = 0.0 if bundle.has_gate else None
    policy = SmoothingPolicy(bundle.num_samples, bundle.noise_scale, 0, gate)
    with ExitStack() as stack:
        keywords: dict[str, Any] = {"policy": policy, "threads": options.threads}
        arms = {
            (engine, precision): stack.enter_context(
                open_classifier(bundle, engine, precision=precision, noise=SeededNoise(0), **keywords)
            )
            for engine, precision in names
        }
        for block in range(options.blocks):
            visits: dict[Name, list[float]] = {name: [] for name in names}
            for turn in palindrome([" ".join(name) for name in names], block):
                engine, precision = turn.split(" ")
                visits[engine, precision].append(_visit(arms[engine, precision], pixels, options.frames))
            for name, medians in visits.items():
                blocks[name].append(statistics.mean(medians))
            shown = ", ".join(f"{' '.join(name)} {times[-1]:.3g}" for name, times in blocks.items())
            print(f"block {block + 1} of {options.blocks}: {shown} ms", file=sys.stderr, flush=True)
    return blocks


def _visit(classifier: SmoothedClassifier, pixels: np.ndarray[Any, np.dtype[np.uint8]], frames: int) -> float:
    taken = []
    for index in range(SETTLE + frames):
        began = time.perf_counter_ns()
        classifier.classify(pixels[index % len(pixels)][None])
        taken.append((time.perf_counter_ns() - began) / 1e6)
    return statistics.median(taken[SETTLE:])


def _times(name: Name, blocks: dict[Name, list[float]]) -> dict[str, Any]:
    """Return an arm's times, and how many times as fast it is as float32 on the same engine and on ONNX Runtime."""
    found: dict[str, Any] = {
        "ms": statistics.median(blocks[name]),
        "block_ms": blocks[name],
        "variation": variation(np.asarray(blocks[name])),
    }
    for key, other in (("times_fp32", (name[0], BASE)), ("times_ort_fp32", ("ort", BASE))):
        if other in blocks and other != name:
            ratio = overhead(" ".join(other), " ".join(name), [blocks[other]], [blocks[name]])
            found[key] = {"ratio": ratio.ratio, "interval": ratio.interval and list(ratio.interval)}
    return found


def _variation_flags(name: Name, spread: float | None) -> list[Flag]:
    if spread is None or spread <= MAX_VARIATION:
        return []
    text = f"block values of {' '.join(name)} vary by {spread:.1%} (limit {MAX_VARIATION:.0%})"
    return [flag("variation", text)]


def _summary(result: dict[str, Any]) -> str:
    lines = []
    for row in result["results"]["rows"]:
        verdict = row["equivalence"]
        flips = ", ".join(
            f"{test['flips']} {test['kind']} flips of {test['images']} (at most {test['bound']:.2%})"
            for test in row["flips"]
        )
        faster = row.get("times_fp32")
        times = f", {faster['ratio']:.2f} times fp32 {_interval(faster['interval'])}" if faster else ""
        lines.append(
            f"{row['engine']} {row['precision']}: {row['ms']:.3f} ms{times}; {row['size_bytes'] / 2**20:.2f} MiB; "
            f"{verdict['verdict']}: {flips}"
        )
    return "\n".join(lines)


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, help="images to compare decisions on, beside the reference images")
    parser.add_argument("--checkpoint", type=Path, help="that the bundle was exported from")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=10_000, help="use at most so many images")
    parser.add_argument("--engines", default="ort,openvino", help="separated by commas")
    parser.add_argument("--precisions", default="fp32,int8", help="separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--frames", type=int, default=20, help="images timed a visit")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, limit=1, threads=1, blocks=1, frames=1)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
