"""A benchmark's JSON as rows for a table, CSV or Markdown, and its verdict in one line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

INSUFFICIENT = "insufficient"
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


def to_csv(result: Mapping[str, Any]) -> str:
    """Return the rows as CSV with a header; an empty field is a number that could not be measured."""
    table = rows(result)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _ms(value: float | None) -> str:
    return INSUFFICIENT if value is None else f"{value:.3f}"


def format_overhead(row: Mapping[str, Any]) -> str:
    """Return a row's overhead for people: "+2.31 % [+2.10, +2.52]", empty for the baseline."""
    if row["overhead_percent"] is None:
        return ""
    text = f"{row['overhead_percent']:+.2f} %"
    if row["overhead_low_percent"] is None:
        return text
    return f"{text} [{row['overhead_low_percent']:+.2f}, {row['overhead_high_percent']:+.2f}]"


def format_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and one line an arm, as text for a table on the screen or in Markdown."""
    header = ["arm", *(f"{name} ms" for name in _PERCENTILES), "max ms", "frames", "overhead [95 %]"]
    lines = [header]
    for row in rows(result):
        times = [_ms(row[f"{name}_ms"]) for name in (*_PERCENTILES, "max")]
        lines.append([row["arm"], *times, str(row["n"]), format_overhead(row)])
    return lines


def to_markdown(result: Mapping[str, Any]) -> str:
    """Return the arms, the stages, the machine and the verdict as Markdown."""
    environment, config = result["environment"], result["config"]
    header, *body = format_rows(result)
    lines = [
        _markdown_row(header),
        _markdown_row(["---", *["---:"] * (len(header) - 1)]),
        *map(_markdown_row, body),
        "",
    ]
    for arm, stages in (result["results"]["stages_ms"] or {}).items():
        shown = ", ".join(f"{stage} {value:.3f}" for stage, value in stages.items())
        lines.append(f"- stages of {arm}, median ms: {shown}")
    engine = environment["engines"].get(config["engine"]) or config["engine"]
    lines += [
        f"- {environment['cpu']}, {environment['logical_cores']} logical cores, {environment['os']}, {engine}, "
        f"threads {config['threads'] or 'default'}, profile {config['profile']['name']}",
        f"- {verdict(result)}",
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def verdict(result: Mapping[str, Any]) -> str:
    """Return one greppable line: BENCH VALID or BENCH INVALID, the largest arm's overhead, and the reasons."""
    last = rows(result)[-1]
    cost = f"{last['arm']} costs {format_overhead(last)} over the deterministic network"
    flags = result["validity"]["flags"]
    if not flags:
        return f"BENCH VALID: {cost}"
    return f"BENCH INVALID: {cost}; {'; '.join(item['detail'] for item in flags)}"
