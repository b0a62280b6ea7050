"""A benchmark's JSON as flat rows for a table, and its verdict in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one flat row an arm.

    Args:
        result: what `BenchResult.to_json` returned, or the same read from a file.

    Returns:
        Numbers unrounded, times in milliseconds, overhead in percent; None where there is none or too few frames.
    """
    costs = {row["arm"]: row for row in result["results"]["overhead"]}
    table = []
    for arm in result["results"]["arms"]:
        cost = costs.get(arm["name"])
        interval = cost["interval"] if cost else None
        table.append(
            {
                "arm": arm["name"],
                "num_samples": arm["num_samples"],
                "n": arm["n"],
                **{f"{name}_ms": arm["latency_ms"][name] for name in _PERCENTILES},
                "max_ms": arm["max_ms"],
                "variation_percent": None if arm["variation"] is None else arm["variation"] * 100,
                "overhead_percent": cost["percent"] if cost else None,
                "overhead_low_percent": (interval[0] - 1) * 100 if interval else None,
                "overhead_high_percent": (interval[1] - 1) * 100 if interval else None,
            }
        )
    return table


def format_overhead(row: Mapping[str, Any]) -> str:
    """Return a row's overhead for people: "+2.31 % [+2.10, +2.52]", empty for the baseline."""
    if row["overhead_percent"] is None:
        return ""
    text = f"{row['overhead_percent']:+.2f} %"
    if row["overhead_low_percent"] is None:
        return text
    return f"{text} [{row['overhead_low_percent']:+.2f}, {row['overhead_high_percent']:+.2f}]"


def verdict(result: Mapping[str, Any]) -> str:
    """Return one greppable line: BENCH VALID or BENCH INVALID, the overhead of the arm it is about, and the reasons."""
    arm = result["config"]["primary"]
    row = next(row for row in rows(result) if row["arm"] == arm)
    cost = f"{arm} costs {format_overhead(row)} over the deterministic network"
    flags = result["validity"]["flags"]
    if not flags:
        return f"BENCH VALID: {cost}"
    return f"BENCH INVALID: {cost}; {'; '.join(item['detail'] for item in flags)}"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a table of arms has no room for, one line each: start, memory, stages, throughput, energy."""
    results = result["results"]
    start, host, device = results["start"], results["rss_mib"]["smoothed"], results["device_mib"]["smoothed"]
    lines = [
        f"start to first decision: {start['process_start_to_first_decision_ms']:.0f} ms, of it "
        f"{start['interpreter_and_imports_ms']:.0f} for Python and imports, {start['open_engines_ms']:.0f} for engines",
        f"memory of {result['config']['primary']}: {_mebibytes(host)} resident, {_mebibytes(device)} on the device",
    ]
    lines += [
        f"stages of {arm}, median ms: " + ", ".join(f"{stage} {value:.3f}" for stage, value in times.items())
        for arm, times in (results["stages_ms"] or {}).items()
    ]
    lines += [_throughput(row) for row in results["throughput"]]
    for row in results["energy"]:
        each = ", ".join(f"{arm['arm']} {arm['joules_per_frame']:.4g} J a frame" for arm in row["arms"])
        lines.append(f"energy by {row['counter']} ({row['boundary']}): {each}; idle {row['idle_w']:.1f} W")
    if not results["energy"]:
        lines.append("energy: no counter that can be read here")
    return lines


def _mebibytes(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MiB"


def _throughput(row: Mapping[str, Any]) -> str:
    if row["error"] is not None:
        return f"batch {row['batch']}: {row['error']}"
    rates = ", ".join(f"{arm} {rate:.4g}" for arm, rate in row["images_per_s"].items())
    return f"batch {row['batch']}, images/s: {rates} ({row['overhead']['percent']:+.2f} %)"
