"""What the process starts of a benchmark measured, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime import latency
from flss_runtime.arm_names import BASELINE, parse_arm
from flss_runtime.bench_process import Times
from flss_runtime.latency import Overhead
from flss_runtime.stages import medians_of
from flss_runtime.throughput import summarise_throughput
from flss_runtime.visits import block_medians, settled, settling

# A claim about a 2 % overhead needs an interval of at most half a percent to each side.
PRECISE_HALF_WIDTH = 0.005


def stream_latencies(times: Sequence[Times], index: int) -> NDArray[np.float64]:
    """Return the frames of an arm by itself in milliseconds, in order, over all process starts."""
    return np.concatenate([run[f"stream_{index}"] for run in times]) / 1e6


def assemble(
    starts: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], times: Sequence[Times]
) -> dict[str, Any]:
    """Return the `results` of a benchmark.

    Args:
        starts: what the cold starts returned, one a process start.
        runs: what the measurements returned.
        times: their arrays.
    """
    names = runs[0]["arms"]
    settle = [run["settle_frames"] for run in runs]  # as slow as the machine was in that process start
    kept = [settled(run, first) for run, first in zip(times, settle, strict=True)]
    medians = {name: [block_medians(run, index) for run in kept] for index, name in enumerate(names)}
    arms = []
    for index, name in enumerate(names):
        alone = stream_latencies(times, index)
        between = np.concatenate([run["latency_ns"][run["arm"] == index] for run in kept]) / 1e6
        arms.append(
            {
                "name": name,
                "num_samples": parse_arm(name).num_samples,
                "sampling": parse_arm(name).sampling,
                **latency.summarise(alone),
                "block_medians_ms": medians[name],
                "variation": latency.variation(np.ravel(medians[name])),
                "interleaved_over_alone": float(np.median(between) / np.median(alone)),
                **_settling(times, index, settle),
            }
        )
    return {
        "arms": arms,
        "overhead": [
            overhead_row(latency.overhead(name, BASELINE, medians[name], medians[BASELINE])) for name in names[1:]
        ],
        "throughput": summarise_throughput([run["throughput"] for run in runs]),
        "energy": runs[0]["energy"],
        "stages_ms": {name: medians_of([run["stages_ms"][name] for run in runs]) for name in runs[0]["stages_ms"]},
        "start": {key: _middle([start[key] for start in starts]) for key in starts[0] if key.endswith("_ms")},
        "warm_up": [{"process": index, **row} for index, run in enumerate(runs) for row in run["warm_up"]],
        "peak_rss_mib": {
            "deterministic": _largest([run["peak_rss_mib"][BASELINE] for run in runs]),
            "smoothed": _largest([start["peak_rss_mib"] for start in starts]),
            "all_arms": _largest([run["peak_rss_mib"]["all_arms"] for run in runs]),
        },
        "rss_mib": {"smoothed": _largest([start["rss_mib"] for start in starts])},
        "device_mib": {"smoothed": _largest([start["device_mib"] for start in starts])},
    }


def overhead_row(found: Overhead) -> dict[str, Any]:
    """Return an overhead as JSON values, and whether a claim about 2 % can be made from it."""
    precise = found.half_width is not None and found.half_width <= PRECISE_HALF_WIDTH
    return {**asdict(found), "interval": list(found.interval) if found.interval else None, "precise": precise}


def _settling(times: Sequence[Times], index: int, settle: Sequence[int]) -> dict[str, Any]:
    """Return the course of a visit as far as every process start has it, and its first frame that counts."""
    courses = [settling(run, index, first) for run, first in zip(times, settle, strict=True)]
    shortest = min(map(len, courses))
    return {
        "settling": [_middle([course[place] for course in courses]) for place in range(shortest)],
        "first_counted": _middle([course[first] for course, first in zip(courses, settle, strict=True)]),
    }


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
