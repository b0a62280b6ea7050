from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_runtime.statistics import clopper_pearson, clopper_pearson_upper

COUNTS = [(0, 1), (1, 1), (0, 598), (3, 10), (10, 10), (1000, 10_000), (9_999, 10_000), (50, 500), (1, 200_000)]


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_agrees_with_scipy(k: int, n: int, confidence: float) -> None:
    beta = pytest.importorskip("scipy.stats").beta
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, k, n - k + 1) if k else 0.0
    high = beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    assert clopper_pearson(k, n, confidence) == pytest.approx((low, high), rel=1e-8, abs=1e-12)
    upper = beta.ppf(confidence, k + 1, n - k) if k < n else 1.0
    assert clopper_pearson_upper(k, n, confidence) == pytest.approx(upper, rel=1e-8, abs=1e-12)


def test_published_values() -> None:
    # The rule of three, exactly: 1 - 0.05 ** (1 / 598).
    assert clopper_pearson_upper(0, 598) == pytest.approx(1 - 0.05 ** (1 / 598), rel=1e-9)
    assert clopper_pearson_upper(0, 598) < 0.005 < clopper_pearson_upper(0, 597)
    assert clopper_pearson(0, 1) == pytest.approx((0.0, 0.975))
    assert clopper_pearson(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_estimate_and_mirrors(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = clopper_pearson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert clopper_pearson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert k / n <= clopper_pearson_upper(k, n) <= high  # one-sided at the same confidence is tighter


@pytest.mark.parametrize(("k", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_arguments(k: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        clopper_pearson(k, n, confidence)
    with pytest.raises(ValueError):
        clopper_pearson_upper(k, n, confidence)
