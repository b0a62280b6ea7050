"""Picture of what benchmarks/footprint.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flss_edge.picture import COLOURS, drawn


def plot_footprint(result: Mapping[str, Any], target: Path) -> None:
    """Draw each figure of ours beside the bare engine's.

    Args:
        result: the JSON of benchmarks/footprint.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    rows = result["results"]["rows"]
    with drawn(target, (2.3 * len(rows) + 1, 4.2)) as figure:
        for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
            for place, name in enumerate(("bare", "ours")):
                axes.bar(place, row[name], width=0.65, color=COLOURS[place])
                values = [pair[1 - place] for pair in row.get("pairs", ())]
                axes.scatter([place] * len(values), values, s=10, color="white", edgecolor="black", lw=0.6, zorder=3)
                label = f"{row[name]:.3g}"
                axes.annotate(
                    label, (place, max([row[name], *values])), (0, 4), textcoords="offset points", ha="center"
                )
            axes.set_xticks((0, 1), ("engine" if row["name"] == "wheel" else "bare", "ours"))
            axes.set_title(f"{row['name']}, {row['unit']}\nratio {row['ratio']:.3g}", fontsize=10)
            axes.margins(y=0.15)
        text = f"{result['artifact']['bundle']}, {result['environment']['cpu']}, {result['config']['repeats']} pairs"
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)
