"""Picture of what benchmarks/sampling.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flss_edge.picture import COLOURS, drawn


def plot_sampling(result: Mapping[str, Any], target: Path) -> None:
    """Draw the error of the winner's vote share against N, and the p-values of the comparison of distributions.

    Args:
        result: the JSON of benchmarks/sampling.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    config, rows = result["config"], result["results"]["point_sets"]
    with drawn(target, (12.5, 4.8)) as figure:
        left, right = figure.subplots(1, 2)
        for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            mine = [row for row in rows if row["name"] == name]
            count = np.array([row["num_samples"] for row in mine])
            error = np.array([row["rms_error"] for row in mine])
            low, high = np.array([row["interval"] for row in mine]).T
            colour = COLOURS[place % len(COLOURS)]
            width = 2.5 if place == 0 else 1.2
            left.errorbar(count, error, (error - low, high - error), color=colour, lw=width, capsize=2, label=name)
        chance = [row["random_rms"] for row in mine]
        left.plot(count, chance, color="black", ls=":", label="random votes, expected")
        left.set(xscale="log", yscale="log", xlabel="votes N", ylabel="error of the winner's vote share (rms)")
        left.set_title(f"{config['images']} images, truth of {config['draws']:,} draws, 95 % over images", fontsize=11)
        left.grid(which="both", alpha=0.3)
        left.legend(fontsize=8)
        levels = np.sort(result["results"]["alike"]["p_values"])
        right.plot((np.arange(len(levels)) + 0.5) / len(levels), levels, color=COLOURS[0], lw=2)
        right.plot([0, 1], [0, 1], color="black", ls=":", label="the same distribution, expected")
        right.set(xlabel="quantile of the images", ylabel="p-value")
        title = f"Latent against logit sampling: {config['votes_compared']:,} votes each, chi-square an image"
        right.set_title(title, fontsize=11)
        right.grid(alpha=0.3)
        right.legend(fontsize=8)
        figure.suptitle(
            f"{result['artifact']['checkpoint']}, K = {config['classes']}, D = {config['latent_dim']}", fontsize=10
        )
