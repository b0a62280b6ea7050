"""Curves of a training run: losses and their terms, accuracy of the epochs, learning rate and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flss_edge.picture import COLOURS, drawn
from flss_edge.training_log import in_words, latest, loss_terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]
Numbers = npt.NDArray[np.float64]

_SMOOTHED_FROM = 120  # records; fewer are drawn as they are
_WINDOWS = 60  # a smoothed point is the mean of this fraction of all records


def plot_training(records: Records, target: Path, *, title: str = "", overwrite: bool = True) -> None:
    """Draw a run's curves.

    Args:
        records: of its log, at least one (flss_edge.training_log.read_log).
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        title: what to call the run.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    steps = [record for record in records if record["event"] == "step"]
    epochs = [record for record in records if record["event"] == "epoch"]
    losses = loss_terms({name: None for record in steps for name in record})
    parts = {loss: terms for loss, terms in losses.items() if terms}
    with drawn(target, (14, 8.5), overwrite=overwrite) as figure:
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1))
        first, *others = np.ravel(upper.subplots(1, 1 + len(parts)))
        _draw_lines(first, steps, {loss: in_words(loss) for loss in losses}, "Loss")
        for axes, (loss, terms) in zip(others, parts.items(), strict=True):
            # Weighted, as they are added up; on a log scale, because they differ by orders of magnitude.
            heading = f"Terms of the {in_words(loss)}, weighted"
            _draw_lines(axes, steps, {term: in_words(term, loss) for term in terms}, heading)
            axes.set_yscale("log", nonpositive="mask")
        left, middle, right = lower.subplots(1, 3, width_ratios=(2, 1, 1))
        _draw_accuracy(left, epochs)
        for axes, name, heading in ((middle, "lr", "Learning rate"), (right, "images_per_s", "Images/s")):
            _draw_lines(axes, steps, {name: ""}, heading)
            axes.set_ylim(bottom=0)
        figure.suptitle(_title(title, records), fontsize=12)


def _title(title: str, records: Records) -> str:
    step = latest(records, "step")
    done = f"step {step['step']:,} of {step['total_steps']:,}" if step else f"step {records[-1]['step']:,}"
    return f"{title}: {done}" if title else done


def _draw_lines(axes: Axes, steps: Records, labels: Mapping[str, str], heading: str) -> None:
    """Draw values of the step records: name in the record -> label."""
    for (name, label), colour in zip(labels.items(), cycle(COLOURS[1:]), strict=False):
        x, y = _series(steps, name)
        if len(y) >= _SMOOTHED_FROM and name != "lr":
            axes.plot(x, y, color=colour, lw=0.6, alpha=0.3)
            x, y = _smoothed(x, y)
        axes.plot(x, y, color=colour, lw=1.7, label=label, marker="o" if len(y) == 1 else None)
    axes.set_title(heading)
    axes.set_xlabel("step")
    axes.grid(which="major", alpha=0.3)
    if any(labels.values()):
        columns = 2 if len(labels) in (2, 4) else 3
        axes.legend(frameon=False, fontsize=9, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _draw_accuracy(axes: Axes, epochs: Records) -> None:
    """Draw clean and PGD accuracy on the selection images, and mark the epoch that was selected."""
    axes.set_title("Accuracy on the selection images")
    axes.set_xlabel("epoch")
    axes.set_ylabel("%")
    axes.grid(alpha=0.3)
    if not epochs:
        axes.text(0.5, 0.5, "no epoch finished yet", ha="center", va="center", transform=axes.transAxes)
        return
    shown = {"clean": ("selection_accuracy", COLOURS[1]), "PGD": ("selection_pgd_accuracy", COLOURS[2])}
    few = "o" if len(epochs) <= 40 else None
    best = epochs[-1]["best_epoch"]
    for label, (name, colour) in shown.items():
        x, y = _series(epochs, name, "epoch")
        axes.plot(x, 100 * y, color=colour, marker=few, ms=4, label=label)
        chosen = 100 * y[x == best]
        axes.scatter(x[x == best], chosen, s=90, facecolors="none", edgecolors=colour, linewidths=1.6, zorder=3)
        for value in chosen:
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the dotted line
            text = axes.annotate(f"{value:.1f}", (best, value), (0, 9), textcoords="offset points", ha="center")
            text.set(color=colour, bbox=paper)
    axes.axvline(best, color=COLOURS[0], lw=1, ls=":", label=f"selected: epoch {best}")
    axes.locator_params(axis="x", integer=True)
    highest = max(100 * max(epoch["selection_accuracy"], epoch["selection_pgd_accuracy"]) for epoch in epochs)
    axes.set_ylim(0, min(112, 1.2 * max(highest, 5)))
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _series(records: Records, name: str, place: str = "step") -> tuple[Numbers, Numbers]:
    having = [record for record in records if name in record]
    return np.array([record[place] for record in having]), np.array([record[name] for record in having], float)


def _smoothed(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """Return means of neighbouring records, at their middle, so that a long run's noise does not hide its course."""
    window = max(3, len(y) // _WINDOWS)
    weights = np.full(window, 1 / window)
    return np.convolve(x, weights, mode="valid"), np.convolve(y, weights, mode="valid")
