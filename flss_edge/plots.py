"""Pictures of what flss-edge wrote: `python -m flss_edge.plots FILE -o PICTURE` (extra `plot`).

FILE is the JSON of `flss-edge bench`, or the log.jsonl of a training run (flss_edge/training_plot.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flss_edge.picture import COLOURS, drawn
from flss_edge.training_log import read_log
from flss_edge.training_plot import plot_training
from flss_runtime.errors import DataError, FLSSError
from flss_runtime.latency import QUANTILE_GRID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STAGE_COLOURS = {
    "preprocess": "#56b4e9",
    "network": "#4d4d4d",
    "encoder": "#0072b2",
    "noise": "#e69f00",
    "head": "#d55e00",
    "decide": "#009e73",
    "between": "#cccccc",
}


def plot_benchmark(result: Mapping[str, Any], target: Path, *, overwrite: bool = True) -> None:
    """Draw the latency distribution, the overhead with its interval and the stages of a frame.

    Args:
        result: what `BenchResult.to_json` returned, or the same read from a file.
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    with drawn(target, (14.5, 5), overwrite=overwrite) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 0.9, 1.3))
        _draw_distribution(left, result["results"]["arms"])
        _draw_overhead(middle, result["results"])
        _draw_stages(right, result["results"]["stages_ms"] or {})
        figure.suptitle(_title(result), fontsize=10)


def _title(result: Mapping[str, Any]) -> str:
    environment, config = result["environment"], result["config"]
    engine = environment["engines"].get(config["engine"]) or config["engine"]
    threads = config["threads"] or "default"
    text = f"{environment['cpu']}, {engine}, threads: {threads}, batch 1, profile {config['profile']['name']}"
    flags = result["validity"]["flags"]
    return text if not flags else f"{text}\nnot valid: {', '.join(dict.fromkeys(item['name'] for item in flags))}"


def _draw_distribution(axes: Axes, arms: list[Mapping[str, Any]]) -> None:
    """Draw the share of frames slower than x on a log scale: the tail is what a robot's deadline meets."""
    for arm, colour in zip(arms, COLOURS, strict=False):
        slower = 1 - np.asarray(QUANTILE_GRID) / 100
        # A share below one frame in n is not measured: the curve ends there.
        shown = slower >= 1 / max(arm["n"], 1)
        axes.plot(
            np.asarray(arm["quantiles_ms"])[shown], slower[shown], color=colour, label=f"{arm['name']}, n = {arm['n']}"
        )
    axes.set_yscale("log")
    axes.set_xlabel("latency, ms (host image to decision)")
    axes.set_ylabel("share of frames slower")
    axes.set_title("Latency distribution")
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def _draw_overhead(axes: Axes, results: Mapping[str, Any]) -> None:
    """Draw every block's overhead as a dot, and their median with its 95 % interval on top."""
    medians = {arm["name"]: np.ravel(arm["block_medians_ms"]) for arm in results["arms"]}
    scatter = np.random.default_rng(0)
    for place, row in enumerate(results["overhead"]):
        colour = COLOURS[(place + 1) % len(COLOURS)]
        percent = (medians[row["arm"]] / medians[row["baseline"]] - 1) * 100
        axes.scatter(place + scatter.uniform(-0.18, 0.18, percent.size), percent, s=10, color=colour, alpha=0.35, lw=0)
        low, high = row["interval"] or (row["ratio"], row["ratio"])
        error = [[(row["ratio"] - low) * 100], [(high - row["ratio"]) * 100]]
        axes.errorbar(place, row["percent"], error, fmt="o", color="black", capsize=6, zorder=3)
        axes.annotate(
            f"{row['percent']:+.2f} %", (place, row["percent"]), (12, 0), textcoords="offset points", va="center"
        )
    axes.axhline(0, color=COLOURS[0], lw=1)
    axes.set_xticks(range(len(results["overhead"])), [row["arm"] for row in results["overhead"]])
    axes.set_xlim(-0.5, len(results["overhead"]) - 0.3)
    axes.set_ylabel("overhead over the deterministic network, %")
    axes.set_title("Overhead, 95 % interval")
    axes.grid(axis="y", alpha=0.3)


def _draw_stages(axes: Axes, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Draw one stacked bar an arm, median milliseconds a stage."""
    for place, (arm, row) in enumerate(stages.items()):
        start = 0.0
        for stage, value in row.items():
            if stage == "total":
                continue
            colour = _STAGE_COLOURS.get(stage, "#999999")
            axes.barh(place, value, left=start, color=colour, label=stage, height=0.5)
            start += value
        listed = [f"{stage} {value:.3f}" for stage, value in row.items() if stage not in ("total", "between")]
        text = f"{arm}, {row['total']:.3f} ms\n" + ", ".join(listed)
        axes.annotate(text, (0, place + 0.27), (2, 2), textcoords="offset points", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(stages) - 0.3)
    axes.set_xlabel("median ms of a stage (instrumented run)")
    axes.set_title("Where a frame's time goes")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(
        handles.values(),
        handles.keys(),
        frameon=False,
        fontsize=8,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
    )


def main(arguments: list[str] | None = None) -> int:
    """Draw the picture of one result: the JSON of a benchmark, or the log.jsonl of a training run."""
    parser = argparse.ArgumentParser(prog="python -m flss_edge.plots", description=main.__doc__)
    parser.add_argument("result", type=Path, help="JSON written by flss-edge bench, or log.jsonl of flss-edge train")
    parser.add_argument("-o", "--output", type=Path, help="picture to write (default: beside the file, .png)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    options = parser.parse_args(arguments)
    target = options.output or options.result.with_suffix(".png")
    try:
        if options.result.suffix == ".jsonl":
            title = options.result.resolve().parent.name
            plot_training(read_log(options.result), target, title=title, overwrite=options.overwrite)
        else:
            plot_benchmark(_read(options.result), target, overwrite=options.overwrite)
    except FLSSError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(target)
    return 0


def _read(path: Path) -> Mapping[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({error})", "pass a file written by flss-edge bench -o"
        ) from error
    if not isinstance(result, dict) or "arms" not in result.get("results", {}):
        raise DataError(f"{path} is not the result of a benchmark", "pass a file written by flss-edge bench -o")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
