"""Picture of what benchmarks/engines.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_engines(result: Mapping[str, Any], target: Path) -> None:
    """Draw the time of an image and the rate of changed decisions, of every engine in every precision.

    Args:
        result: the JSON of benchmarks/engines.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    rows = result["results"]["rows"]
    with drawn(target, (12.5, 4.8)) as figure:
        left, right = figure.subplots(1, 2)
        _draw_times(left, rows)
        _draw_flips(right, rows)
        config, environment = result["config"], result["environment"]
        packages = environment["packages"]
        versions = ", ".join(f"{name} {packages[name]}" for name in ("onnxruntime", "openvino") if name in packages)
        text = (
            f"{result['artifact']['bundle']}, N = {config['num_samples']}, batch 1, {config['threads']} thread(s), "
            f"{environment['cpu']}, {versions}"
        )
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)


def _draw_times(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw every block's time as a dot beside the bar of the median."""
    scatter = np.random.default_rng(0)
    for place, row in enumerate(rows):
        times = np.asarray(row["block_ms"])
        axes.bar(place, row["ms"], width=0.6, color=COLOURS[place % len(COLOURS)], alpha=0.85)
        spread = place + scatter.uniform(-0.2, 0.2, times.size)
        axes.scatter(spread, times, s=12, color="white", edgecolor="black", lw=0.6, zorder=3)
        faster = row.get("times_fp32")
        label = f"{row['ms']:.3g} ms" + (f"\n{faster['ratio']:.2f} x as fast" if faster else "")
        axes.annotate(label, (place, times.max()), (0, 5), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(rows)), [f"{row['engine']}\n{row['precision']}" for row in rows])
    axes.margins(y=0.2)
    axes.set_ylabel("milliseconds an image, classify()")
    axes.set_title(f"Time ({len(rows[0]['block_ms'])} blocks)", fontsize=11)
    axes.grid(axis="y", alpha=0.3)


def _draw_flips(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the rate of each kind of changed decision with its upper bound, against the budget."""
    kinds = list(dict.fromkeys(test["kind"] for row in rows for test in row["flips"]))
    for place, row in enumerate(rows):
        for test in row["flips"]:
            number = kinds.index(test["kind"])
            at = place + 0.22 * (number - (len(kinds) - 1) / 2)
            rate, bound = 100 * test["rate"], 100 * test["bound"]
            label = f"{test['kind']} flips" if place == 0 else None
            axes.errorbar(at, rate, [[0], [bound - rate]], fmt="o", capsize=4, color=COLOURS[number], label=label)
            axes.annotate(f"{test['flips']}", (at, bound), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    budget = 100 * rows[0]["equivalence"]["budget"]
    axes.axhline(budget, color="black", lw=1, ls="--", label=f"budget {budget:g} %")
    names = [
        f"{row['engine']}\n{row['precision']}\nn = {test[0]['images']:,}" if (test := row["flips"]) else ""
        for row in rows
    ]
    axes.set_xticks(range(len(rows)), names)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.set_ylabel("changed decisions, % (up to the 95 % bound)")
    axes.set_title("Decisions against the float32 reference", fontsize=11)
    axes.legend(fontsize=9)
    axes.grid(axis="y", alpha=0.3)
