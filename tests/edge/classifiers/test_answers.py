"""The rules that turn scores into a threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_edge.classifiers.answers import (
    Answers,
    joined,
    threshold_for_budget,
    threshold_for_coverage,
    threshold_for_true_positive_rate,
)
from flss_runtime.calibration import min_votes_for_budget
from flss_runtime.errors import DataError, UsageError

COARSE = st.integers(0, 6).map(lambda level: level / 7)  # floats with many ties


@st.composite
def scored(draw: st.DrawFn, score: st.SearchStrategy[float] = COARSE) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 60))
    scores = np.array(draw(st.lists(score, min_size=n, max_size=n)), np.float64)
    return scores, np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_)


class TestBudget:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_on_votes_it_is_the_runtimes_rule(self, data: st.DataObject) -> None:
        num_samples = data.draw(st.integers(1, 12))
        votes, correct = data.draw(scored(st.integers(1, num_samples).map(float)))
        allowed = data.draw(st.integers(1, len(votes) - 1))
        budget = (allowed + 0.5) / len(votes)
        expected = min_votes_for_budget(votes.astype(np.int64), correct, num_samples, budget)
        assert threshold_for_budget(votes, correct, budget, highest=num_samples) == expected

    @settings(max_examples=150, deadline=None)
    @given(scored(), st.data())
    def test_by_brute_force(self, answers: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
        scores, correct = answers
        allowed = data.draw(st.integers(1, len(scores) - 1))
        found = threshold_for_budget(scores, correct, (allowed + 0.5) / len(scores))
        # Between two scores nothing changes, so the strictest threshold is a score.
        lawful = [t for t in scores if (correct & (scores < t)).sum() <= allowed]
        assert (correct & (scores < found)).sum() <= allowed
        assert ((scores >= found) == (scores >= max(lawful))).all()

    def test_is_of_all_images_not_of_the_correct_ones(self) -> None:
        scores = np.arange(100) / 100
        correct = np.arange(100) < 50
        assert threshold_for_budget(scores, correct, 0.10) == 0.10  # ten of them are below, not five

    def test_the_budget_is_the_decimal_that_was_written(self) -> None:
        scores = np.where(np.arange(100) < 29, 0.3, 0.9)  # 0.29 * 100 is less than 29 in binary
        assert threshold_for_budget(scores, np.ones(100, bool), 0.29) == 0.9
        assert threshold_for_budget(scores, np.ones(100, bool), 0.28) == 0.3

    def test_where_it_never_binds_the_highest_score_there_is(self) -> None:
        scores = np.array([0.2, 0.7, 0.5])
        assert threshold_for_budget(scores, np.array([True, False, False]), 0.4) == 0.7
        assert threshold_for_budget(scores, np.array([True, False, False]), 0.4, highest=1.0) == 1.0

    def test_refuses_a_budget_that_means_nothing(self) -> None:
        scores, correct = np.ones(20), np.ones(20, bool)
        with pytest.raises(UsageError, match="between 0 and 1"):
            threshold_for_budget(scores, correct, 1.0)
        with pytest.raises(DataError, match="no false rejection"):
            threshold_for_budget(scores, correct, 0.01)


class TestTruePositiveRate:
    @settings(max_examples=150, deadline=None)
    @given(scored(), st.integers(1, 100))
    def test_by_brute_force(self, answers: tuple[np.ndarray, np.ndarray], percent: int) -> None:
        scores, correct = answers
        if not correct.any():
            with pytest.raises(DataError):
                threshold_for_true_positive_rate(scores, correct, percent / 100)
            return
        found = threshold_for_true_positive_rate(scores, correct, percent / 100)
        # In whole numbers: kept / correct >= percent / 100.
        lawful = [t for t in scores if 100 * (correct & (scores >= t)).sum() >= percent * correct.sum()]
        assert found == max(t for t in lawful if (correct & (scores == t)).any())
        assert 100 * (correct & (scores >= found)).sum() >= percent * correct.sum()

    def test_ccats_own_figure(self) -> None:
        scores = np.arange(1000) / 1000
        found = threshold_for_true_positive_rate(scores, np.ones(1000, bool))
        assert (scores < found).sum() == 10


class TestCoverage:
    @settings(max_examples=100, deadline=None)
    @given(scored(), st.data())
    def test_by_brute_force(self, answers: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
        scores = answers[0]
        wanted = data.draw(st.integers(1, len(scores)))
        found = threshold_for_coverage(scores, wanted)
        assert found == max(t for t in scores if (scores >= t).sum() >= wanted)

    def test_is_exact_without_ties(self) -> None:
        scores = np.random.default_rng(0).permutation(50) / 50
        for wanted in range(51):
            assert (scores >= threshold_for_coverage(scores, wanted)).sum() == wanted

    def test_nothing_and_too_much(self) -> None:
        assert threshold_for_coverage(np.ones(3), 0) == math.inf
        with pytest.raises(UsageError, match="4 of 3"):
            threshold_for_coverage(np.ones(3), 4)


def test_batches_join_in_order() -> None:
    parts = [
        Answers(np.array([label]), np.array([score]), np.array([accepted]))
        for label, score, accepted in ((2, 0.5, True), (0, 0.1, False))
    ]
    whole = joined(parts)
    assert whole.labels.tolist() == [2, 0] and whole.scores.tolist() == [0.5, 0.1]
    assert whole.accepted.tolist() == [True, False]
    assert len(joined([])) == 0
