"""Picture of what benchmarks/drift.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flss_edge.picture import COLOURS, drawn

SECOND = 30  # frames


def plot_drift(result: Mapping[str, Any], target: Path) -> None:
    """Draw how much is rejected of each kind of images, and after how many frames the monitor noticed.

    Args:
        result: the JSON of benchmarks/drift.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    config, found = result["config"], result["results"]
    kinds = list(found["rejected"])
    with drawn(target, (12.5, 5.5)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
        _rejected(left, found, kinds)
        series = list(dict.fromkeys((row["reference_images"], row["scene_frames"]) for row in found["rows"]))
        for number, (images, scene) in enumerate(series):
            rows = [row for row in found["rows"] if (row["reference_images"], row["scene_frames"]) == (images, scene)]
            frames = "independent frames" if scene == 1 else f"scenes of {scene} frames"
            offset = (number + 1) / (len(series) + 1) - 0.5
            label = f"{frames}, calibrated on {images} images"
            _delays(right, rows, kinds, offset, COLOURS[1 + number], label)
        right.set(xscale="log", xlabel="frames from the change to the alarm", title="median and 5 to 95 % of streams")
        seconds = right.secondary_xaxis("top", functions=(lambda x: x / SECOND, lambda x: x * SECOND))
        seconds.set_xlabel(f"seconds at {SECOND} frames a second", fontsize=8)
        right.grid(axis="x", alpha=0.3)
        right.legend(fontsize=7, loc="upper left")
        title = f"{config['streams']} streams a kind, at most {config['false_alarm_rate']:.0%} false alarms a day"
        figure.suptitle(f"Drift monitor, {result['artifact']['bundle']}: {title}", fontsize=10)


def _rejected(axes: Any, found: Mapping[str, Any], kinds: list[str]) -> None:
    axes.barh(range(len(kinds)), [100 * found["rejected"][kind] for kind in kinds], color=COLOURS[0], height=0.5)
    for number, reference in enumerate(found["references"]):
        low, high = (100 * bound for bound in reference["interval"])
        label = f"what {reference['images']} calibration images leave open"
        axes.axvspan(low, high, color=COLOURS[(6, 1)[number % 2]], alpha=0.35, lw=0, label=label)
    axes.set(xlabel="rejected, %", yticks=range(len(kinds)), yticklabels=kinds)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _delays(axes: Any, rows: Any, kinds: list[str], offset: float, colour: str, name: str) -> None:
    """Draw median and 5 to 95 % of each kind; an arrow where the streams ended before half of them were found."""
    axes.plot([], [], "o-", ms=4, color=colour, label=name)
    for row in rows:
        place = kinds.index(row["kind"]) + offset
        limit = row["frames_after"]
        high = limit if row["high"] is None else row["high"]
        if row["low"] is not None:
            axes.plot([row["low"], high], [place, place], color=colour, lw=2, alpha=0.6)
        known = row["median"] is not None
        marker, at = ("o", row["median"]) if known else (">", limit)
        axes.plot([at], [place], marker, ms=4, color=colour)
