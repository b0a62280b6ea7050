"""Two benchmarks of the same graphs against each other, arm by arm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arm_names import BASELINE
from flss_runtime.errors import DataError, UsageError
from flss_runtime.validity import Flag, flag

_RESAMPLES = 10_000
_LEAST_MS, _MOST_MS = 1e-9, 1e12  # of a frame: within it no ratio overflows
# May differ: comparing them is what a comparison is for. They are named all the same.
_MAY_DIFFER = ("engine", "threads", "profile")


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read what `flss-edge bench -o` wrote as JSON.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    fix = "pass a file written by flss-edge bench -o"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})", fix) from error
    wrong = _wrong(result)
    if wrong:
        raise DataError(f"{path} is not the result of a benchmark: {wrong}", fix)
    found: dict[str, Any] = result
    return found


def _wrong(result: Any) -> str:
    """Return what `compare` and its neighbours could not read, empty if they can."""
    parts = ("environment", "artifact", "config", "results", "validity")
    if not isinstance(result, dict) or any(not isinstance(result.get(part), dict) for part in parts):
        return f"it lacks one of {', '.join(parts)}"
    if result.get("schema_version") != 1:
        return f"its schema_version is {result.get('schema_version')}, not 1"
    if not isinstance(result["environment"].get("packages", {}), dict):
        return "environment.packages is no object"
    flags = result["validity"].get("flags")
    if not isinstance(flags, list) or not all(map(_is_flag, flags)):
        return "validity.flags is no list of name and detail"
    arms = result["results"].get("arms")
    if not isinstance(arms, list) or not all(
        isinstance(arm, dict) and isinstance(arm.get("name"), str) for arm in arms
    ):
        return "results.arms is no list of named arms"
    if len({arm["name"] for arm in arms}) < len(arms):
        return "an arm is there twice"
    shapes = {_shape(arm.get("block_medians_ms")) for arm in arms}
    return (
        "" if len(shapes) == 1 and None not in shapes else "block_medians_ms are not as many times above 0 in each arm"
    )


def _is_flag(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("detail"), str)


def _shape(medians: Any) -> tuple[int, int] | None:
    """Return (processes, blocks) of milliseconds, None of anything else."""
    if not isinstance(medians, list) or not all(isinstance(row, list) for row in medians):
        return None
    times = [time for row in medians for time in row]
    if not times or len({len(row) for row in medians}) > 1:
        return None
    plain = all(type(time) in (int, float) and _LEAST_MS <= time <= _MOST_MS for time in times)
    return (len(medians), len(medians[0])) if plain else None


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, seed: int = 0) -> list[dict[str, Any]]:
    """Compare the arms that both have.

    Args:
        first: what `read_benchmark` returned, the reference.
        second: what is compared with it.
        seed: of the bootstrap, so that a table can be recomputed.

    Returns:
        One row an arm: `arm`, `first_ms` and `second_ms` (medians of the blocks), `change_percent` of the second over
        the first with its 95 % interval (`change_low_percent`, `change_high_percent`), and for the arms beside the
        baseline `first_overhead_percent`, `second_overhead_percent` and their difference in percentage points with its
        interval. Process starts, then blocks within them, are drawn anew in each file by itself, 10,000 times: the two
        did not run at the same time, so only what is within one block is paired, an arm with its baseline.

    Raises:
        UsageError: the two did not measure the same thing, or have no arm in common.
    """
    refuse_different(first, second)
    draw = np.random.default_rng(seed)
    sides = [
        {arm["name"]: np.asarray(arm["block_medians_ms"]) for arm in each["results"]["arms"]}
        for each in (first, second)
    ]
    names = [name for name in sides[0] if name in sides[1]]
    if not names:
        raise UsageError("the two benchmarks have no arm in common", "run both with the same --arms")
    picked = [_picks(side[names[0]].shape, draw) for side in sides]
    return [_row(name, sides, picked) for name in names]


def refuse_different(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse to compare what is not comparable.

    Raises:
        UsageError: boundary, graphs, input, precision or images are not the same.
    """
    for name, key, fix in (
        ("begin or end a frame at another place", "boundary", "run both with the same --frame, or both without"),
        ("ran the network in another precision", "precision", "run both with the same --precision"),
        ("drew their frames from other images", "images", "run both on the same bundle"),
    ):
        one, other = first["config"].get(key), second["config"].get(key)
        if one != other:
            raise UsageError(f"the two benchmarks {name}: {one} and {other}", fix)
    for name, key in (("graphs", "graphs_sha256"), ("inputs", "input")):
        one, other = first["artifact"].get(key), second["artifact"].get(key)
        if one != other:
            raise UsageError(
                f"the two benchmarks ran different {name}{_unequal(one, other)}", "run both on the same bundle"
            )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return what else differs, one line each: what the change may come from."""
    lines = [
        f"{key}: {_shown(first['config'].get(key))} and {_shown(second['config'].get(key))}"
        for key in _MAY_DIFFER
        if first["config"].get(key) != second["config"].get(key)
    ]
    one, other = first["environment"], second["environment"]
    for key in ("cpu", "logical_cores", "gpus", "nvidia_driver", "power_mode", "os", "python", "git_commit"):
        if one.get(key) != other.get(key):
            lines.append(f"{key}: {_shown(one.get(key))} and {_shown(other.get(key))}")
    mine, theirs = one.get("packages", {}), other.get("packages", {})
    for key in sorted({*mine, *theirs}):
        if mine.get(key) != theirs.get(key):
            lines.append(f"{key}: {mine.get(key)} and {theirs.get(key)}")
    return lines


def flags_of_both(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Flag]:
    """Return what speaks against either of the two."""
    return [
        flag(item["name"], f"{which}: {item['detail']}")
        for which, each in (("first", first), ("second", second))
        for item in each["validity"]["flags"]
    ]


def _row(name: str, sides: Sequence[Mapping[str, NDArray[Any]]], picked: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    times = [np.median(side[name]) for side in sides]
    drawn = [
        np.median(side[name][pick].reshape(_RESAMPLES, -1), axis=1) for side, pick in zip(sides, picked, strict=True)
    ]
    low, high = np.percentile(drawn[1] / drawn[0], (2.5, 97.5))
    row: dict[str, Any] = {
        "arm": name,
        "first_ms": float(times[0]),
        "second_ms": float(times[1]),
        "change_percent": float(times[1] / times[0] - 1) * 100,
        "change_low_percent": float(low - 1) * 100,
        "change_high_percent": float(high - 1) * 100,
    }
    if name == BASELINE or any(BASELINE not in side for side in sides):
        return row
    ratios = [side[name] / side[BASELINE] for side in sides]
    costs = [(float(np.median(ratio)) - 1) * 100 for ratio in ratios]
    drawn = [np.median(ratio[pick].reshape(_RESAMPLES, -1), axis=1) for ratio, pick in zip(ratios, picked, strict=True)]
    low, high = np.percentile(drawn[1] - drawn[0], (2.5, 97.5)) * 100
    return row | {
        "first_overhead_percent": costs[0],
        "second_overhead_percent": costs[1],
        "overhead_change_points": costs[1] - costs[0],
        "overhead_change_low_points": float(low),
        "overhead_change_high_points": float(high),
    }


def _picks(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Any, Any]:
    """Draw process starts with replacement, then blocks within each."""
    processes, blocks = shape
    chosen = draw.integers(processes, size=(_RESAMPLES, processes, 1))
    return chosen, draw.integers(blocks, size=(_RESAMPLES, processes, blocks))


def _unequal(one: Any, other: Any) -> str:
    """Name the keys in which two objects differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ""
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return f" ({', '.join(keys)})"


def _shown(value: Any) -> str:
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
