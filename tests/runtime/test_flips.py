"""The budget of changed decisions: exact bounds, and three verdicts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from flss_runtime.comparison import REDUCED, GateOutputs, Outputs, compare, limits_for
from flss_runtime.errors import UsageError
from flss_runtime.flips import FlipTest, Verdict, images_needed


@pytest.mark.parametrize(
    ("flips", "images", "verdict"),
    [
        (0, 597, "inconclusive"),
        (0, 598, "passed"),
        (1, 946, "inconclusive"),
        (1, 947, "passed"),
        (3, 600, "inconclusive"),  # exactly the budget
        (4, 600, "failed"),
        (38, 10_000, "passed"),
        (39, 10_000, "inconclusive"),
        (51, 10_000, "failed"),
        (0, 1, "inconclusive"),
        (1, 1, "failed"),
    ],
)
def test_verdicts_at_the_default_budget(flips: int, images: int, verdict: str) -> None:
    test = FlipTest("class", flips, images)
    assert test.verdict.value == verdict == test.to_json()["verdict"]
    assert test.bound == pytest.approx(1.0 if flips == images else beta.ppf(0.95, flips + 1, images - flips))
    assert json.loads(json.dumps(test.to_json(), allow_nan=False))["rate"] == flips / images


@given(st.integers(0, 30), st.sampled_from([0.001, 0.005, 0.05, 0.5]))
def test_images_needed_is_the_least_number(flips: int, budget: float) -> None:
    needed = images_needed(flips, budget)
    assert FlipTest("class", flips, needed, budget).verdict is Verdict.PASSED
    if needed - 1 > flips:
        assert FlipTest("class", flips, needed - 1, budget).verdict is not Verdict.PASSED


def test_a_verdict_says_what_is_missing() -> None:
    assert "that takes 598 images with no more flips" in str(FlipTest("class", 0, 60))
    exceeding = str(FlipTest("rejection", 4, 600))
    assert exceeding.startswith("4 rejection flips in 600 images (0.67%, at most 1.52%) exceed")
    assert "stay within" in str(FlipTest("class", 0, 598))


@pytest.mark.parametrize("budget", [0, 1, -0.1, 5, float("nan"), 1e-300, 9e-6])
def test_a_budget_is_a_rate(budget: float) -> None:
    with pytest.raises(UsageError, match="rate from 1e-05"):
        FlipTest("class", 0, 10, budget)


def test_every_kind_that_was_counted_is_judged() -> None:
    votes = np.array([[9, 1]] * 40)
    other = votes.copy()
    other[0] = [4, 6]
    before = Outputs(votes, gate=GateOutputs(np.full(40, 0.9), np.zeros(40, np.int64)))
    after = Outputs(other, gate=GateOutputs(np.array([0.1, 0.1, 0.1] + [0.9] * 37), np.zeros(40, np.int64)))
    cascade = compare(before, after, min_votes=7, min_confidence=0.5).flip_tests(0.1)
    # Of the three images that the gate no longer lets pass, the vote rejects the first.
    assert [(test.kind, test.flips, test.images) for test in cascade] == [
        ("class", 1, 40),
        ("rejection", 1, 40),
        ("gate", 3, 40),
    ]
    assert [test.kind for test in compare(before, after, min_votes=7).flip_tests()] == ["class", "rejection"]
    assert [test.kind for test in compare(before, after).flip_tests()] == ["class"]


def test_reduced_precision_is_not_held_to_numbers_but_has_to_have_some() -> None:
    before = Outputs(np.array([[80, 20]] * 3), {"mean": np.zeros((3, 2))})
    far = Outputs(np.array([[20, 80]] * 3), {"mean": np.ones((3, 2))})
    assert not compare(before, far, limits=limits_for("fp32")).passed
    for precision in ("fp16", "int8"):
        found = compare(before, far, limits=limits_for(precision))
        assert found.passed and found.tensor_limits == {}
        assert (found.class_flips, found.clear_winner_flips, found.largest_vote_change) == (3, 3, 60)
        assert found.tensor_differences == {"mean": 1.0}
    lost = compare(before, Outputs(before.votes, {"mean": np.array([[0, np.nan]] * 3)}), limits=REDUCED)
    assert lost.failures == ("reference: mean is missing, of another shape, or not finite",)
