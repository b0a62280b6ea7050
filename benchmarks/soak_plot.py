"""Picture of what benchmarks/soak.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flss_edge.picture import COLOURS, drawn
from flss_runtime.latency import QUANTILE_GRID


def plot_soak(result: Mapping[str, Any], target: Path) -> None:
    """Draw memory and latency over the run, and the latencies' distribution.

    Args:
        result: the JSON of benchmarks/soak.py.
        target: .png to write, replaced where it exists.

    Raises:
        UsageError: matplotlib is absent.
        OutputError: the file cannot be written.
    """
    results, config = result["results"], result["config"]
    memory, found = results["memory"], results["latency"]
    with drawn(target, (15, 4.6)) as figure:
        left, middle, right = figure.subplots(1, 3)
        left.plot(np.asarray(memory["read_at"]) / 1e6, memory["read_mib"], ".", ms=3, color=COLOURS[1])
        centre = float(np.mean(memory["parts_mib"]))
        left.set_ylim(min(centre - 1, min(memory["read_mib"])), max(centre + 1, max(memory["read_mib"])))
        left.set_xlabel("million frames")
        left.set_ylabel("resident memory, MiB")
        left.set_title(f"{memory['mib_per_million']:+.3f} MiB in 10^6 frames, at most {memory['upper_mib']:.3f}")
        places = np.linspace(0, config["frames"] / 1e6, len(results["parts_ms"]) + 2)[1:-1]
        middle.plot(places, results["parts_ms"], "o-", color=COLOURS[2])
        middle.set_ylim(0, 1.3 * max(results["parts_ms"]))
        middle.set_xlabel("million frames")
        middle.set_ylabel("median of a part, ms")
        middle.set_title(f"Latency {results['drift']['share']:+.2%} from start to end")
        slower = 1 - np.asarray(QUANTILE_GRID) / 100
        shown = slower >= 1 / found["n"]
        right.plot(np.asarray(found["quantiles_ms"])[shown], slower[shown], color=COLOURS[3])
        right.set_yscale("log")
        right.set_xlabel("latency, ms")
        right.set_ylabel("share of frames slower")
        ratio = results["p99_9_over_p50"]
        right.set_title("Distribution" if ratio is None else f"p99.9 is {ratio:.2f} times the median")
        for axes in (left, middle, right):
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", nbins=5)
        text = (
            f"{result['artifact']['bundle']}, {config['arm']}, {config['engine']}, {config['threads']} thread(s), "
            f"{result['environment']['cpu']}"
        )
        flags = dict.fromkeys(item["name"] for item in result["validity"]["flags"])
        figure.suptitle(f"{text}\nnot valid: {', '.join(flags)}" if flags else text, fontsize=10)
