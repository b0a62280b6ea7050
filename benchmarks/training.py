"""Time the training of the official recipe, as released and as this project does it, and check that both agree.

usage: python benchmarks/training.py --data cifar10.npz --width 64 --device cuda --precision bf16 -o training.json

`literal` is the released procedure (benchmarks/literal_update.py), `fast` is `flss_edge.update.Update`, `compiled` is
fast with torch.compile. All arms train in one process, with the same precision, memory layout and images, in blocks
that visit each arm twice (literal, fast, fast, literal), so that a drift of the machine hits all alike. A time is that
of a whole update: gather, augmentation, attack, weight perturbation and both optimiser steps.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import add_result_options, describe_device, prepare, require_at_least, run_timing
from training_arms import PROGRESS, Arm, build_arm, minibatch, new_trainer, run_blocks
from training_checks import Stages, check_equal_results, count_work, passes_by_hand, stages_of
from training_plot import plot_training

from flss_edge.data import ImageSet, load_images
from flss_edge.hardware import PRECISIONS
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import Recipe
from flss_runtime.environment import describe_environment
from flss_runtime.errors import UsageError
from flss_runtime.latency import overhead, variation
from flss_runtime.machine import Snapshot
from flss_runtime.validity import Flag, flag, machine_flags, run_flags

EPOCH_IMAGES = 49_000  # of the official recipe on CIFAR-10: 50,000 less 100 validation images a class
IMAGES = 1024
MAX_VARIATION = 0.05
FEWEST_BLOCKS = 5  # below that the bootstrap has too little to draw from

# Dense TFLOP/s by torch's name of the device. NVIDIA H100 and H200 data sheets, SXM column; those state the rates of
# the tensor cores with sparsity, which are halved here.
PEAKS = {
    "NVIDIA H100 80GB HBM3": {"bf16": 989.5, "tf32": 494.7, "fp32": 67.0},
    "NVIDIA H200": {"bf16": 989.5, "tf32": 494.7, "fp32": 67.0},
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 a check failed, 5 not valid, else FLSSError's."""
    return run_timing("training.py", arguments, parse=_parse, measure=measure, plot=plot_training, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Check, count and time; return the result's JSON values without the command."""
    environment = describe_environment() | {"device": describe_device(options.device)}
    recipe = _recipe(options.batch_size)
    data = _data(options.data, options.batch_size)
    equal = check_equal_results(data, options.device)
    names = ["literal", "fast", *(["compiled"] if options.compile else [])]
    arms = [build_arm(name, recipe, data, options) for name in names]
    by_hand = passes_by_hand(recipe.config)
    work = {arm.name: count_work(arm.update, arm.trainer, by_hand[arm.name]) for arm in arms[:2]}
    work["compiled"] = work["fast"]  # the same arithmetic, which cannot be counted inside compiled code
    before = Snapshot.take()
    blocks, timed = run_blocks(arms, options)
    counters = before.until(Snapshot.take())
    peak = options.peak_tflops or PEAKS.get(environment["device"]["name"], {}).get(options.precision)
    rows = [_row(arm, blocks[arm.name], timed, work[arm.name]["flops"], options.batch_size, peak) for arm in arms]
    flags = machine_flags(environment, torch.get_num_threads())
    flags += run_flags([counters], environment["load_average"], environment["logical_cores"])
    flags += _result_flags(rows, arms)
    stages = _stages(recipe, data, options)
    return {
        "environment": environment,
        "config": _config(options, recipe, data, arms[0], peak),
        "checks": {"equal_results": equal, "work": {arm.name: work[arm.name] for arm in arms}},
        "results": {"arms": rows, "speed_up": _speed_ups(blocks), "stages_ms": stages},
        "validity": {"flags": flags, "counters": counters},
    }


def _config(
    options: argparse.Namespace, recipe: Recipe, data: ImageSet, arm: Arm, peak: float | None
) -> dict[str, Any]:
    return {
        "recipe": recipe.config.to_json(),
        "data": data.source,
        "data_sha256": data.sha256,
        "images": len(data),
        "width": options.width,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "channels_last": arm.trainer.loader.layout is torch.channels_last,
        "threads": torch.get_num_threads(),
        "blocks": options.blocks,
        "updates_a_visit": options.updates,
        "settle_updates": 1,
        "warm_up_updates": options.warm_up,
        "timed": "whole update: gather, augmentation, attack, weight perturbation, two optimiser steps",
        "progress": PROGRESS,
        "peak_tflops": peak,
    }


def _recipe(batch_size: int) -> Recipe:
    recipe = recipe_named("official")
    return replace(recipe, config=replace(recipe.config, batch_size=batch_size))


def _data(path: Path | None, batch_size: int) -> ImageSet:
    """Return the first images, a whole number of mini-batches of them."""
    count = batch_size * max(1, IMAGES // batch_size)
    if path is not None:
        images = load_images(path, "fit")
        if len(images) < count:
            raise UsageError(f"{path.name} has {len(images)} training images, {count} are used", "Give a larger set.")
        return images.take(np.arange(count), f"{images.source}:first {count}")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    names = tuple(f"class_{k}" for k in range(10))
    return ImageSet(pixels, np.arange(count) % 10, names, f"synthetic: {count} images of uniform noise")


def _stages(recipe: Recipe, data: ImageSet, options: argparse.Namespace) -> dict[str, Any]:
    """Return the median milliseconds of each stage of the fast path, from a run of its own that waits at each mark."""
    trainer = new_trainer(recipe, data, options)
    count = max(FEWEST_BLOCKS, options.updates)
    rows: list[Stages] = stages_of(trainer, lambda step: minibatch(trainer, step), options.warm_up, count)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    spread = {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in rows[0]}
    return {"n": count, "median": medians, "range": spread}


def _row(
    arm: Arm, block_ms: list[float], timed: int, flops: int, batch_size: int, peak: float | None
) -> dict[str, Any]:
    middle = statistics.median(block_ms)
    rates = [batch_size / value * 1e3 for value in block_ms]
    tflops = flops / middle / 1e9
    return {
        "name": arm.name,
        "n": timed,
        "update_ms": middle,
        "images_per_s": batch_size / middle * 1e3,
        "images_per_s_range": [min(rates), max(rates)],
        "variation": variation(np.asarray(block_ms)),
        "derived_epoch_s": EPOCH_IMAGES * middle / 1e3 / batch_size,
        "block_ms": block_ms,
        "flops_per_image": flops / batch_size,
        "tflops_per_s": tflops,
        "fraction_of_peak": tflops / peak if peak else None,
        "peak_memory_mib": arm.peak_memory_mib,
    }


def _speed_ups(blocks: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return, for each arm, how many times the literal arm's images/s it reaches, with a 95 % bootstrap interval."""
    rows = []
    for name, times in blocks.items():
        if name != "literal":
            found = overhead("literal", name, [blocks["literal"]], [times])  # literal time over the arm's time
            interval = list(found.interval) if found.interval else None
            rows.append({"arm": name, "ratio": found.ratio, "interval": interval, "blocks": found.blocks})
    return rows


def _result_flags(rows: list[dict[str, Any]], arms: list[Arm]) -> list[Flag]:
    flags = []
    for row, arm in zip(rows, arms, strict=True):
        spread = row["variation"]
        if spread is not None and spread > MAX_VARIATION:
            text = f"block values of {row['name']} vary by {spread:.1%} (limit {MAX_VARIATION:.0%})"
            flags.append(flag("variation", text))
        if not all(bool(tensor.isfinite().all()) for tensor in arm.trainer.network.state_dict().values()):
            flags.append(flag("diverged", f"the weights of {row['name']} are no longer finite"))
    if len(rows[0]["block_ms"]) < FEWEST_BLOCKS:
        flags.append(flag("few_blocks", f"{len(rows[0]['block_ms'])} blocks; an interval needs {FEWEST_BLOCKS}"))
    return flags


def _summary(result: dict[str, Any]) -> str:
    lines = [
        f"{row['name']}: {row['images_per_s']:.1f} images/s, {row['derived_epoch_s']:.1f} s an epoch of "
        f"{EPOCH_IMAGES:,} images (derived), {row['tflops_per_s']:.3g} TFLOP/s"
        for row in result["results"]["arms"]
    ]
    for row in result["results"]["speed_up"]:
        low, high = row["interval"] or (row["ratio"], row["ratio"])
        lines.append(f"{row['arm']} / literal: {row['ratio']:.3f} times the images/s [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="images as flss-edge train reads them; without it: uniform noise")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true", help="a third arm: fast with torch.compile")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument(
        "--updates", type=int, default=3, help="timed updates of each of an arm's two visits in a block"
    )
    parser.add_argument("--warm-up", type=int, default=3, help="updates of each arm before the first block")
    parser.add_argument("--threads", type=int, help="of the CPU; by default torch's choice")
    parser.add_argument("--peak-tflops", type=float, help="of the device at this precision, for the fraction of it")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, width=1, blocks=1, updates=1, warm_up=1)
    prepare(options)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
