"""Picture of the synthetic drive: votes over time, under what they were cast, and when the robot drives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Frames = Sequence[Mapping[str, Any]]
_KINDS = (
    ("accepted and right", COLOURS[3], "o", lambda frame: frame["status"] == "accepted" and frame["right"]),
    ("accepted and wrong", "black", "s", lambda frame: frame["status"] == "accepted" and not frame["right"]),
    ("rejected", COLOURS[2], "X", lambda frame: frame["status"] != "accepted"),
)
_SHADES = {"noise": COLOURS[6], "blur": COLOURS[5], "patch": COLOURS[4], "PGD": COLOURS[4]}


def plot_drive(outcome: Mapping[str, Any], target: Path) -> None:
    """Draw the outcome of `synthetic_drive.py` to a file; an existing one is replaced."""
    frames, config = outcome["results"]["frames"], outcome["config"]
    with drawn(target, (12, 5.2)) as figure:
        votes, robot = figure.subplots(2, 1, sharex=True, height_ratios=(8, 1))
        for start, end, condition in _spans(frames, "condition"):
            if condition in _SHADES:
                votes.axvspan(start, end, color=_SHADES[condition], alpha=0.18, lw=0)
                votes.annotate(condition, ((start + end) / 2, 0.97), ha="center", va="top", fontsize=10)
        for name, colour, marker, belongs in _KINDS:
            shown = [frame for frame in frames if belongs(frame)]
            times, shares = [frame["time_s"] for frame in shown], [frame["vote_share"] for frame in shown]
            votes.scatter(times, shares, s=12, color=colour, marker=marker, lw=0, label=f"{name} ({len(shown)})")
        threshold = config["min_votes"] / config["num_samples"]
        votes.axhline(threshold, color=COLOURS[1], lw=1, ls="--", label=f"threshold, {config['min_votes']} votes")
        votes.set_ylim(0, 1)
        votes.set_ylabel(f"vote share of the winner, N = {config['num_samples']}")
        votes.grid(alpha=0.3)
        votes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        _draw_robot(robot, frames)


def _draw_robot(axes: Axes, frames: Frames) -> None:
    states = [{**frame, "robot": _state(frame)} for frame in frames]
    colours = {"drives": COLOURS[3], "drives, misled": "black", "stops": COLOURS[2]}
    for state, colour in colours.items():
        bars = [(start, end - start) for start, end, name in _spans(states, "robot") if name == state]
        axes.broken_barh(bars, (0, 1), color=colour, lw=0, label=state)
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    axes.set_ylabel("robot", rotation=0, ha="right", va="center")
    axes.set_xlim(0, frames[-1]["time_s"])
    axes.set_xlabel(
        "seconds; the robot drives while 4 of the last 5 frames were accepted as the same class", loc="left"
    )
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right", bbox_to_anchor=(1, -0.45))


def _state(frame: Mapping[str, Any]) -> str:
    if not frame["driving"]:
        return "stops"
    return "drives" if frame["driving_right"] else "drives, misled"


def _spans(frames: Frames, key: str) -> Iterator[tuple[float, float, str]]:
    """Yield where runs of equal values begin and end, in seconds."""
    period = frames[1]["time_s"] - frames[0]["time_s"]
    for value, run in groupby(frames, lambda frame: str(frame[key])):
        times = [frame["time_s"] for frame in run]
        yield times[0], times[-1] + period, value
