"""Pictures of what benchmarks/training.py and benchmarks/recipes.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HOLDS, _FAILS, _OPEN = "#009e73", "#d55e00", "#999999"


def plot_training(result: Mapping[str, Any], target: Path) -> None:
    """Draw images/s, the speed-up over the literal path with its interval, and where an update's time goes.

    Args:
        result: the JSON of benchmarks/training.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    with drawn(target, (14.5, 4.6)) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 0.8, 1.4))
        _draw_rates(left, result["results"]["arms"], result["config"]["batch_size"])
        _draw_speed_ups(middle, result["results"])
        _draw_stages(right, result["results"]["stages_ms"])
        config, environment = result["config"], result["environment"]
        text = (
            f"official recipe, ResNet-18 width {config['width']}, batch {config['batch_size']}, {config['precision']}, "
            f"{environment['device']['name']}, {config['threads']} CPU thread(s), "
            f"torch {environment['packages']['torch']}"
        )
        names = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(names)}" if names else text, fontsize=10)


def _draw_rates(axes: Axes, arms: list[Mapping[str, Any]], batch_size: int) -> None:
    """Draw every block's images/s as a dot beside the bar of the median."""
    scatter = np.random.default_rng(0)
    for place, arm in enumerate(arms):
        rates = batch_size / np.asarray(arm["block_ms"]) * 1e3
        axes.bar(place, arm["images_per_s"], width=0.6, color=COLOURS[place], alpha=0.85)
        spread = place + scatter.uniform(-0.2, 0.2, rates.size)
        axes.scatter(spread, rates, s=12, color="white", edgecolor="black", lw=0.6, zorder=3)
        label = f"{arm['images_per_s']:.4g} images/s\n{arm['derived_epoch_s']:.4g} s an epoch"
        axes.annotate(label, (place, rates.max()), (0, 6), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(arms)), [f"{arm['name']}\nn = {arm['n']}" for arm in arms])
    axes.margins(y=0.2)
    axes.set_ylabel("images/s of a whole update")
    axes.set_title("Training speed (epoch derived: 49,000 images)", fontsize=11)
    axes.grid(axis="y", alpha=0.3)


def _draw_speed_ups(axes: Axes, results: Mapping[str, Any]) -> None:
    """Draw every block's ratio as a dot, and their median with its 95 % interval on top."""
    blocks = {arm["name"]: np.asarray(arm["block_ms"]) for arm in results["arms"]}
    scatter = np.random.default_rng(0)
    for place, row in enumerate(results["speed_up"]):
        ratios = blocks["literal"] / blocks[row["arm"]]
        spread = place + scatter.uniform(-0.15, 0.15, ratios.size)
        axes.scatter(spread, ratios, s=14, color=COLOURS[place + 1], alpha=0.5, lw=0)
        low, high = row["interval"] or (row["ratio"], row["ratio"])
        error = [[row["ratio"] - low], [high - row["ratio"]]]
        axes.errorbar(place, row["ratio"], error, fmt="o", color="black", capsize=6, zorder=3)
        text = f"{row['ratio']:.2f}\n[{low:.2f}, {high:.2f}]"
        axes.annotate(text, (place + 0.2, row["ratio"]), va="center", fontsize=9)
    axes.axhline(1, color=COLOURS[0], lw=1)
    axes.set_xticks(range(len(results["speed_up"])), [row["arm"] for row in results["speed_up"]])
    axes.set_xlim(-0.5, len(results["speed_up"]) - 0.2)
    axes.set_ylim(bottom=0.9)
    axes.margins(y=0.15)
    axes.set_ylabel("times the literal path's images/s")
    axes.set_title("Speed-up, 95 % interval", fontsize=11)
    axes.grid(axis="y", alpha=0.3)


def _draw_stages(axes: Axes, stages: Mapping[str, Any]) -> None:
    """Draw a bar for each stage of the fast path's update, with its share and the range over the updates."""
    names, medians = list(stages["median"]), list(stages["median"].values())
    total = sum(medians)
    for place, (name, value) in enumerate(zip(names, medians, strict=True)):
        low, high = stages["range"][name]
        axes.barh(place, value, color=COLOURS[1], alpha=0.85, height=0.6)
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, place, xerr=error, fmt="none", color="black", capsize=4)
        text = f"{value:,.{1 if value < 100 else 0}f} ms, {value / total:.0%}"
        axes.annotate(text, (max(value, high), place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlabel(f"median ms, range of {stages['n']} updates (a run of its own)")
    axes.set_title("Where the time of a fast update goes", fontsize=11)
    axes.grid(axis="x", alpha=0.3)


def plot_recipes(result: Mapping[str, Any], target: Path) -> None:
    """Draw each recipe's clean and PGD accuracy, and every claim with what it is compared with.

    Args:
        result: the JSON of benchmarks/recipes.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    claims = result["claims"]
    with drawn(target, (15, 2.2 + 0.38 * max(len(claims), 10))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.0))
        _draw_accuracies(left, result["recipes"], result["config"]["measurement"]["pgd_steps"])
        _draw_claims(right, claims)
        config, environment = result["config"], result["environment"]
        text = (
            f"CIFAR-10, ResNet-18 width {config['width']}, {config['training_images']:,} training images, "
            f"{config['test_images']:,} test images, budget {config['budget']}, {environment['cpu']}, "
            f"torch {environment['packages']['torch']}\nwhiskers: two standard errors of the test images; "
            "one training a recipe"
        )
        figure.suptitle(text, fontsize=10)


def _draw_accuracies(axes: Axes, recipes: Mapping[str, Any], pgd_steps: int) -> None:
    """Draw clean and PGD accuracy as neighbouring bars."""
    for place, row in enumerate(recipes.values()):
        for offset, key in ((-0.2, "clean_accuracy"), (0.2, "pgd_accuracy")):
            value, n = row["measured"][key], row["measured"]["n"]
            label = "clean" if key == "clean_accuracy" else f"PGD-{pgd_steps}, 8/255"
            colour = COLOURS[1] if key == "clean_accuracy" else COLOURS[2]
            error = 2 * np.sqrt(value * (1 - value) / n)
            axes.barh(place + offset, value, 0.38, color=colour, label=None if place else label, xerr=error)
            axes.annotate(
                f"{value:.1%}",
                (value + error, place + offset),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.axvline(0.1, color=COLOURS[0], lw=1, ls=":", label="chance")
    axes.set_yticks(range(len(recipes)), list(recipes))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("accuracy of the mean path")
    axes.set_title("Accuracy", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3)


def _draw_claims(axes: Axes, claims: list[Mapping[str, Any]]) -> None:
    """Draw a line for each claim: the value with its whisker, and what it must exceed as a vertical stroke."""
    for place, claim in enumerate(claims):
        colour = {True: _HOLDS, False: _FAILS, None: _OPEN}[claim["holds"]]
        error = 2 * (claim["standard_error"] or 0.0)
        axes.errorbar(claim["value"], place, xerr=error, fmt="o", color=colour, capsize=3, ms=5)
        if claim["reference"] is not None:
            axes.plot(claim["reference"], place, "|", color="black", ms=8, mew=1.5)
        word = {True: "", False: "FAILS: ", None: "open: "}[claim["holds"]]
        axes.annotate(
            f"{word}{claim['recipe']}: {claim['claim']}",
            (0, place),
            (4, 8),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7.5,
        )
    axes.set_yticks([])
    axes.set_ylim(len(claims) - 0.4, -0.9)
    axes.set_xlabel("value (dot), what it must exceed by two standard errors (stroke)")
    axes.set_title("Claims", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
