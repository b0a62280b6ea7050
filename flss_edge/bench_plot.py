"""Picture of a benchmark: how long frames take, what samples cost, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flss_edge.picture import COLOURS, drawn
from flss_runtime.latency import QUANTILE_GRID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STAGE_COLOURS = {
    "resize": "#cc79a7",
    "preprocess": "#56b4e9",
    "network": "#4d4d4d",
    "encoder": "#0072b2",
    "fused": "#0072b2",
    "logit": "#0072b2",
    "gate": "#8c564b",
    "noise": "#e69f00",
    "head": "#d55e00",
    "between": "#cccccc",
    "decide": "#009e73",
}
_NETWORKS = ("network", "encoder", "fused", "logit")


def plot_benchmark(result: Mapping[str, Any], target: Path, *, overwrite: bool = True) -> None:
    """Draw latencies, the overhead of every arm and against N, throughput and overhead against batch, and stages.

    Args:
        result: what `BenchResult.to_json` returned, or the same read from a file.
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    results = result["results"]
    colours = {arm["name"]: COLOURS[place % len(COLOURS)] for place, arm in enumerate(results["arms"])}
    with drawn(target, (16, 9.5), overwrite=overwrite) as figure:
        axes = figure.subplots(2, 3)
        _draw_distribution(axes[0, 0], results["arms"], colours)
        _draw_overhead(axes[0, 1], results, colours)
        _draw_against_samples(axes[0, 2], results)
        _draw_throughput(axes[1, 0], results.get("throughput") or (), colours)
        _draw_against_batch(axes[1, 1], results.get("throughput") or ())
        _draw_stages(axes[1, 2], results["stages_ms"] or {})
        figure.suptitle(_title(result), fontsize=10)


def _title(result: Mapping[str, Any]) -> str:
    environment, config = result["environment"], result["config"]
    engine = environment["engines"].get(config["engine"].partition(":")[0]) or config["engine"]
    threads = config["threads"] or "default"
    text = (
        f"{environment['cpu']}, {engine} ({config['engine']}), threads: {threads}, profile {config['profile']['name']}"
    )
    text += f"\n{config['boundary']}" if "boundary" in config else ""
    flags = result["validity"]["flags"]
    return text if not flags else f"{text}\nnot valid: {', '.join(dict.fromkeys(item['name'] for item in flags))}"


def _draw_distribution(axes: Axes, arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Draw the share of frames slower than x on a log scale: the tail is what a robot's deadline meets."""
    for place, arm in enumerate(arms):
        slower = 1 - np.asarray(QUANTILE_GRID) / 100
        # A share below one frame in n is not measured: the curve ends there.
        shown = slower >= 1 / max(arm["n"], 1)
        axes.plot(
            np.asarray(arm["quantiles_ms"])[shown],
            slower[shown],
            color=colours[arm["name"]],
            ls="-" if place < len(COLOURS) else "--",
            label=f"{arm['name']}, n = {arm['n']}",
        )
    axes.set_yscale("log")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of frames slower")
    axes.set_title("Latency distribution, each arm by itself")
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_overhead(axes: Axes, results: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """Draw every block's overhead as a dot, and their median with its 95 % interval on top."""
    medians = {arm["name"]: np.ravel(arm["block_medians_ms"]) for arm in results["arms"]}
    scatter = np.random.default_rng(0)
    rows = results["overhead"]
    for place, row in enumerate(rows):
        percent = (medians[row["arm"]] / medians[row["baseline"]] - 1) * 100
        spread = place + scatter.uniform(-0.18, 0.18, percent.size)
        axes.scatter(percent, spread, s=10, color=colours[row["arm"]], alpha=0.35, lw=0)
        axes.errorbar(row["percent"], place, xerr=_error(row), fmt="o", color="black", capsize=5, zorder=3)
        axes.annotate(
            f"{row['percent']:+.2f} %", (row["percent"], place), (0, 7), textcoords="offset points", ha="center"
        )
    axes.axvline(0, color=COLOURS[0], lw=1)
    shown = [end * 100 - 100 for row in rows for end in (row["interval"] or (row["ratio"],))] + [0.0]
    room = max(0.35 * (max(shown) - min(shown)), 0.5)
    axes.set_xlim(min(shown) - room, max(shown) + room)  # single blocks may lie far outside
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlabel("overhead over the deterministic network, %")
    axes.set_title(f"Overhead, 95 % interval, {rows[0]['blocks'] if rows else 0} blocks")
    axes.grid(axis="x", alpha=0.3)


def _draw_against_samples(axes: Axes, results: Mapping[str, Any]) -> None:
    """Draw the overhead against N of the arms that draw as by default."""
    counts = {arm["name"]: arm.get("num_samples") for arm in results["arms"]}
    rows = [row for row in results["overhead"] if counts[row["arm"]] and row["arm"] == f"n{counts[row['arm']]}"]
    rows.sort(key=lambda row: counts[row["arm"]])
    if not rows:
        return _nothing(axes, "Overhead against N", "not measured")
    places = [counts[row["arm"]] for row in rows]
    errors = np.concatenate([_error(row) for row in rows], axis=1)
    axes.errorbar(places, [row["percent"] for row in rows], errors, fmt="o-", color=COLOURS[1], capsize=4)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.axhline(0, color=COLOURS[0], lw=1)
    axes.set_xlabel("samples a frame, N")
    axes.set_ylabel("overhead, %")
    axes.set_title("Overhead against N, batch 1")
    axes.grid(alpha=0.3)


def _draw_throughput(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    measured = [row for row in rows if row["error"] is None]
    if not measured:
        return _nothing(axes, "Throughput", "not measured")
    sizes = [row["batch"] for row in measured]
    for name in measured[0]["images_per_s"]:
        rates = [row["images_per_s"][name] for row in measured]
        axes.plot(sizes, rates, "o-", color=colours[name], label=name)
    _batch_axis(axes, sizes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("images a second")
    axes.set_title("Throughput")
    axes.legend(frameon=False, fontsize=8)


def _draw_against_batch(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    measured = [row for row in rows if row["error"] is None]
    if not measured:
        return _nothing(axes, "Overhead against batch", "not measured")
    sizes = [row["batch"] for row in measured]
    costs = [row["overhead"] for row in measured]
    errors = np.concatenate([_error(cost) for cost in costs], axis=1)
    axes.errorbar(sizes, [cost["percent"] for cost in costs], errors, fmt="o-", color=COLOURS[2], capsize=4)
    axes.axhline(0, color=COLOURS[0], lw=1)
    _batch_axis(axes, sizes)
    axes.set_ylabel("overhead, %")
    axes.set_title(f"Overhead of {costs[0]['arm']} against batch")


def _draw_stages(axes: Axes, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Draw what is not the network as stacked bars: beside the network it could not be seen."""
    if not stages:
        return _nothing(axes, "Where a frame's time goes", "not measured")
    for place, (arm, row) in enumerate(stages.items()):
        start = 0.0
        for stage, value in row.items():
            if stage == "total" or stage in _NETWORKS:
                continue
            colour = _STAGE_COLOURS.get(stage, "#999999")
            axes.barh(place, value * 1e3, left=start, color=colour, label=stage, height=0.5)
            start += value * 1e3
        network = next((f", {stage} {row[stage]:.3f}" for stage in _NETWORKS if stage in row), "")
        text = f"{arm}: {row['total']:.3f} ms{network}"
        axes.annotate(text, (0, place - 0.28), (2, 1), textcoords="offset points", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(len(stages) - 0.4, -0.9)
    axes.set_xlabel("median µs of what is not the network (instrumented run)")
    axes.set_title("Where a frame's time goes")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(
        handles.values(),
        handles.keys(),
        frameon=False,
        fontsize=8,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),  # where no bar ends
    )


def _error(row: Mapping[str, Any]) -> Any:
    """Return the two arms of the error bar in percent, (2, 1)."""
    low, high = row["interval"] or (row["ratio"], row["ratio"])
    return np.array([[row["ratio"] - low], [high - row["ratio"]]]).clip(0) * 100


def _batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch")
    axes.grid(alpha=0.3)


def _nothing(axes: Axes, title: str, why: str) -> None:
    axes.set_title(title)
    axes.axis("off")
    axes.annotate(why, (0.5, 0.5), xycoords="axes fraction", ha="center")
