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
    """Return one greppable line: BENCH VALID or BENCH INVALID, the largest arm's overhead, and the reasons."""
    last = rows(result)[-1]
    cost = f"{last['arm']} costs {format_overhead(last)} over the deterministic network"
    flags = result["validity"]["flags"]
    if not flags:
        return f"BENCH VALID: {cost}"
    return f"BENCH INVALID: {cost}; {'; '.join(item['detail'] for item in flags)}"
