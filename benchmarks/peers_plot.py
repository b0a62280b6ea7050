"""Picture of what benchmarks/peers.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flss_edge.picture import COLOURS, drawn

OTHERS = ("plain loop", "voting loop", "smoothing", "benchmark_app")


def plot_peers(result: Mapping[str, Any], target: Path) -> None:
    """Draw each pair's times, and the difference where the two do the same.

    Args:
        result: the JSON of benchmarks/peers.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    rows = result["results"]["rows"]
    with drawn(target, (13, 5)) as figure:
        left, right = figure.subplots(1, 2)
        for place, row in enumerate(rows):
            for side, (name, value) in enumerate(((row["name"], row["ms"]), (row["beside"], row["beside_ms"]))):
                height = place + 0.2 * (2 * side - 1)
                left.barh(height, value, height=0.36, color=COLOURS[2 if name in OTHERS else 1])
                text = f" {name}: {value:.3f} ms"
                left.annotate(text, (value, height), va="center", fontsize=9)
        left.set_xscale("log")
        left.set_xlim(right=12 * max(max(row["ms"], row["beside_ms"]) for row in rows))
        left.set_yticks(range(len(rows)), [row["boundary"].replace(" to ", "\nto ") for row in rows])
        left.invert_yaxis()
        left.set_xlabel("milliseconds (log scale)")
        left.set_title("Time of a frame", fontsize=11)
        close = [row for row in rows if row["ratio"] < 2]
        scatter = np.random.default_rng(0)
        for place, row in enumerate(close):
            percent = (np.ravel(row["block_ms"]) / np.ravel(row["beside_block_ms"]) - 1) * 100
            right.scatter(percent, place + scatter.uniform(-0.15, 0.15, percent.size), s=10, alpha=0.35, lw=0)
            low, high = row["interval"] or (row["ratio"], row["ratio"])
            error = [[(row["ratio"] - low) * 100], [(high - row["ratio"]) * 100]]
            right.errorbar(row["percent"], place, xerr=error, fmt="o", color="black", capsize=5)
            right.annotate(f"{row['percent']:+.2f} %", (row["percent"], place), (0, 8), textcoords="offset points")
        right.axvline(0, color=COLOURS[0], lw=1)
        right.set_yticks(range(len(close)), [f"{row['name']}\nover {row['beside']}" for row in close])
        right.set_ylim(len(close) - 0.4, -0.6)
        right.set_xlabel("difference, %, with 95 % interval")
        right.set_title("Ours over the peer that does the same", fontsize=11)
        right.grid(axis="x", alpha=0.3)
        config, environment = result["config"], result["environment"]
        text = f"{result['artifact']['bundle']}, batch 1, {config['threads']} thread(s), {environment['cpu']}"
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)
