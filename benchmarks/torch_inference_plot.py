"""Picture of what benchmarks/torch_inference.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flss_edge.picture import COLOURS, drawn

_LINES = {"eager": ("o", ":"), "graph": ("s", "-")}  # marker and line of a way
_GOALS = (2.0, 1.0)  # percent


def plot_torch_inference(result: Mapping[str, Any], target: Path) -> None:
    """Draw the time of a frame and the overhead of the samples against the batch size, a column a precision.

    Args:
        result: the JSON of benchmarks/torch_inference.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    config, environment = result["config"], result["environment"]
    precisions = config["precisions"]
    with drawn(target, (1 + 4.6 * len(precisions), 8.4)) as figure:
        grid = figure.subplots(2, len(precisions), squeeze=False, sharex=True, sharey="row")
        for column, precision in enumerate(precisions):
            rows = [row for row in result["results"]["cells"] if row["precision"] == precision]
            _times(grid[0][column], rows)
            _overheads(grid[1][column], rows)
            grid[0][column].set_title(precision)
            grid[1][column].set_xlabel("images a frame")
            grid[1][column].set_xticks(config["batches"], config["batches"])
            grid[1][column].minorticks_off()
        grid[0][0].set_ylabel("a frame, ms (thin: floor by bytes)")
        grid[1][0].set_ylabel("over the deterministic network, % (95 %)")
        for place in (0, 1):
            if grid[place][0].get_legend_handles_labels()[0]:
                grid[place][0].legend(fontsize=8)
        network = config["network"]
        text = (
            f"{result['artifact']['checkpoint']}, width {network['width']}, {network['image_size']} px, "
            f"{environment['device']['name']}, torch {environment['packages']['torch']}"
        )
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)


def _times(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    arms: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for row in rows:
        for arm in row["arms"]:
            arms.setdefault(arm["name"], []).append((row["batch"], arm))
    colours = _colours([arm["num_samples"] for points in arms.values() for _, arm in points])
    for name, points in arms.items():
        marker, line = _LINES[points[0][1]["way"]]
        batches, colour = [batch for batch, _ in points], colours[points[0][1]["num_samples"]]
        middle = [arm["latency_ms"]["p50"] for _, arm in points]
        axes.plot(batches, middle, marker=marker, ls=line, color=colour, label=name)
        axes.plot(batches, [arm["floor_ms"] for _, arm in points], color=colour, lw=0.6)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)


def _overheads(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    ways = {arm["name"]: (arm["way"], arm["num_samples"]) for row in rows for arm in row["arms"]}
    colours = _colours([samples for _, samples in ways.values()])
    for name, (way, samples) in ways.items():
        points = [(row["batch"], cost) for row in rows for cost in row["overhead"] if cost["arm"] == name]
        if not points:  # the baseline
            continue
        marker, line = _LINES[way]
        batches, middle = [batch for batch, _ in points], [cost["percent"] for _, cost in points]
        ends = [[(end - 1) * 100 for end in cost["interval"] or [cost["ratio"]] * 2] for _, cost in points]
        error = [
            [max(0.0, value - low) for value, (low, _) in zip(middle, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(middle, ends, strict=True)],
        ]
        axes.errorbar(batches, middle, error, marker=marker, ls=line, color=colours[samples], capsize=3, label=name)
        best = [(batch, cost["fused_at_best"]["percent"]) for batch, cost in points if "fused_at_best" in cost]
        if best:
            axes.plot(*zip(*best, strict=True), color=colours[samples], lw=0.6, label=f"{name}, one kernel at best")
    for goal in _GOALS:
        axes.axhline(goal, color="black", ls="--", lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.grid(alpha=0.3)


def _colours(counts: Sequence[int | None]) -> dict[int | None, str]:
    """Return a colour for each N, grey for the baseline."""
    ordered = sorted({count for count in counts if count is not None})
    return {None: COLOURS[0], **{count: COLOURS[1 + place % 6] for place, count in enumerate(ordered)}}
