from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flss_runtime.drift.detector import STAKES, Detector

shares = st.floats(0, 1)
bounds = st.floats(1e-6, 1 - 1e-6)


def one(low: float, high: float) -> Detector:
    return Detector(np.array([low]), np.array([high]))


def after(start: list[float], share: float, low: float, high: float) -> float:
    detector = one(low, high)
    for each in start:
        detector.update(np.array([each]))
    return float(detector.update(np.array([share])))


@given(st.lists(shares, max_size=5), bounds, bounds, shares)
def test_a_block_adds_one_at_most_on_average(start: list[float], one_bound: float, other: float, place: float) -> None:
    """The supermartingale, in exact terms: a share of 0 or 1 whose mean lies within the bounds."""
    low, high = sorted((one_bound, other))
    mean = low + place * (high - low)
    expected = (1 - mean) * after(start, 0.0, low, high) + mean * after(start, 1.0, low, high)
    before = after(start[:-1], start[-1], low, high) if start else 0.0
    assert expected <= (before + 1) * (1 + 1e-9)


@given(st.lists(shares, min_size=1, max_size=30), bounds, bounds)
def test_evidence_is_never_negative(values: list[float], one_bound: float, other: float) -> None:
    low, high = sorted((one_bound, other))
    assert after(values[:-1], values[-1], low, high) >= 0


def test_a_mean_at_the_bound_is_a_fair_game() -> None:
    """Where the mean is the bound, half of the evidence's growth is exactly one a block, and no more is lost."""
    detector = Detector(np.array([0.3]), np.array([0.3]))
    expected = sum(
        chance * float(one(0.3, 0.3).update(np.array([share]))) for share, chance in ((0.0, 0.7), (1.0, 0.3))
    )
    assert expected == pytest.approx(1)
    assert detector.update(np.array([0.3])) == pytest.approx(1)


@pytest.mark.parametrize(("share", "upward"), [(0.9, True), (0.0, False)])
def test_evidence_grows_where_the_mean_has_left_its_bounds(share: float, upward: bool) -> None:
    detector = Detector(np.array([0.2, 0.4]), np.array([0.3, 0.6]))
    evidence = [float(detector.update(np.array([0.25, share]))) for _ in range(60)]
    assert evidence[-1] > 1e6 and all(np.diff(evidence[10:]) > 0)
    assert detector.strongest() == (1, upward)


def test_evidence_is_the_mean_of_the_recursion_written_out() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([0.1, 0.4, 0.2]), np.array([0.2, 0.5, 0.6])
    values = rng.random((50, 3))
    detector = Detector(low, high)
    wealth = {(index, up, stake): 0.0 for index in range(3) for up in (True, False) for stake in STAKES}
    for row in values:
        for index, up, stake in wealth:
            score, bound = (row[index], high[index]) if up else (1 - row[index], 1 - low[index])
            wealth[index, up, stake] = (wealth[index, up, stake] + 1) * (1 + stake / bound * (score - bound))
        assert float(detector.update(row)) == pytest.approx(np.mean(list(wealth.values())))


@given(st.lists(shares, min_size=1, max_size=60), bounds, bounds, st.floats(1, 1e6))
def test_no_evidence_reaches_a_threshold_in_fewer_blocks(
    values: list[float], one_bound: float, other: float, threshold: float
) -> None:
    low, high = sorted((one_bound, other))
    detector, fewest = one(low, high), one(low, high).fewest_blocks(threshold)
    for blocks, share in enumerate(values, 1):
        assert blocks >= fewest or detector.update(np.array([share])) < threshold


@pytest.mark.parametrize(("threshold", "share"), [(2.0, 1.0), (1e3, 1.0), (1e7, 1.0), (1e7, 0.0)])
def test_the_worst_share_there_is_nearly_reaches_it_in_the_fewest(threshold: float, share: float) -> None:
    detector = one(0.4, 0.6)
    fewest = detector.fewest_blocks(threshold)
    evidence = [float(detector.update(np.array([share]))) for _ in range(2 * fewest)]
    assert fewest <= next(block for block, each in enumerate(evidence, 1) if each >= threshold) <= fewest + 2


def test_the_fewest_blocks_end_somewhere() -> None:
    assert one(0, 1).fewest_blocks(1e300) == 10_000


def test_streams_side_by_side_are_streams_alone() -> None:
    rng = np.random.default_rng(1)
    low = rng.random((4, 2)) / 2
    high, values = low + 0.1, rng.random((30, 4, 2))
    together = Detector(low, high)
    alone = [Detector(low[stream], high[stream]) for stream in range(4)]
    for block in values:
        found = together.update(block)
        assert found.tolist() == pytest.approx([float(each.update(block[stream])) for stream, each in enumerate(alone)])


def test_reset_forgets() -> None:
    detector = one(0.1, 0.2)
    first = [float(detector.update(np.array([1.0]))) for _ in range(5)]
    detector.reset()
    assert [float(detector.update(np.array([1.0]))) for _ in range(5)] == first


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.0, 0.0), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_bounds_that_bound_nothing(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="bounds"):
        one(low, high)
