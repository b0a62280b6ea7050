"""Picture of what benchmarks/stream.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flss_edge.picture import COLOURS, drawn
from flss_runtime.latency import QUANTILE_GRID

_STATUSES = {
    "accepted": COLOURS[3],
    "low_vote": COLOURS[5],
    "deadline": COLOURS[2],
    "superseded": COLOURS[6],
    "fault": COLOURS[4],
}


def plot_stream(result: Mapping[str, Any], target: Path) -> None:
    """Draw the latencies, how late results were, and what kinds of results there were.

    Args:
        result: the JSON of benchmarks/stream.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    runs, config = result["results"]["runs"], result["config"]
    with drawn(target, (16, 4.8)) as figure:
        left, middle, right = figure.subplots(1, 3)
        _latencies(left, runs)
        _lateness(middle, runs, result["results"]["limit_ms"])
        _kinds(right, runs, config["frames"])
        text = (
            f"{result['artifact']['bundle']}, n{config['num_samples']}, {config['engine']}, {config['threads']} "
            f"thread(s), {config['frames']:,} frames a run at {config['rate_hz']:g} Hz, {result['environment']['cpu']}"
        )
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)


def _latencies(axes: Any, runs: list[dict[str, Any]]) -> None:
    rows = [(f"stream, {row['load']}", row["latency"], row["load"]) for row in runs if row["deadline"] == "roomy"]
    rows += [("bare classifier, quiet", row["bare"], "bare") for row in runs if "bare" in row]
    colours = {"quiet": COLOURS[1], "busy": COLOURS[2], "bare": COLOURS[0]}
    slower = 1 - np.asarray(QUANTILE_GRID) / 100
    for name, found, kind in rows:
        shown = slower >= 1 / max(found["n"], 1)
        axes.plot(np.asarray(found["quantiles_ms"])[shown], slower[shown], color=colours[kind], label=name)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("from submission to result, ms")
    axes.set_ylabel("share of frames slower")
    cost = next((row["overhead"] for row in runs if "overhead" in row), None)
    axes.set_title("Latency" if cost is None else f"Latency: {cost['difference_ms']:+.3f} ms over the bare classifier")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _lateness(axes: Any, runs: list[dict[str, Any]], limits: Mapping[str, float] | None) -> None:
    places = range(len(runs))
    colours = [COLOURS[1] if row["load"] == "quiet" else COLOURS[2] for row in runs]
    found = [row["past_deadline"]["max_ms"] or 0.0 for row in runs]
    timers = [row["timer_late"]["max_ms"] for row in runs]
    for bars in (
        axes.bar([place - 0.2 for place in places], found, 0.4, color=colours),
        axes.bar([place + 0.2 for place in places], timers, 0.4, color=COLOURS[0], label="a bare timer, same run"),
    ):
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    for place, row in enumerate(runs):
        if limits is not None:
            axes.hlines(limits[row["load"]], place - 0.45, place + 0.45, color="black", ls="--", lw=1)
    axes.set_xticks(places, [_name(row) for row in runs], fontsize=8)
    axes.set_ylabel("the latest of the run, ms late")
    axes.set_title("Lateness (dashed: the limit)")
    axes.grid(alpha=0.3, axis="y")


def _kinds(axes: Any, runs: list[dict[str, Any]], frames: int) -> None:
    below = np.zeros(len(runs))
    for status, colour in _STATUSES.items():
        share = np.array([row["statuses"].get(status, 0) for row in runs]) / frames * 100
        if share.any():
            axes.bar(range(len(runs)), share, bottom=below, color=colour, label=status)
            below += share
    axes.set_xticks(range(len(runs)), [_name(row) for row in runs], fontsize=8)
    axes.set_ylabel("% of frames")
    axes.set_title("Kinds of results")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['load']}\n{row['deadline_ms']:.1f} ms"
