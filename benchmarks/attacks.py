"""Time the attacks beside an independent implementation of each, and count their passes.

usage: python benchmarks/attacks.py --checkpoint models/cifar10-w8.pt --data cifar10.npz --allow-invalid -o attacks.json

First every attack of the suites runs with small settings, and the forward and backward passes that hooks count must be
those of the table that was derived by hand (benchmarks/attack_passes.py). Then each attack that another library has is
timed beside it: same network, same images, same settings, one process, in blocks that visit ours, the peer, the peer,
ours (and the other way round in every second block), so that a drift of the machine hits both alike. A visit attacks
all images once, as one batch; all are answered correctly without attack, because some attacks leave the others alone.
What both found is stated too: an attack that gives up early is fast.

The peers are installed for this benchmark only: make peers
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack_passes import TABLE, Passes, by_hand, check_passes, counting
from attack_peers import ARMS, COMPARISONS, Case, Comparison, answers_of, right_images
from attack_plot import plot_attacks
from command_line import add_result_options, describe_device, prepare, require_at_least, run_timing
from torch import Tensor

from flss_edge.adversary import frozen
from flss_edge.checkpoint import Checkpoint, load_checkpoint
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.latency import overhead, variation
from flss_runtime.machine import Snapshot
from flss_runtime.validity import Flag, flag, machine_flags, run_flags
from flss_runtime.visits import palindrome

MAX_VARIATION = 0.05
FEWEST_BLOCKS = 5  # below that the bootstrap has too little to draw from
ROUNDING = 1e-6  # beyond the ball


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 a check failed, 5 not valid, else FLSSError's."""
    return run_timing("attacks.py", arguments, parse=_parse, measure=measure, plot=plot_attacks, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Count and time; return the result's JSON values without the command."""
    environment = describe_environment() | {"device": describe_device(options.device)}
    checkpoint = load_checkpoint(options.checkpoint)
    network = checkpoint.model.to(options.device)
    images, labels, source = right_images(options, checkpoint)
    case = Case(network, images, labels, options.epsilon / 255, options.steps, options.queries)
    with frozen(network):  # nobody computes gradients of weights, neither here nor there
        passes = check_passes(network, options.device)
        comparisons = [COMPARISONS[name](case) for name in options.only or COMPARISONS]
        counts = {comparison.name: _rehearse(comparison, case) for comparison in comparisons}
        before = Snapshot.take()
        seconds = run_blocks(comparisons, options)
        counters = before.until(Snapshot.take())
        rows = [_row(comparison, counts[comparison.name], seconds, options) for comparison in comparisons]
    flags = machine_flags(environment, torch.get_num_threads())
    flags += run_flags([counters], environment["load_average"], environment["logical_cores"])
    flags += _result_flags(rows)
    return {
        "environment": environment,
        "config": _config(options, checkpoint, case, source),
        "checks": {"passes": passes},
        "results": {"attacks": rows},
        "validity": {"flags": flags, "counters": counters},
    }


def _config(options: argparse.Namespace, checkpoint: Checkpoint, case: Case, source: str) -> dict[str, Any]:
    return {
        "checkpoint": options.checkpoint.name,
        "checkpoint_sha256": checkpoint.sha256,
        "network": case.network.config.to_json(),
        "images_from": source,
        "images": len(case.images),
        "epsilon": case.epsilon,
        "threads": torch.get_num_threads(),
        "blocks": options.blocks,
        "timed": "an attack on all images as one batch; 2 visits of each implementation a block",
    }


def run_blocks(comparisons: list[Comparison], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of an attack, by its name and arm, one value a block: the mean of two visits."""
    seconds: dict[str, dict[str, list[float]]] = {item.name: {arm: [] for arm in ARMS} for item in comparisons}
    for block in range(options.blocks):
        for comparison in comparisons:
            visits: dict[str, list[float]] = {arm: [] for arm in ARMS}
            for arm in palindrome(ARMS, block):
                visits[arm].append(_seconds(comparison.arms[arm], options.device))
            for arm, values in visits.items():
                seconds[comparison.name][arm].append(statistics.mean(values))
        taken = ", ".join(
            f"{name} {' / '.join(f'{s[-1]:.2f}' for s in arms.values())}" for name, arms in seconds.items()
        )
        print(f"block {block + 1} of {options.blocks}: {taken} s (ours / peer)", file=sys.stderr, flush=True)
    return seconds


def _rehearse(comparison: Comparison, case: Case) -> dict[str, dict[str, Any]]:
    """Run both arms once, untimed, and return what they cost and found; every later run does the same work.

    Raises:
        CheckFailed: ours makes other passes than the table says, or leaves the ball.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        with counting(case.network) as counter:
            attacked = comparison.arms[arm]()
        distance = (attacked - case.images).abs().amax(dim=(1, 2, 3))
        inside = distance <= case.epsilon + ROUNDING  # FAB's peer also returns what lies outside
        wrong = inside & (answers_of(case.network, attacked) != case.labels)
        found[arm] = {"passes": counter.passes, "wrong": int(wrong.sum())}
        if arm == "ours" and not bool(inside.all()):
            raise CheckFailed(
                f"{comparison.name} leaves the ball by {float(distance.max() - case.epsilon):.2g}", "Mend it."
            )
    work, ours = TABLE[comparison.name], found["ours"]["passes"]
    count, classes = len(case.images), case.network.config.num_classes
    each = by_hand(work, comparison.settings, classes)
    expected = Passes(count * each.forward, count * each.backward)
    fewer = ours.forward <= expected.forward and ours.backward <= expected.backward
    if not (fewer if work.at_most else ours == expected):
        raise CheckFailed(
            f"{comparison.name} makes {ours} on {count} images, by hand it is {expected}",
            "Correct whichever is wrong: the attack, or TABLE in benchmarks/attack_passes.py.",
        )
    return found


def _seconds(attack: Callable[[], Tensor], device: str) -> float:
    before = time.perf_counter()
    attack()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def _row(
    comparison: Comparison,
    found: dict[str, dict[str, Any]],
    seconds: dict[str, dict[str, list[float]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    taken = seconds[comparison.name]
    arms = {arm: _arm(found[arm], taken[arm], options.images) for arm in ARMS}
    speed_up = overhead("peer", "ours", [taken["peer"]], [taken["ours"]])  # the peer's time over ours
    ours, peer = (found[arm]["passes"] for arm in ARMS)
    share = (ours.forward + ours.backward) / (peer.forward + peer.backward)
    interval = speed_up.interval or (speed_up.ratio, speed_up.ratio)
    return {
        "attack": comparison.name,
        "settings": dict(comparison.settings),
        "peer": comparison.peer,
        "arms": arms,
        "speed_up": {
            "images_per_s": speed_up.ratio,
            "images_per_s_interval": list(interval),
            "passes_per_s": speed_up.ratio * share,
            "passes_per_s_interval": [value * share for value in interval],
            "blocks": speed_up.blocks,
        },
    }


def _arm(found: dict[str, Any], block_s: list[float], images: int) -> dict[str, Any]:
    passes: Passes = found["passes"]
    whole, middle = passes.forward + passes.backward, statistics.median(block_s)
    return {
        "n": 2 * len(block_s),
        "block_s": block_s,
        "variation": variation(np.asarray(block_s)),
        "forward_per_image": passes.forward / images,
        "backward_per_image": passes.backward / images,
        "images_per_s": images / middle,
        "images_per_s_range": [images / max(block_s), images / min(block_s)],
        "passes_per_s": whole / middle,
        "passes_per_s_range": [whole / max(block_s), whole / min(block_s)],
        "wrong": found["wrong"],
    }


def _result_flags(rows: list[dict[str, Any]]) -> list[Flag]:
    flags = []
    for row in rows:
        for arm, values in row["arms"].items():
            if values["variation"] is not None and values["variation"] > MAX_VARIATION:
                text = f"{row['attack']} ({arm}) varies by {values['variation']:.1%} (limit {MAX_VARIATION:.0%})"
                flags.append(flag("variation", text))
    blocks = len(rows[0]["arms"]["ours"]["block_s"])
    if blocks < FEWEST_BLOCKS:
        flags.append(flag("few_blocks", f"{blocks} blocks; an interval needs {FEWEST_BLOCKS}"))
    return flags


def _summary(result: dict[str, Any]) -> str:
    count = result["config"]["images"]
    lines = []
    for row in result["results"]["attacks"]:
        ours, peer, ratio = row["arms"]["ours"], row["arms"]["peer"], row["speed_up"]
        low, high = ratio["images_per_s_interval"]
        lines.append(
            f"{row['attack']}: {ours['images_per_s']:.2f} images/s, {row['peer']} {peer['images_per_s']:.2f}: "
            f"{ratio['images_per_s']:.2f} times [{low:.2f}, {high:.2f}], {ratio['passes_per_s']:.2f} times the "
            f"passes/s; wrong {ours['wrong']} and {peer['wrong']} of {count}"
        )
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the network that is attacked")
    parser.add_argument("--data", type=Path, help="its test images are attacked; without it: uniform noise")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--only", action="append", choices=list(COMPARISONS), help="an attack to time; repeatable")
    parser.add_argument("--epsilon", type=float, default=8.0, help="in 255ths")
    parser.add_argument("--steps", type=int, default=100, help="of all attacks but square")
    parser.add_argument("--queries", type=int, default=5000, help="of square")
    parser.add_argument("--blocks", type=int, default=FEWEST_BLOCKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, images=1, steps=1, queries=2, blocks=1, threads=1)
    if not 0 < options.epsilon <= 255:
        raise UsageError(f"--epsilon is {options.epsilon:g}", "Give a radius in 255ths, for example 8.")
    prepare(options)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
