"""Percentiles, their minimum counts, and the bootstrap interval of an overhead."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flss_runtime.latency import MIN_FRAMES, QUANTILE_GRID, early_stopping_rank, overhead, summarise


def at_most(count: int, frames: int, probability: float) -> float:
    """P(X <= count) for X ~ Binomial(frames, probability), in plain integers and floats."""
    return sum(
        math.comb(frames, hits) * probability**hits * (1 - probability) ** (frames - hits) for hits in range(count + 1)
    )


@pytest.mark.parametrize(("percentile", "fewest"), [(p, n) for p, n in MIN_FRAMES.items() if p > 50])
def test_minimum_counts_are_the_binomial_bound(percentile: float, fewest: int) -> None:
    assert early_stopping_rank(fewest, percentile) == 1
    assert early_stopping_rank(fewest - 1, percentile) is None


@pytest.mark.parametrize("frames", [64, 200, 777, 1000])
def test_early_stopping_rank_is_the_largest_within_the_bound(frames: int) -> None:
    rank = early_stopping_rank(frames, 90)
    assert rank is not None
    assert at_most(rank, frames, 0.1) <= 0.01 < at_most(rank + 1, frames, 0.1)


def test_early_stopping_covers_the_true_percentile() -> None:
    rank = early_stopping_rank(500, 90)
    assert rank is not None
    draws = np.sort(np.random.default_rng(0).exponential(size=(4000, 500)), axis=1)
    covered = (draws[:, -rank] >= -math.log(0.1)).mean()
    assert covered >= 0.99


@pytest.mark.parametrize(
    ("frames", "missing"),
    [
        (1, ["p50", "p90", "p95", "p99", "p99.9"]),
        (2, ["p90", "p95", "p99", "p99.9"]),
        (63, ["p90", "p95", "p99", "p99.9"]),
        (64, ["p95", "p99", "p99.9"]),
        (130, ["p99", "p99.9"]),
        (662, ["p99.9"]),
        (6635, ["p99.9"]),
        (6636, []),
    ],
)
def test_percentiles_below_their_minimum_count_are_missing(frames: int, missing: list[str]) -> None:
    summary = summarise(np.linspace(1, 2, frames))
    assert summary["n"] == frames
    assert summary["insufficient"] == missing
    assert [name for name, value in summary["latency_ms"].items() if value is None] == missing
    bounds = [name for name, value in summary["early_stopping_ms"].items() if value is None]
    assert bounds == [name for name in missing if name != "p50"]


def test_summary_describes_known_latencies_in_any_order() -> None:
    times = np.random.default_rng(0).permutation(np.arange(10_000, dtype=np.float64)) / 100
    summary = summarise(times)
    assert summary["latency_ms"] == pytest.approx({"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99.9": 99.9}, abs=0.01)
    assert summary["max_ms"] == 99.99 and summary["mean_ms"] == pytest.approx(49.995)
    assert len(summary["quantiles_ms"]) == len(QUANTILE_GRID)
    for name, bound in summary["early_stopping_ms"].items():
        assert bound >= summary["latency_ms"][name]


def test_no_frame_at_all_is_no_error() -> None:
    summary = summarise(np.empty(0))
    assert summary["n"] == 0 and summary["max_ms"] is None and summary["quantiles_ms"] == []


def test_overhead_of_exact_ratios_is_exact() -> None:
    baseline = [[10.0, 11.0], [9.0, 12.0]]
    found = overhead("n100", "deterministic", [[1.02 * value for value in row] for row in baseline], baseline)
    assert found.ratio == pytest.approx(1.02) and found.percent == pytest.approx(2)
    assert found.interval == pytest.approx((1.02, 1.02)) and found.half_width == pytest.approx(0, abs=1e-12)
    assert (found.blocks, found.processes) == (4, 2)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        baseline = draw.normal(10, 0.1, (3, 10))
        arm = baseline * draw.normal(1.02, 0.005, (3, 10))
        found = overhead("a", "b", arm.tolist(), baseline.tolist(), resamples=500, seed=trial)
        assert found.interval is not None
        covered += found.interval[0] <= 1.02 <= found.interval[1]
    assert covered >= 0.9 * 200


def test_interval_widens_when_processes_differ() -> None:
    draw = np.random.default_rng(2)
    noise = draw.normal(0, 0.002, (3, 10))
    same = 10 * (1.02 + noise)
    different = 10 * (1.02 + noise + np.array([[-0.02], [0.0], [0.02]]))
    baseline = np.full((3, 10), 10.0)
    narrow = overhead("a", "b", same.tolist(), baseline.tolist()).half_width
    wide = overhead("a", "b", different.tolist(), baseline.tolist()).half_width
    assert narrow is not None and wide is not None and wide > 5 * narrow


def test_one_block_has_a_ratio_but_no_interval() -> None:
    found = overhead("a", "b", [[11.0]], [[10.0]])
    assert found.ratio == pytest.approx(1.1) and found.interval is None and found.half_width is None
    assert found.to_json()["interval"] is None
