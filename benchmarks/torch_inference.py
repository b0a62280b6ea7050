"""What the samples cost in torch itself, with and without a CUDA graph, beside the exported engines of the bench.

usage: python benchmarks/torch_inference.py w64.pt --device cuda --precisions fp32,tf32,fp16 -o torch.json

A frame is timed from uint8 images in (pinned) host memory to the decision in host memory: one copy to the device,
conversion, network, one copy back, wait. The baseline is the deterministic network: mean, head, argmax. The sampled
path has the head of the standard deviation too, takes for each image a window of a noise bank that lies on the device,
puts the standard deviation into the head's weight, and counts the votes on the device; class and votes are the answer.
Each runs eagerly and, on a GPU, as one CUDA graph; an overhead is one over the baseline that runs in the same way.

All arms of a batch and precision take turns in short visits, as those of `flss-edge bench`. Before, each has to decide
as the model's own path does in float32: what is excused is stated, what was excused is counted, and where it is not
enough nothing is timed (exit 1). What runs out of memory is recorded as such. Whatever is finished is kept beside the
output until all is: the same command continues.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import add_result_options, describe_device, prepare, require_at_least, run_timing, timing_flags
from numpy.typing import NDArray
from torch_inference_arms import BASELINE, CHECKED_IMAGES, NOISE_SCALE, TYPES, Cell
from torch_inference_cells import DECISIONS, Row, measure_cells
from torch_inference_checks import copy_bandwidth, count_kernels
from torch_inference_plot import plot_torch_inference

from flss_edge.checkpoint import load_checkpoint
from flss_edge.data import load_images
from flss_edge.model import FLSS
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.images import InputSpec
from flss_runtime.profiles import PROFILES, Profile
from flss_runtime.validity import Flag, result_flags

PARTIAL = ".partial.json"


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 other decisions, 5 not valid, else FLSSError's."""
    return run_timing(
        "torch_inference.py", arguments, parse=_parse, measure=measure, plot=_finish, summary=_summary, judge=judge
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Check and time every batch in every precision; return the result's JSON values without the command."""
    checkpoint, profile = load_checkpoint(options.network), profile_of(options)
    model = checkpoint.flss()
    environment = describe_environment() | {"device": describe_device(options.device)}
    images, source = _images(options.data, model.config.image_size)
    samples, batches = (numbers(name, getattr(options, name)) for name in ("samples", "batches"))
    cells = [Cell(*size, samples, options.device) for size in product(batches, options.precisions.split(","))]
    artifact = {"checkpoint": options.network.name, "sha256": checkpoint.sha256}
    config = _config(options, model, source, profile)
    settings = {"checkpoint": artifact, "config": config} | {
        name: environment[name] for name in ("device", "packages", "git_commit")
    }
    rows = measure_cells(model, images, cells, profile, options.output.with_suffix(PARTIAL), settings)
    rate = copy_bandwidth(options.device)
    for row, kernels in zip(rows, _kernels(options, images, cells, rows), strict=True):
        _add_floor(row, kernels, rate, cells[0].cuda)
    counters = [row["counters"] for row in rows if row["counters"] is not None]
    flags = timing_flags(options, environment, counters) + _flags(rows)
    return {
        "artifact": artifact,
        "environment": environment,
        "config": config | {"batches": batches, "precisions": options.precisions.split(",")},
        "results": {"copy_gb_per_s": rate / 1e9, "cells": rows},
        "validity": {"valid": not flags, "flags": flags, "counters": counters},
    }


def judge(result: dict[str, Any]) -> None:
    """Refuse arms that decide otherwise than the model.

    Raises:
        CheckFailed: there are some; their batch and precision was not timed.
    """
    problems = [row["detail"] for row in result["results"]["cells"] if row["failed"] == DECISIONS]
    if problems:
        raise CheckFailed(
            "; ".join(problems), "Nothing was timed there: see what the device computes, or leave that precision out."
        )


def profile_of(options: argparse.Namespace) -> Profile:
    """Return how long everything takes: one process, and more but shorter blocks than the bench, as there are many."""
    if options.quick:
        return replace(PROFILES["quick"], processes=1)
    standard = PROFILES["standard"]
    return replace(standard, processes=1, blocks=20, block_s=0.5, stream_s=1.0, warm_s=(0.5, 5.0))


def numbers(name: str, text: str) -> list[int]:
    """Return "1,8" as [1, 8].

    Raises:
        UsageError: it is no list of whole numbers of at least 1.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--{name} is {text}", "Give whole numbers of at least 1, such as 1,8,32.")
    return list(dict.fromkeys(map(int, parts)))


def _config(options: argparse.Namespace, model: FLSS, source: str, profile: Profile) -> dict[str, Any]:
    return {
        "network": model.config.to_json(),
        "samples": numbers("samples", options.samples),
        "noise_scale": NOISE_SCALE,
        "images": source,
        "cuda_graph_left_out": None if options.device == "cuda" else "it needs a CUDA device",
        "threads": options.threads,
        "profile": asdict(profile),
        "timed": "uint8 images in host memory (pinned for a GPU), copied to the device, to the answer in host memory",
        "noise": "a window an image, of a bank on the device that is not refreshed",
    }


def _images(path: Path | None, side: int) -> tuple[NDArray[np.uint8], str]:
    """Return images (M, side, side, 3) and what they are."""
    if path is None:
        pixels = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, side, side, 3), dtype=np.uint8)
        return pixels, f"synthetic: {CHECKED_IMAGES} images of uniform noise"
    found = load_images(path, "test", spec=InputSpec(side, side))
    if found.images.shape[1:3] != (side, side):
        size = "x".join(map(str, found.images.shape[1:3]))
        raise UsageError(
            f"images of {path.name} are {size}, the network takes {side}x{side}", "Give images of its size."
        )
    return found.images[:CHECKED_IMAGES], f"{found.source}: the first {CHECKED_IMAGES}, SHA-256 {found.sha256}"


def _kernels(
    options: argparse.Namespace, images: NDArray[np.uint8], cells: Sequence[Cell], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return, for each row, arm -> what a frame of it does on the GPU, where the profiler could tell."""
    timed = [cell for cell, row in zip(cells, rows, strict=True) if row["failed"] is None and cell.cuda]
    found: dict[tuple[int, str], Any] = {}
    if timed:
        print("counting kernels, in a process of its own", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(count_kernels, str(options.network), images, timed).result()
        except RuntimeError as error:  # the times stand without
            print(f"kernels could not be counted: {error}", file=sys.stderr, flush=True)
    return [found.get((row["batch"], row["precision"]), {}) for row in rows]


def _add_floor(row: Row, kernels: dict[str, Any], rate: float, cuda: bool) -> None:
    """Add to each arm its kernels and how long its bytes take at least; to overheads what one fused kernel would leave.

    At best, one kernel for all of the sampling leaves the time of the baseline, and of what the sampled frame has to
    move beside it: noise, one more head's weights, votes. Only a CUDA graph's time is free of launches, so it is stated
    there alone.

    Args:
        row: a cell, changed.
        kernels: arm -> "kernels", "copies" and "kernels_us".
        rate: bytes a second.
        cuda: whether it was a GPU.
    """
    floors, middle = {}, {}
    for arm in row["arms"]:
        name = arm["name"]
        floors[name] = sum(arm["least_bytes"].values()) / rate * 1e3
        middle[name] = statistics.median(arm["block_medians_ms"])
        arm |= {"kernels": None, "copies": None, "kernels_us": None, **(kernels.get(name) or {})}
        arm |= {"floor_ms": floors[name], "times_floor": middle[name] / floors[name]}
    for cost in row["overhead"]:
        if cuda and cost["baseline"] == f"{BASELINE}-graph":
            best = middle[cost["baseline"]] + floors[cost["arm"]] - floors[cost["baseline"]]
            cost["fused_at_best"] = {"ms": best, "percent": (best / middle[cost["baseline"]] - 1) * 100}


def _flags(rows: Sequence[Row]) -> list[Flag]:
    flags = []
    for row in rows:
        where = f"(batch {row['batch']}, {row['precision']})"
        arms = [arm | {"name": f"{arm['name']} {where}"} for arm in row["arms"]]
        flags += result_flags(arms, [warm | {"arm": f"{warm['arm']} {where}"} for warm in row["warm_up"]])
    return flags


def _finish(result: dict[str, Any], target: Path) -> None:
    """Draw the result; it is written by now, so what was kept to go on from is of no more use."""
    target.with_suffix(PARTIAL).unlink(missing_ok=True)
    plot_torch_inference(result, target)


def _summary(result: dict[str, Any]) -> str:
    lines = [f"copies {result['results']['copy_gb_per_s']:.3g} GB/s"]
    for row in result["results"]["cells"]:
        lines.append(f"batch {row['batch']}, {row['precision']}:" + (f" {row['detail']}" if row["failed"] else ""))
        costs = {cost["arm"]: cost for cost in row["overhead"]}
        for arm in row["arms"]:
            tail = "n/a" if (p99 := arm["latency_ms"]["p99"]) is None else f"{p99:.3f}"
            text = (
                f"  {arm['name']}: p50 {arm['latency_ms']['p50']:.3f}, p99 {tail} ms, {arm['times_floor']:.3g} x floor"
            )
            text += "" if arm["kernels"] is None else f", {arm['kernels']:g} kernels"
            text += f", {arm['decisions']['class_flips']} of {arm['decisions']['images']} classes flipped"
            if (cost := costs.get(arm["name"])) is not None:
                low, high = cost["interval"] or (cost["ratio"], cost["ratio"])
                text += f"; {cost['percent']:+.2f} % [{(low - 1) * 100:+.2f}, {(high - 1) * 100:+.2f}]"
                text += f", fused {cost['fused_at_best']['percent']:+.2f} % at best" if "fused_at_best" in cost else ""
            lines.append(text)
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batches", default="1,8,32,128", help="images a frame, separated by commas")
    parser.add_argument("--samples", default="1,100,1000", help="N, separated by commas")
    parser.add_argument("--precisions", default="fp32", help=f"of {', '.join(TYPES)}, separated by commas")
    parser.add_argument("--data", type=Path, help="images as flss-edge evaluate reads them; without it: uniform noise")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, threads=1)
    for name in ("batches", "samples"):
        numbers(name, getattr(options, name))
    if unknown := [name for name in options.precisions.split(",") if name not in TYPES]:
        raise UsageError(f"--precisions has {', '.join(unknown)}", f"Use some of {', '.join(TYPES)}.")
    if "tf32" in options.precisions.split(",") and options.device != "cuda":
        raise UsageError("tf32 is a precision of NVIDIA's tensor cores", "Leave it out of --precisions.")
    prepare(options)
    return options


if __name__ == "__main__":
    sys.exit(main())
