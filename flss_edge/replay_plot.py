"""Picture of a replay: votes over time, what was accepted and what rejected, and how long frames took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flss_edge.picture import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCEPTED, _REJECTED, _UNANSWERED = COLOURS[3], COLOURS[2], COLOURS[0]


def plot_replay(
    results: Mapping[str, Any], config: Mapping[str, Any], target: Path, *, title: str = "", overwrite: bool = True
) -> None:
    """Draw vote shares with the threshold, accepted green and rejected red, and the latencies below.

    Args:
        results: What `flss-edge replay` gives under "results".
        config: What it gives under "config".
        target: file to write; its suffix (.png, .svg, .pdf) chooses the format.
        title: What to write above; by default the topic and the number of frames.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, or matplotlib is absent.
        OutputError: the file exists or cannot be written.
    """
    spans = results["timeline"]
    with drawn(target, (12, 6), overwrite=overwrite) as figure:
        votes, latencies = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _draw_votes(votes, spans, results["statuses"], config)
        _draw_latencies(latencies, spans, results["frames_per_span"])
        figure.suptitle(title or _title(results, config), fontsize=11)


def _title(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    rate = results["reject_rate"]
    rejected = "" if rate is None else f", {rate:.1%} of the votes rejected"
    return f"{config['topic']}: {results['frames']:,} frames{rejected}, N = {config['num_samples']}"


def _draw_votes(
    axes: Axes, spans: Sequence[Mapping[str, Any]], statuses: Mapping[str, int], config: Mapping[str, Any]
) -> None:
    kinds = (
        ("accepted", _ACCEPTED, "o", statuses.get("accepted", 0)),
        ("rejected", _REJECTED, "X", statuses.get("low_vote", 0)),
    )
    for name, colour, marker, count in kinds:
        shown = [span for span in spans if span[name]]
        times, shares = [span["time_s"] for span in shown], [span[f"{name}_share"] for span in shown]
        axes.scatter(times, shares, s=14, color=colour, marker=marker, lw=0, label=f"{name} ({count:,})", zorder=3)
    lost = [span["time_s"] for span in spans if span["unanswered"]]
    if lost:
        count = sum(span["unanswered"] for span in spans)
        axes.scatter(lost, [0.0] * len(lost), s=30, color=_UNANSWERED, marker="|", label=f"no answer ({count:,})")
    threshold = config["min_votes"] / config["num_samples"]
    label = f"threshold, {config['min_votes']} of {config['num_samples']} votes"
    axes.axhline(threshold, color=COLOURS[1], lw=1, ls="--", label=label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("vote share of the winner")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_latencies(axes: Axes, spans: Sequence[Mapping[str, Any]], frames_per_span: int) -> None:
    axes.plot([span["time_s"] for span in spans], [span["slowest_ms"] for span in spans], lw=0.8, color=COLOURS[1])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("classify, ms" if frames_per_span == 1 else f"slowest of {frames_per_span}, ms")
    axes.set_xlabel("seconds since the first frame")
    axes.grid(alpha=0.3)
