"""The picture of what benchmarks/attacks.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFFSETS = {"ours": -0.2, "peer": 0.2}


def plot_attacks(result: Mapping[str, Any], target: Path) -> None:
    """Draw the images/s of both implementations of each attack, and how many times the peer's speed ours has.

    Args:
        result: the JSON of benchmarks/attacks.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    rows, config, environment = result["results"]["attacks"], result["config"], result["environment"]
    with drawn(target, (14, 2.4 + 0.75 * max(len(rows), 3))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_rates(left, rows, config["images"])
        _draw_speed_ups(right, rows)
        left.set_yticks(range(len(rows)), [_label(row, config["images"]) for row in rows], fontsize=8)
        left.invert_yaxis()
        text = (
            f"{config['checkpoint']} (width {config['network']['width']}), {config['images']} images "
            f"that are right without attack, epsilon {config['epsilon'] * 255:g}/255, "
            f"{environment['device']['name']}, {config['threads']} CPU thread(s), "
            f"torch {environment['packages']['torch']}"
        )
        names = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(names)}" if names else text, fontsize=10)


def _label(row: Mapping[str, Any], images: int) -> str:
    settings = ", ".join(f"{key} {value:.3g}" for key, value in row["settings"].items())
    ours, peer = row["arms"]["ours"]["wrong"], row["arms"]["peer"]["wrong"]
    return f"{row['attack']}\n{settings}\nbeside {row['peer']}\nwrong: {ours} / {peer} of {images}"


def _draw_rates(axes: Axes, rows: list[Mapping[str, Any]], images: int) -> None:
    """Draw every block's images/s as a dot and their median as a line; a log scale, for the attacks differ much."""
    scatter = np.random.default_rng(0)
    for place, row in enumerate(rows):
        for colour, (arm, offset) in zip(COLOURS[1:], _OFFSETS.items(), strict=False):
            values = row["arms"][arm]
            rates = images / np.asarray(values["block_s"])
            middle = values["images_per_s"]
            label = None if place else f"{arm}, {values['n']} runs of each attack"
            axes.plot([middle, middle], [place + offset - 0.17, place + offset + 0.17], color=colour, lw=3, label=label)
            spread = place + offset + scatter.uniform(-0.12, 0.12, rates.size)
            axes.scatter(rates, spread, s=14, color=colour, alpha=0.6, lw=0, zorder=3)
            text = f"{middle:.3g} images/s, {values['passes_per_s']:,.0f} passes/s"
            axes.annotate(
                text, (rates.max(), place + offset), (8, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.6)  # room for the text
    axes.set_xlabel("images finished per second (log scale): every block, and the median")
    axes.set_title("Speed", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _draw_speed_ups(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    """Draw the ratio of images/s and of passes/s, each with its 95 % interval."""
    for place, row in enumerate(rows):
        for offset, key, marker in ((-0.12, "images_per_s", "o"), (0.12, "passes_per_s", "D")):
            ratio, (low, high) = row["speed_up"][key], row["speed_up"][f"{key}_interval"]
            label = None if place else key.replace("_per_s", "/s")
            error = [[ratio - low], [high - ratio]]
            axes.errorbar(
                ratio, place + offset, xerr=error, fmt=marker, color=COLOURS[1], mfc="white", capsize=4, label=label
            )
            axes.annotate(f"{ratio:.2f}", (high, place + offset), (6, 0), textcoords="offset points", va="center")
    axes.axvline(1, color=COLOURS[0], lw=1)
    axes.margins(x=0.2)
    axes.set_xlabel("times the peer's")
    axes.set_title("Ours beside the peer, 95 % interval over blocks", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2)
