"""A long run: does memory grow, do frames get slower, and how far is the tail from the middle?

usage: python benchmarks/soak.py c10.bundle --frames 1000000 -o soak.json

One classifier, one thread, frame after frame. Memory is read between frames, some 2,000 times; what the measurement
itself needs is allocated and touched before the first frame. The slope of memory is that of a line through the means of
20 equal parts of the run, the first of them left out as warm-up, with the upper end of its 95 % interval (Student's t);
the same line through the parts' median latencies shows drift. Exit 1 if memory grows by more than 1 MiB in a million
frames, by that upper end.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from command_line import add_result_options, require_at_least, run_timing, timing_flags
from numpy.typing import NDArray
from soak_plot import plot_soak

from flss_runtime.arm_names import parse_arm
from flss_runtime.arms import Setting, check_answer, open_arm
from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import load_bundle
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, EngineUnavailable
from flss_runtime.image_pool import load_images
from flss_runtime.latency import summarise
from flss_runtime.machine import Snapshot, rss_mib
from flss_runtime.validity import flag

PARTS = 21  # the first one warms up
MOST_GROWTH = 1.0  # MiB in a million frames
MOST_DRIFT = 0.05  # of the median latency, from the beginning to the end
FIRST = 2000  # frames before anything is recorded
# Student's t at 97.5 % with PARTS - 1 parts less the line's two parameters.
T_18 = 2.1009


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 1 memory grows, 5 not valid, else FLSSError's."""
    return run_timing(
        "soak.py", arguments, parse=_parse, measure=measure, plot=plot_soak, summary=_summary, judge=judge
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the frames; return the result's JSON values without the command.

    Raises:
        EngineUnavailable: the system does not tell how much memory is resident.
    """
    bundle, environment = load_bundle(options.bundle), describe_environment()
    pool = load_images(bundle)
    arm = open_arm(bundle, options.arm, Setting(options.engine, "fp32", options.threads), 0)
    order = pool.order(0)
    images = [pool.images[index] for index in order]
    check_answer(arm.frame(images[0]))
    before = Snapshot.take()
    try:
        latency_ns, at, resident = run(arm.frame, images, options.frames)
    finally:
        arm.close()
    counters = before.until(Snapshot.take())
    results = describe(latency_ns, at, resident)
    flags = timing_flags(options, environment, [counters])
    if abs(results["drift"]["share"]) > MOST_DRIFT:
        flags.append(
            flag("drift", f"frames at the end take {1 + results['drift']['share']:.3f} times those at the start")
        )
    results["memory"]["limit_mib"] = None if options.quick else MOST_GROWTH
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {
            "engine": options.engine,
            "threads": options.threads,
            "arm": options.arm,
            "frames": options.frames,
            "input": bundle.input.to_json(),
        },
        "results": results,
        "validity": {"valid": not flags, "flags": flags, "counters": counters},
    }


def judge(result: dict[str, Any]) -> None:
    """Refuse memory that grows.

    Raises:
        CheckFailed: the upper end of its slope's interval is above the limit.
    """
    memory = result["results"]["memory"]
    if memory["limit_mib"] is not None and memory["upper_mib"] > memory["limit_mib"]:
        raise CheckFailed(
            f"memory may grow by {memory['upper_mib']:.2f} MiB in 10^6 frames (limit {memory['limit_mib']:g})",
            "look for what is kept from frame to frame; with few frames the interval is too wide: raise --frames",
        )


def run(frame: Any, images: list[Any], frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Run so many frames.

    Args:
        frame: image -> answer.
        images: taken one after the other, again and again.
        frames: how many.

    Returns:
        latency (frames,) in nanoseconds; the frames before which memory was read (m,), and MiB there (m,).

    Raises:
        EngineUnavailable: as `resident_mib`.
    """
    resident_mib()  # refused now, not after the warm-up
    every = max(1, frames // 2000)
    latency_ns = np.ones(frames, np.int64)  # ones, not empty: its pages have to be there before the first frame
    at, resident = np.ones(frames // every + 1, np.int64), np.ones(frames // every + 1)
    clock, count, read = time.perf_counter_ns, len(images), 0
    for index in range(min(FIRST, frames)):
        frame(images[index % count])
    gc.collect()
    for index in range(frames):
        if index % every == 0:
            at[read], resident[read] = index, resident_mib()
            read += 1
        image = images[index % count]
        start = clock()
        frame(image)
        latency_ns[index] = clock() - start
        if index % (frames // 20 or 1) == 0:
            print(
                f"{index / frames:.0%} of {frames:,} frames, {resident[read - 1]:.2f} MiB", file=sys.stderr, flush=True
            )
    return latency_ns, at[:read], resident[:read]


def resident_mib() -> float:
    """Return the resident memory of this process in MiB.

    Raises:
        EngineUnavailable: the system does not tell; a growth of nothing would be no growth.
    """
    found = rss_mib()
    if found is None:
        raise EngineUnavailable("this system does not tell how much memory is resident", "run it on Linux, with /proc")
    return found


def describe(latency_ns: NDArray[np.int64], at: NDArray[np.int64], resident: NDArray[np.float64]) -> dict[str, Any]:
    """Return memory's slope, latency's drift and the percentiles.

    Args:
        latency_ns: (frames,) nanoseconds.
        at: (m,) frames before which memory was read.
        resident: (m,) MiB.
    """
    frames = latency_ns.size
    part = np.minimum(at * PARTS // frames, PARTS - 1)
    means = np.array([resident[part == number].mean() for number in range(1, PARTS)])
    medians = np.array([np.median(each) for each in np.array_split(latency_ns, PARTS)[1:]]) / 1e6
    million = (np.arange(1, PARTS) + 0.5) * frames / PARTS / 1e6
    slope, error = line(million, means)
    drift, drift_error = line((million - million[0]) / (million[-1] - million[0]), medians / medians.mean())
    found = summarise(latency_ns / 1e6)
    stated = found["latency_ms"]
    return {
        "memory": {
            "mib_per_million": slope,
            "upper_mib": slope + T_18 * error,
            "lower_mib": slope - T_18 * error,
            "first_mib": float(resident[0]),
            "last_mib": float(resident[-1]),
            "largest_mib": float(resident.max()),
            "parts_mib": means.tolist(),
            "read_at": at[:: max(1, at.size // 400)].tolist(),
            "read_mib": resident[:: max(1, at.size // 400)].tolist(),
        },
        "drift": {"share": drift, "interval": [drift - T_18 * drift_error, drift + T_18 * drift_error]},
        "parts_ms": medians.tolist(),
        "latency": found,
        "p99_9_over_p50": stated["p99.9"] / stated["p50"] if stated["p99.9"] else None,
    }


def line(places: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the slope of the least-squares line and its standard error."""
    centred = places - places.mean()
    slope = float(centred @ values / (centred @ centred))
    rest = values - values.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / (values.size - 2) / (centred @ centred)))


def _summary(result: dict[str, Any]) -> str:
    results = result["results"]
    memory, drift, stated = results["memory"], results["drift"], results["latency"]["latency_ms"]
    tail = "insufficient" if stated["p99.9"] is None else f"{stated['p99.9']:.3f} ms"
    ratio = "" if results["p99_9_over_p50"] is None else f", {results['p99_9_over_p50']:.2f} times the median"
    config = result["config"]
    return (
        f"{config['frames']:,} frames of {config['arm']}: memory {memory['mib_per_million']:+.3f} MiB "
        f"in 10^6 frames, at most {memory['upper_mib']:.3f} (95 %)\n"
        f"latency {drift['share']:+.2%} [{drift['interval'][0]:+.2%}, {drift['interval'][1]:+.2%}] from start to end; "
        f"p50 {stated['p50']:.3f} ms, p99.9 {tail}{ratio}"
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, help="by default 1,000,000, with --quick 20,000")
    parser.add_argument("--arm", default="n100", help="as of flss-edge bench --arms, or deterministic")
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged; growth is not judged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    if options.frames is None:
        options.frames = 20_000 if options.quick else 1_000_000
    require_at_least(options, frames=1000, threads=1)
    parse_arm(options.arm)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
