"""Pictures of an evaluation, drawn from its result alone (what a result is: `flss_edge.robustness.report`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result: TypeAlias = Mapping[str, Any]
Style: TypeAlias = tuple[str, str]  # colour and marker

_MARKERS = "osD^vPX"
_RIGHT, _WRONG = COLOURS[1], COLOURS[2]
_A_ROW = 4  # classifiers beside each other before the next row begins
_LINES = {"clean": "-", "worst case over the attacks": "--"}


def draw_all(result: Result, folder: Path, suffix: str = ".png", *, overwrite: bool = True) -> list[Path]:
    """Write every picture that the result has the figures for.

    Args:
        result: of an evaluation.
        folder: where the pictures go; it is made if need be.
        suffix: .png, .svg or .pdf.
        overwrite: replace existing files.

    Returns:
        The files, named as `pictures_of`.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: a file exists or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures_of(result).items():
        written.append(folder / f"{name}{suffix}")
        with drawn(written[-1], (11, 8.6), overwrite=overwrite) as figure:
            picture(figure)
    return written


def pictures_of(result: Result) -> dict[str, Callable[[Figure], None]]:
    """Return the pictures that a result has the figures for, each to be drawn on an empty figure.

    Returns:
        Some of risk-coverage, scores, corruptions and sweep-NAME.
    """
    found = result["results"]
    classifiers, sweep = found.get("classifiers", []), found.get("sweep") or {}
    measured = {
        "risk-coverage": (risk_coverage_picture, any("risk_coverage" in each for each in classifiers)),
        "scores": (scores_picture, any("histogram" in each for each in classifiers)),
        "corruptions": (corruptions_picture, found.get("corruptions")),
        f"sweep-{sweep.get('name')}": (sweep_picture, sweep.get("rows")),
    }
    return {name: partial(picture, result=result) for name, (picture, there) in measured.items() if there}


def risk_coverage_picture(figure: Figure, result: Result) -> None:
    """Draw what every threshold gives: clean solid, worst case dashed, the threshold in use as a mark."""
    classifiers = [each for each in result["results"]["classifiers"] if "risk_coverage" in each]
    panels = {
        "risk": "Clean: wrong among the accepted",
        "attacked_risk": "Worst case: wrong among the accepted",
        "fw": "Worst case: accepted and wrong (FW), of all",
        "fc": "Worst case: accepted and correct (FC), of all",
    }
    styles = _styles(each["name"] for each in classifiers)
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (key, title) in zip(grid.flat, panels.items(), strict=True):
        _draw_curves(axes, classifiers, key, styles)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel("%")
        axes.grid(alpha=0.3)
        axes.set_xlim(0, 102)
    for axes in grid[1]:
        axes.set_xlabel("coverage: accepted clean images, %")
    figure.suptitle(f"Risk and coverage at every threshold ({_about(result)}); marks: the thresholds in use")
    _legend(figure, styles, _LINES)


def sweep_picture(figure: Figure, result: Result) -> None:
    """Draw the figures against the swept setting, with their 95 % intervals as bands."""
    sweep = result["results"]["sweep"]
    styles = _styles(row["classifier"] for row in sweep["rows"])
    factor = 255 if sweep["name"] == "epsilon" else 1
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (title, lines) in zip(grid.flat, _SWEPT.items(), strict=True):
        for name, (colour, marker) in styles.items():
            rows = [row for row in sweep["rows"] if row["classifier"] == name]
            for key, line in lines.items():
                points = [(factor * row["value"], *_bounds(row["metrics"], key)) for row in rows]
                _draw_band(axes, points, colour, marker, line)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel("%")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
    _swept_axis(grid[1], sweep["name"], sorted({factor * row["value"] for row in sweep["rows"]}))
    figure.suptitle(f"Sweep over {sweep['name']} ({_about(result)}; bands: 95 % intervals)")
    _legend(figure, styles, _LINES)


def scores_picture(figure: Figure, result: Result) -> None:
    """Draw how sure each classifier is, on clean images and in the worst case.

    In the worst case an image shows with its surest wrong answer, or with its least sure answer if none is wrong.
    """
    classifiers = [each for each in result["results"]["classifiers"] if "histogram" in each]
    columns = min(_A_ROW, len(classifiers))
    rows = -(-len(classifiers) // columns)
    figure.set_size_inches(max(6.0, 3.6 * columns), 4.8 * rows + 0.7)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for place, each in enumerate(classifiers):
        row, column = divmod(place, columns)
        for part, name in enumerate(("clean", "attacked")):
            axes = grid[2 * row + part, column]
            axes.set_visible(True)
            _draw_histogram(axes, each, name)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"How sure the classifiers are ({_about(result)})")


def corruptions_picture(figure: Figure, result: Result) -> None:
    """Draw accuracy and coverage against the severity of each corruption."""
    rows = result["results"]["corruptions"]
    kinds = list(dict.fromkeys(row["corruption"] for row in rows))
    styles = _styles(row["classifier"] for row in rows)
    panels = {"accuracy_accepted": "correct among\nthe accepted, %", "coverage": "accepted, %"}
    figure.set_size_inches(max(6.5, 2.1 * len(kinds) + 1.2), 5.6)
    grid = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        for axes, key in zip(grid[:, column], panels, strict=True):
            for name, (colour, marker) in styles.items():
                chosen = [row for row in rows if (row["classifier"], row["corruption"]) == (name, kind)]
                values = [_times_100(row[key]) for row in chosen]
                axes.plot([row["severity"] for row in chosen], values, color=colour, marker=marker, ms=4)
            axes.grid(alpha=0.3)
        grid[0, column].set_title(kind.replace("-", " "), fontsize=10)
        grid[1, column].set_xticks(sorted({row["severity"] for row in rows}))
        grid[1, column].set_xlabel("severity")
    for axes, label in zip(grid[:, 0], panels.values(), strict=True):
        axes.set_ylabel(label)
    figure.suptitle(f"Random corruption ({_about(result)})")
    _legend(figure, styles)


_SWEPT: Mapping[str, Mapping[str, str]] = {
    "Accuracy of the accepted": {"nat_10": "-", "adv_10": "--"},
    "Accepted: clean, and under every attack": {"coverage": "-", "never_rejected": "--"},
    "Accepted and wrong under some attack (FW), of all": {"fw": "--"},
    "Accepted and correct under every attack (FC), of all": {"fc": "--"},
}


def _draw_curves(axes: Axes, classifiers: Sequence[Mapping[str, Any]], key: str, styles: Mapping[str, Style]) -> None:
    """Draw one curve a classifier, and its threshold in use; a curve that is there already gets only the mark."""
    seen: list[Any] = []
    for each in classifiers:
        curve, (colour, marker) = each["risk_coverage"], styles[each["name"]]
        x = [_times_100(value) for value in curve["coverage"]]
        y = [_times_100(value) for value in curve[key]]
        if (x, y) not in seen:
            axes.plot(x, y, color=colour, ls="-" if key == "risk" else "--", lw=1.7)
            seen.append((x, y))
        # The last suite counts every attack, as the curve does.
        here = _in_use(list(each["groups"].values())[-1])
        axes.plot(here["coverage"], here[key], color=colour, marker=marker, ms=9, mec="black", mew=0.8, ls="none")


def _in_use(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the point of each curve that belongs to the threshold in use."""
    found = {key: _bounds(metrics, key)[0] for key in ("coverage", "fw", "fc", "nat_10", "adv_10")}
    return {**found, "risk": 100 - found["nat_10"], "attacked_risk": 100 - found["adv_10"]}


def _draw_band(axes: Axes, points: Sequence[tuple[float, ...]], colour: str, marker: str, line: str) -> None:
    """Draw a line through (x, value, low, high) and the band of its intervals."""
    x, value, low, high = zip(*sorted(points), strict=True)
    axes.plot(x, value, color=colour, marker=marker, ms=4, ls=line, lw=1.6)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)


def _bounds(metrics: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """Return a figure and its interval in percent, three times NaN where it has none."""
    if key == "never_rejected":  # the rest of MPR
        value, low, high = _bounds(metrics, "mpr")
        return 100 - value, 100 - high, 100 - low
    found = metrics[key]
    if found is None:
        return float("nan"), float("nan"), float("nan")
    return 100 * found["share"], 100 * found["interval"][0], 100 * found["interval"][1]


def _swept_axis(row: Iterable[Axes], name: str, values: Sequence[float]) -> None:
    """Scale and label the lower axes: every value has its tick."""
    label = {"epsilon": "radius in 1/255", "num-samples": "samples that vote", "noise-scale": "noise scale"}
    for axes in row:
        if name == "epsilon":
            axes.set_xscale("symlog", base=2, linthresh=1)
            # Left to itself, the axis gives much of its width to what lies below the smallest radius.
            axes.set_xlim(0.8 * values[0] or -0.3, 1.2 * max(1.0, values[-1]))
        elif name == "num-samples":
            axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:.4g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(label.get(name, name))


def _draw_histogram(axes: Axes, classifier: Mapping[str, Any], part: str) -> None:
    histogram, threshold = classifier["histogram"], classifier["threshold"]
    edges, counts = histogram["edges"], histogram[part]
    width = edges[1] - edges[0]
    base = [0] * len(counts["correct"])
    for key, colour in (("correct", _RIGHT), ("wrong", _WRONG)):
        axes.bar(edges[:-1], counts[key], width, bottom=base, align="edge", color=colour, label=key, ec="white", lw=0.3)
        base = [below + count for below, count in zip(base, counts[key], strict=True)]
    if edges[0] <= threshold <= edges[-1]:
        axes.axvline(threshold, color="black", lw=1.4, ls="--", label="threshold: accepted from here on")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * max(1, *base))
    axes.set_title(f"{classifier['name']}: {'clean' if part == 'clean' else 'worst case'}", fontsize=10)
    axes.set_xlabel("votes of the answer" if edges[-1] > 1 else "score of the answer", fontsize=9)
    axes.set_ylabel("images", fontsize=9)


def _styles(names: Iterable[str]) -> dict[str, Style]:
    """Give every name its own colour and marker."""
    order = dict.fromkeys(names)
    colours = (*COLOURS[1:], COLOURS[0])
    return {
        name: (colours[place % len(colours)], _MARKERS[(place + place // len(colours)) % len(_MARKERS)])
        for place, name in enumerate(order)
    }


def _legend(figure: Figure, styles: Mapping[str, Style], lines: Mapping[str, str] | None = None) -> None:
    """Name the classifiers, and what solid and dashed mean, below the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker=m, ls="-", lw=1.7, label=name) for name, (c, m) in styles.items()]
    handles += [Line2D([], [], color="black", ls=line, label=name) for name, line in (lines or {}).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)


def _about(result: Result) -> str:
    """Return which images and how many: "cifar10.npz:test, n = 300"."""
    counts = [group["n"] for each in result["results"].get("classifiers", []) for group in each["groups"].values()]
    counts += [row["n"] for row in result["results"].get("corruptions", [])]
    counts += [row["metrics"]["n"] for row in (result["results"].get("sweep") or {}).get("rows", [])]
    data = result.get("config", {}).get("data")
    return ", ".join([*([str(data)] if data else []), *([f"n = {counts[0]}"] if counts else [])])


def _times_100(value: float | None) -> float:
    return float("nan") if value is None else 100 * value
