"""The figures against the executed golden example, against sets counted by hand, and their laws on any answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_edge.classifiers.answers import Answers
from flss_edge.robustness.comparison import at_coverage_of, compare, paired
from flss_edge.robustness.metrics import index_sets, official, per_attack, share, summarise, thresholded, worst_case
from flss_edge.robustness.risk_coverage import levels, risk_coverage, score_histogram
from flss_runtime.calibration import min_votes_for_budget
from flss_runtime.errors import UsageError

# docs/method.md, section 4: ten images, N = 10, budget 1.
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 2])
NUM_SAMPLES = 10
VOTES = {
    "clean": ((0, 10), (0, 9), (1, 7), (1, 5), (2, 6), (2, 4), (1, 5), (1, 8), (0, 4), (2, 9)),
    "A": ((0, 9), (0, 6), (0, 6), (1, 4), (2, 6), (0, 5), (1, 7), (1, 6), (0, 3), (2, 7)),
    "B": ((0, 8), (1, 4), (1, 4), (0, 6), (2, 5), (2, 4), (1, 6), (1, 3), (0, 5), (2, 6)),
}


def answers_of(pairs: Any, threshold: float) -> Answers:
    labels, scores = np.array(pairs).T
    return Answers(labels.astype(np.int64), scores.astype(np.float64), scores >= threshold)


def golden(threshold: float) -> dict[str, Answers]:
    return {name: answers_of(pairs, threshold) for name, pairs in VOTES.items()}


def members(part: np.ndarray) -> set[int]:
    return set(np.flatnonzero(part).tolist())


def percent(figures: Mapping[str, Any], *names: str) -> tuple[float, ...]:
    return tuple(round(100 * figures[name]["share"], 6) for name in names)


def min_votes() -> int:
    clean = golden(0)["clean"]
    return min_votes_for_budget(clean.scores.astype(np.int64), clean.labels == LABELS, NUM_SAMPLES, 0.1)


def test_golden_without_rejection() -> None:
    figures = summarise(LABELS, golden(0))
    assert percent(figures, "nat_0", "adv_0", "nat_10", "adv_10") == (80, 40, 80, 40)
    worst = worst_case(LABELS, golden(0))
    assert (members(worst.correct), members(worst.wrong)) == ({0, 4, 7, 9}, {1, 2, 3, 5, 6, 8})
    assert not worst.rejected.any()


def test_golden_strict() -> None:
    assert min_votes() == 5
    answers = golden(min_votes())
    clean, worst = index_sets(LABELS, answers["clean"]), worst_case(LABELS, answers)
    assert members(clean.correct) == {0, 1, 2, 3, 4, 7, 9}
    assert (members(clean.wrong), members(clean.rejected)) == ({6}, {5, 8})
    assert members(worst.correct) == {0, 4, 9}
    assert members(worst.wrong) == {2, 3, 5, 6, 8}
    assert members(worst.rejected) == {1, 2, 3, 5, 7, 8}
    figures = summarise(LABELS, answers)
    assert percent(figures, "nat_10", "fc", "fw", "mpr", "adv_10") == (87.5, 30, 50, 60, 37.5)
    assert percent(figures, "robust_with_detection", "coverage", "one_minus_fw") == (50, 80, 50)
    assert percent(figures, "nat_0", "adv_0") == (80, 40)  # rejection changes neither


def test_golden_as_the_released_scripts_reject() -> None:
    answers = official(golden(min_votes()), min_votes(), NUM_SAMPLES)
    worst = worst_case(LABELS, answers)
    assert (members(worst.correct), members(worst.wrong)) == ({0, 9}, {2, 3, 6})
    assert members(worst.rejected) == set(range(1, 9))
    figures = summarise(LABELS, answers)
    assert percent(figures, "nat_10", "fc", "fw", "mpr", "adv_10") == (100, 20, 30, 80, 40)


def test_the_released_scripts_never_ask_for_more_votes_than_there_are() -> None:
    clean = {"clean": Answers(np.zeros(2, np.int64), np.array([9.0, 10.0]), np.ones(2, np.bool_))}
    assert official(clean, 10, 10)["clean"].accepted.tolist() == [False, True]


def test_each_attack_alone() -> None:
    rows = per_attack(LABELS, golden(5))
    assert rows["A"] == pytest.approx({"fc": 0.5, "fw": 0.3, "r": 0.2, "accuracy_0": 0.6, "n": 10})
    assert rows["clean"]["accuracy_0"] == pytest.approx(0.8)


def test_accuracy_without_sampling_is_the_other_classifiers_and_its_rejections_do_not_count() -> None:
    other = {name: answers_of([(label, 0.1) for label in LABELS], 0.5) for name in VOTES}
    other["B"].labels[:3] = 9
    figures = summarise(LABELS, golden(5), other)
    assert percent(figures, "nat_ns", "adv_ns", "nat_0") == (100, 70, 80)
    assert summarise(LABELS, golden(5))["nat_ns"] is None


def test_a_share_carries_its_exact_interval() -> None:
    from scipy.stats import binomtest

    found = share(3, 10)
    assert found is not None
    assert found["interval"] == pytest.approx(tuple(binomtest(3, 10).proportion_ci(0.95, "exact")), abs=1e-9)
    assert (found["count"], found["n"], found["share"]) == (3, 10, 0.3)


def test_nothing_accepted_leaves_no_accuracy_of_the_accepted() -> None:
    figures = summarise(LABELS, golden(11))
    assert figures["nat_10"] is None
    assert figures["adv_10"] is None
    assert percent(figures, "fc", "fw", "mpr", "coverage") == (0, 0, 100, 0)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="clean"):
        summarise(LABELS, {"A": golden(5)["A"]})
    with pytest.raises(UsageError, match="10 images and labels of 9"):
        summarise(LABELS[:9], golden(5))
    with pytest.raises(UsageError, match="under A, B"):
        summarise(LABELS, golden(5), {"clean": golden(5)["clean"]})
    with pytest.raises(UsageError, match="no images"):
        summarise(LABELS[:0], {"clean": answers_of(np.empty((0, 2)), 0)})
    with pytest.raises(UsageError, match="no answers"):
        worst_case(LABELS, {})


@st.composite
def evaluations(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Answers]]:
    """Draw labels and the answers of a voting classifier, few enough classes and scores for every kind of tie."""
    n = draw(st.integers(1, 12))
    names = ["clean", "A", "B"][: draw(st.integers(1, 3))]
    threshold = draw(st.integers(0, 6))

    def column(top: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, top), min_size=n, max_size=n)), dtype=np.int64)

    labels = column(2)
    return labels, {name: answers_of(np.stack([column(2), column(5)], 1), threshold) for name in names}


@given(evaluations())
@settings(max_examples=150, deadline=None)
def test_the_sets_cover_and_part_as_they_must(case: tuple[np.ndarray, dict[str, Answers]]) -> None:
    labels, answers = case
    for one in answers.values():
        found = index_sets(labels, one)
        assert (found.correct.astype(int) + found.wrong + found.rejected == 1).all()
    worst = worst_case(labels, answers)
    assert (worst.correct == ~(worst.wrong | worst.rejected)).all()  # the identity 100 - FC = |S_FW or R|
    figures = summarise(labels, answers, answers)
    assert figures["nat_ns"] == figures["nat_0"]
    assert figures["adv_ns"] == figures["adv_0"]
    assert figures["fw"]["count"] + figures["one_minus_fw"]["count"] == len(labels)
    rows = per_attack(labels, answers)
    for row in rows.values():
        assert row["fc"] + row["fw"] + row["r"] == pytest.approx(1)
    assert figures["fc"]["share"] <= min(row["fc"] for row in rows.values()) + 1e-12
    assert figures["fw"]["share"] >= max(row["fw"] for row in rows.values()) - 1e-12
    assert figures["fc"]["count"] <= figures["robust_with_detection"]["count"] <= figures["one_minus_fw"]["count"]


@given(evaluations())
@settings(max_examples=100, deadline=None)
def test_a_stricter_threshold_accepts_less_and_the_levels_know_it(case: tuple[np.ndarray, dict[str, Answers]]) -> None:
    labels, answers = case
    level, wrong = levels(labels, answers)
    earlier = None
    for threshold in range(7):
        worst = worst_case(labels, thresholded(answers, threshold))
        assert (worst.correct == (~wrong & (level >= threshold))).all()
        assert (worst.wrong == (wrong & (level >= threshold))).all()
        if earlier is not None:
            assert not (worst.correct & ~earlier.correct).any()
            assert not (worst.wrong & ~earlier.wrong).any()
            assert not (earlier.rejected & ~worst.rejected).any()
        earlier = worst


@given(evaluations())
@settings(max_examples=100, deadline=None)
def test_every_point_of_the_curve_is_what_its_threshold_gives(case: tuple[np.ndarray, dict[str, Answers]]) -> None:
    labels, answers = case
    curve = risk_coverage(labels, answers)
    assert curve["coverage"][-1] == 1
    assert curve["threshold"] == sorted(set(answers["clean"].scores.tolist()), reverse=True)
    for place, threshold in enumerate(curve["threshold"]):
        figures = summarise(labels, thresholded(answers, threshold))
        for name in ("coverage", "fc", "fw"):
            assert curve[name][place] == pytest.approx(figures[name]["share"])
        assert curve["risk"][place] == pytest.approx(1 - figures["nat_10"]["share"])
        if figures["adv_10"] is None:
            assert curve["attacked_risk"][place] is None
        else:
            assert curve["attacked_risk"][place] == pytest.approx(1 - figures["adv_10"]["share"])
    if len(answers) == 1:
        assert curve["area"] == pytest.approx(curve["attacked_area"])


def test_the_area_is_the_mean_selective_risk() -> None:
    labels = np.zeros(5, np.int64)
    given_labels = np.array([1, 0, 1, 0, 0])
    clean = {"clean": Answers(given_labels, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.ones(5, np.bool_))}
    # Risks after 1 to 5 accepted: 1, 1/2, 2/3, 1/2, 2/5.
    assert risk_coverage(labels, clean)["area"] == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 2 + 2 / 5) / 5)


def test_a_long_curve_is_thinned_without_moving_its_area_or_its_end() -> None:
    draw = np.random.default_rng(0)
    labels = np.zeros(1000, np.int64)
    clean = {"clean": Answers(draw.integers(0, 2, 1000), draw.random(1000), np.ones(1000, np.bool_))}
    full, thin = risk_coverage(labels, clean, points=2000), risk_coverage(labels, clean, points=21)
    assert (len(full["threshold"]), len(thin["threshold"])) == (1000, 21)
    assert full["area"] == thin["area"]
    assert thin["coverage"] == pytest.approx(np.linspace(0, 1, 21), abs=0.002)


def test_the_histogram_counts_every_image_once() -> None:
    found = score_histogram(LABELS, golden(5), highest=10, bins=10)
    assert sum(found["clean"]["correct"]) == 8
    assert sum(found["clean"]["wrong"]) == 2
    assert found["clean"]["correct"][9] == 3  # 9 and 10 votes share the last bin
    assert found["attacked"]["correct"] == [0, 0, 0, 1, 0, 1, 1, 0, 1, 0]  # 3, 5, 6 and 8 votes
    assert sum(found["attacked"]["wrong"]) == 6


def test_a_paired_difference_against_scipy_and_by_hand() -> None:
    from scipy.stats import binomtest

    first = np.array([True] * 30 + [False] * 70)
    second = np.array([True] * 22 + [False] * 8 + [True] * 2 + [False] * 68)
    found = paired(first, second)
    assert (found["only_first"], found["only_second"], found["n"]) == (8, 2, 100)
    assert found["difference"] == pytest.approx(0.06)
    assert found["p_value"] == pytest.approx(binomtest(2, 10).pvalue)
    middle, spread = 6 / 102, np.sqrt((12 / 102 - (6 / 102) ** 2) / 102)
    assert found["interval"] == pytest.approx([middle - 1.959964 * spread, middle + 1.959964 * spread], abs=1e-6)


def test_equal_classifiers_differ_by_nothing_but_not_certainly() -> None:
    same = np.array([True] * 5 + [False] * 5)
    found = paired(same, same)
    assert found["difference"] == 0
    assert found["p_value"] == 1
    assert found["interval"][0] < -0.1 < 0.1 < found["interval"][1]


def test_the_sign_test_is_finite_for_ten_thousand_images() -> None:
    first = np.zeros(10_000, np.bool_)
    first[:6_000] = True
    found = paired(first, ~first)
    assert 0 <= found["p_value"] < 1e-80


def test_the_paired_interval_covers_the_true_difference() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        shared = draw.random(200)
        found = paired(shared < 0.5, (shared < 0.4) | (draw.random(200) < 0.05))
        truth = 0.5 - (0.4 + 0.6 * 0.05)
        hits += found["interval"][0] <= truth <= found["interval"][1]
    assert 0.93 <= hits / 400 <= 0.99


def test_comparison_at_the_coverage_of_the_other() -> None:
    vote, control = golden(5), golden(0)
    matched = at_coverage_of(vote, control)
    assert matched["clean"].accepted.sum() == vote["clean"].accepted.sum() == 8
    found = compare(LABELS, vote, matched)
    assert {found[name]["difference"] for name in ("coverage", "fc", "fw", "robust_with_detection")} == {0}
    found = compare(LABELS, vote, control)
    assert (found["fc"]["first"], found["fc"]["second"]) == pytest.approx((0.3, 0.4))
    assert (found["fw"]["difference"], found["coverage"]["difference"]) == pytest.approx((-0.1, -0.2))


def test_the_figures_need_no_torch() -> None:
    modules = "flss_edge.robustness." + ", flss_edge.robustness.".join(
        ("metrics", "risk_coverage", "comparison", "published", "report", "plots", "gallery", "results")
    )
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
