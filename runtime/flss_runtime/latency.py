"""What a set of latencies says: percentiles with enough samples behind them, and overheads with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Fewest frames with which a percentile is stated: the binomial bound at confidence 0.99 that tolerates one slower frame
# (MLPerf Inference rules, early stopping). The median is a plain description and needs two.
MIN_FRAMES = {50.0: 2, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
# Kept in the JSON so that the distribution can be drawn and re-read without the raw times.
QUANTILE_GRID = (*range(0, 100), 99.5, 99.9, 100)


def percentile_name(percentile: float) -> str:
    """Return the key of a percentile: 99.9 -> "p99.9", 50.0 -> "p50"."""
    return f"p{percentile:g}"


def early_stopping_rank(frames: int, percentile: float, confidence: float = 0.99) -> int | None:
    """Return which of the highest latencies is a safe estimate of a percentile.

    With t the largest count for which P(X <= t) <= 1 - confidence, X ~ Binomial(frames, 1 - percentile / 100), the
    percentile lies at or below the t-th highest latency with that confidence (MLPerf Inference rules, single stream,
    d = 0).

    Args:
        frames: how many latencies were measured, >= 0.
        percentile: in (0, 100).
        confidence: in (0, 1).

    Returns:
        t counted from 1 = the highest, or None where there are too few frames.
    """
    slower = 1 - percentile / 100
    log_odds = math.log(slower) - math.log1p(-slower)
    log_term = frames * math.log1p(-slower)  # log P(X = 0)
    below = 0.0
    for count in range(frames + 1):
        below += math.exp(log_term)
        if below > 1 - confidence:
            return count - 1 if count >= 2 else None
        log_term += math.log((frames - count) / (count + 1)) + log_odds if count < frames else 0.0
    return None


def summarise(latencies_ms: NDArray[np.float64]) -> dict[str, Any]:
    """Describe the latencies of one arm.

    Args:
        latencies_ms: (n,) milliseconds, any order.

    Returns:
        `n`, `latency_ms` (p50 to p99.9; None = insufficient frames), `insufficient` (the names of those),
        `early_stopping_ms` (upper estimates of p90 to p99.9, confidence 0.99), `max_ms`, `mean_ms` and `quantiles_ms`
        at QUANTILE_GRID.
    """
    frames = int(latencies_ms.size)
    ordered = np.sort(latencies_ms)
    stated: dict[str, float | None] = {}
    bounds: dict[str, float | None] = {}
    for percentile, fewest in MIN_FRAMES.items():
        name = percentile_name(percentile)
        enough = frames >= fewest
        stated[name] = float(np.percentile(ordered, percentile)) if enough else None
        rank = early_stopping_rank(frames, percentile) if enough and percentile > 50 else None
        if percentile > 50:
            bounds[name] = float(ordered[-rank]) if rank is not None else None
    return {
        "n": frames,
        "latency_ms": stated,
        "early_stopping_ms": bounds,
        "insufficient": [name for name, value in stated.items() if value is None],
        "max_ms": float(ordered[-1]) if frames else None,
        "mean_ms": float(ordered.mean()) if frames else None,
        "quantiles_ms": [float(value) for value in np.percentile(ordered, QUANTILE_GRID)] if frames else [],
    }


def variation(medians: NDArray[np.float64]) -> float | None:
    """Return the coefficient of variation (standard deviation over mean) of block medians, None below two blocks."""
    return float(medians.std(ddof=1) / medians.mean()) if medians.size >= 2 else None


@dataclass(frozen=True)
class Overhead:
    """What an arm costs over the baseline, from blocks that ran both.

    Attributes:
        ratio: median over blocks of (arm median / baseline median).
        interval: 95 % bootstrap interval of `ratio`, None below two blocks.
        half_width: half the interval's width, in the unit of `ratio` (0.005 = half a percent).
        difference_ms: median over blocks of (arm median - baseline median).
    """

    arm: str
    baseline: str
    ratio: float
    percent: float
    interval: tuple[float, float] | None
    half_width: float | None
    difference_ms: float
    blocks: int
    processes: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "interval": list(self.interval) if self.interval else None}


def overhead(
    arm: str,
    baseline: str,
    arm_ms: Sequence[Sequence[float]],
    baseline_ms: Sequence[Sequence[float]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Overhead:
    """Compare two arms by their block medians.

    The bootstrap is hierarchical: processes are drawn with replacement, then blocks inside each, because the
    blocks of one process share its memory layout and are not independent draws of what a user will see.

    Args:
        arm: name of the arm.
        baseline: name of the baseline.
        arm_ms: block medians in milliseconds, one row a process, all rows equally long.
        baseline_ms: the baseline's medians of the same blocks.
        resamples: bootstrap draws.
        seed: of the draws, so that a result file can be recomputed.

    Returns:
        The ratio of medians with its 95 % percentile interval.
    """
    arms, baselines = np.asarray(arm_ms, np.float64), np.asarray(baseline_ms, np.float64)  # (P, B)
    ratios = arms / baselines
    processes, blocks = ratios.shape
    interval = None
    if ratios.size >= 2:
        draw = np.random.default_rng(seed)
        chosen = draw.integers(processes, size=(resamples, processes, 1))
        within = draw.integers(blocks, size=(resamples, processes, blocks))
        medians = np.median(ratios[chosen, within].reshape(resamples, -1), axis=1)
        low, high = np.percentile(medians, (2.5, 97.5))
        interval = (float(low), float(high))
    ratio = float(np.median(ratios))
    return Overhead(
        arm=arm,
        baseline=baseline,
        ratio=ratio,
        percent=(ratio - 1) * 100,
        interval=interval,
        half_width=(interval[1] - interval[0]) / 2 if interval else None,
        difference_ms=float(np.median(arms - baselines)),
        blocks=ratios.size,
        processes=processes,
    )
