"""Images a second at larger batches, and what sampling costs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flss_runtime import latency
from flss_runtime.arms import Arm, check_answer
from flss_runtime.errors import FLSSError
from flss_runtime.image_pool import ImagePool
from flss_runtime.visits import palindrome

_ROUNDS = 2  # fewest, of two calls an arm each
_LONG_S = 0.1  # what a call finds in the caches is nothing beside so long a time
# A failure at one size is a result: TensorRT builds for a largest batch, and a device's memory ends somewhere.
_TOO_LARGE = (FLSSError, MemoryError)


def measure_throughput(
    arms: Sequence[Arm], pool: ImagePool, sizes: Sequence[int], seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time whole calls of both arms at each size, in palindromes.

    Args:
        arms: the baseline and what is compared with it.
        pool: images of the encoder's size.
        sizes: batch sizes.
        seconds: shortest time spent on one size.
        say: called before every size.

    Returns:
        One row a size: `batch`, `milliseconds` (arm -> list, one value a round), `error` where a call failed.
    """
    rows = []
    for size in sizes:
        say("throughput")
        row: dict[str, Any] = {"batch": size, "milliseconds": {arm.name: [] for arm in arms}, "error": None}
        try:
            _rounds(arms, pool.batch(size), seconds, row["milliseconds"])
        except _TOO_LARGE as error:
            row["error"] = str(error) or type(error).__name__
        rows.append(row)
    return rows


def _rounds(arms: Sequence[Arm], images: Any, seconds: float, taken: dict[str, list[float]]) -> None:
    last_s = dict.fromkeys((arm.name for arm in arms), 0.0)
    for arm in arms:
        check_answer(arm.batch(images))
    by_name = {arm.name: arm for arm in arms}
    stop = time.perf_counter() + seconds
    turn = 0
    while turn < _ROUNDS or time.perf_counter() < stop:
        spent = dict.fromkeys(by_name, 0.0)
        for name in palindrome(list(by_name), turn):
            if last_s[name] < _LONG_S:
                by_name[name].batch(images)
            began = time.perf_counter()
            by_name[name].batch(images)
            last_s[name] = time.perf_counter() - began
            spent[name] += last_s[name] * 1e3 / 2
        for name, value in spent.items():
            taken[name].append(value)
        turn += 1


def summarise_throughput(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Put the process starts together.

    Args:
        runs: what `measure_throughput` returned, one a process start.

    Returns:
        One row a size: `batch`, `images_per_s` (arm -> median over all rounds), `overhead` (of the last arm over the
        first, as of `latency.overhead`), `error`.
    """
    table = []
    for rows in zip(*runs, strict=True):
        error = next((row["error"] for row in rows if row["error"]), None)
        found: dict[str, Any] = {"batch": rows[0]["batch"], "images_per_s": None, "overhead": None, "error": error}
        if error is None:
            times = [row["milliseconds"] for row in rows]
            fewest = min(len(next(iter(each.values()))) for each in times)
            baseline, *_, last = times[0]
            found["images_per_s"] = {
                name: rows[0]["batch"] * 1e3 / float(np.median(np.concatenate([each[name] for each in times])))
                for name in times[0]
            }
            cost = latency.overhead(
                last, baseline, [each[last][:fewest] for each in times], [each[baseline][:fewest] for each in times]
            )
            found["overhead"] = cost.to_json()
        table.append(found)
    return table
