"""Accepted and rejected examples as pictures: the image, what an attack made of it, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flss_edge.classifiers.answers import Answers, IntArray
from flss_edge.picture import COLOURS, drawn
from flss_edge.robustness.metrics import index_sets
from flss_runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = npt.NDArray[np.float32]

KINDS = ("accepted and correct", "rejected", "accepted and wrong")
_COLOUR = dict(zip(KINDS, (COLOURS[3], COLOURS[0], COLOURS[2]), strict=True))


@dataclass(frozen=True)
class Shown:
    """What a classifier said about one picture.

    Attributes:
        label: name of the class that it chose.
        score: in words: "87 votes" or "confidence 0.62".
        kind: one of KINDS.
    """

    label: str
    score: str
    kind: str


@dataclass(frozen=True, eq=False)
class Example:
    """One image before and after an attack.

    Attributes:
        clean: (H, W, 3) float in [0, 1].
        adversarial: likewise.
        label: name of its true class.
        before: the answer to the clean image.
        after: the answer to the attacked one.
    """

    clean: Pixels
    adversarial: Pixels
    label: str
    before: Shown
    after: Shown


def examples_of(
    images: Pixels,
    attacked: Pixels,
    labels: IntArray,
    answers: tuple[Answers, Answers],
    class_names: Sequence[str],
    *,
    each: int = 2,
) -> list[Example]:
    """Choose examples of every outcome under the attack, the first ones of each.

    Args:
        images: (n, H, W, 3) float in [0, 1].
        attacked: likewise.
        labels: (n,) int64, the true classes.
        answers: of one classifier, to the images and to the attacked ones.
        class_names: names of the classes.
        each: how many of each outcome, as far as there are so many. Images that were right and accepted come first.
    """
    clean, under = (index_sets(labels, one) for one in answers)
    chosen: list[Example] = []
    kinds = [_kinds(labels, one) for one in answers]
    for part in (under.correct, under.rejected, under.wrong):
        found = np.flatnonzero(part)
        found = found[np.argsort(~clean.correct[found], kind="stable")][:each]
        for i in found.tolist():
            shown = [
                Shown(class_names[int(one.labels[i])], _score(one, i), kinds[time][i])
                for time, one in enumerate(answers)
            ]
            chosen.append(Example(images[i], attacked[i], class_names[int(labels[i])], *shown))
    return chosen


def plot_gallery(
    examples: Sequence[Example], target: Path, *, title: str = "", factor: float = 10.0, overwrite: bool = True
) -> None:
    """Draw a column an example: clean, adversarial, and their difference made visible.

    Args:
        examples: at least one.
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        title: of the picture: which classifier under which attack.
        factor: what the difference is multiplied by; grey is no difference.
        overwrite: replace an existing file.

    Raises:
        UsageError: no example, unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    if not examples:
        raise UsageError("there is no example to draw", "evaluate at least one image under an attack")
    with drawn(target, (max(4.5, 1.75 * len(examples) + 0.6), 6.9), overwrite=overwrite) as figure:
        grid = figure.subplots(3, len(examples), squeeze=False)
        for column, example in enumerate(examples):
            difference = 0.5 + factor * (example.adversarial - example.clean)
            for axes, pixels in zip(grid[:, column], (example.clean, example.adversarial, difference), strict=True):
                axes.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
            grid[0, column].set_title(f"true: {example.label}", fontsize=10, fontweight="bold")
            _caption(grid[0, column], example.before)
            _caption(grid[1, column], example.after)
        for axes, name in zip(grid[:, 0], ("clean", "adversarial", f"difference x {factor:g}"), strict=True):
            axes.set_ylabel(name, fontsize=10)
        figure.suptitle(title or "Examples")


def _caption(axes: Axes, shown: Shown) -> None:
    """Write the answer below a picture, and frame it in the colour of its kind."""
    colour = _COLOUR[shown.kind]
    axes.set_xlabel(f"{shown.label}, {shown.score}\n{shown.kind}", fontsize=8, color=colour)
    for side in axes.spines.values():
        side.set(color=colour, linewidth=2.5)


def _kinds(labels: IntArray, answers: Answers) -> Mapping[int, str]:
    sets = index_sets(labels, answers)
    parts = zip(KINDS, (sets.correct, sets.rejected, sets.wrong), strict=True)
    return {int(i): kind for kind, part in parts for i in np.flatnonzero(part)}


def _score(answers: Answers, i: int) -> str:
    score = float(answers.scores[i])
    return f"{score:.0f} votes" if answers.scores.max() > 1 else f"score {score:.2f}"
