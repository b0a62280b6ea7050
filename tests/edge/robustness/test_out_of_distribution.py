"""Rejection of unknown classes: against counting by hand, and against what the intervals promise."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flss_edge.classifiers.answers import Answers
from flss_edge.data import CIFAR10_CLASSES, ImageSet
from flss_edge.robustness.out_of_distribution import NEAR_CIFAR10, auroc, out_of_distribution, outside_images
from flss_runtime.errors import DataError


def answers(scores: list[float], threshold: float = 0.0) -> Answers:
    values = np.asarray(scores, np.float64)
    return Answers(np.zeros(len(values), np.int64), values, values >= threshold)


def counted(inside: list[float], outside: list[float]) -> float:
    """Every pair, one by one."""
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside]
    return sum(points) / len(points)


def test_example_counted_by_hand() -> None:
    inside, outside = answers([90, 80, 80, 30], threshold=50), answers([80, 20, 60], threshold=50)
    result = out_of_distribution(inside, outside)
    # 90 beats 3; 80 beats 2 and ties 1, twice; 30 beats 1: 3 + 2.5 + 2.5 + 1 of 12
    assert result.auroc == 9 / 12
    assert (result.inside_accepted["count"], result.inside_accepted["n"]) == (3, 4)
    assert (result.outside_accepted["count"], result.outside_accepted["n"]) == (2, 3)
    assert result.outside_accepted["share"] == 2 / 3
    assert result.outside_accepted["interval"] == pytest.approx(list(stats.binomtest(2, 3).proportion_ci()))
    assert result.threshold == 30  # three of four inside scores would be 75 % only
    assert (result.false_positives["count"], result.false_positives["n"]) == (2, 3)
    assert json.loads(json.dumps(result.to_json()))["false_positives"]["interval"][1] > 2 / 3


scores = st.lists(st.integers(0, 6).map(float) | st.floats(-1e300, 1e300) | st.just(-np.inf), min_size=2, max_size=30)


@given(inside=scores, outside=scores)
def test_area_is_the_share_of_pairs_in_order(inside: list[float], outside: list[float]) -> None:
    area, (low, high) = auroc(np.asarray(inside), np.asarray(outside))
    assert area == pytest.approx(counted(inside, outside), abs=1e-12)
    assert 0 <= low <= area <= high <= 1 and low < high
    reverse, (below, above) = auroc(np.asarray(outside), np.asarray(inside))
    assert (reverse, below, above) == pytest.approx((1 - area, 1 - high, 1 - low), abs=1e-12)


@given(inside=scores, outside=scores)
def test_threshold_is_the_highest_that_keeps_95_percent(inside: list[float], outside: list[float]) -> None:
    result = out_of_distribution(answers(inside), answers(outside))
    reached = [t for t in inside if 100 * sum(score >= t for score in inside) >= 95 * len(inside)]
    assert result.threshold == max(reached)
    assert result.false_positives["count"] == sum(score >= result.threshold for score in outside)


@pytest.mark.parametrize("n", [20, 60, 100, 1000])
def test_95_percent_of_round_numbers_is_exact(n: int) -> None:
    result = out_of_distribution(answers([float(k) for k in range(n)]), answers([0.0, 1.0]))
    assert sum(k >= result.threshold for k in range(n)) * 100 == 95 * n


@settings(max_examples=20)
@given(inside=st.lists(st.integers(0, 9), min_size=3, max_size=12), outside=st.lists(st.integers(0, 9), min_size=3))
def test_interval_is_delongs_written_out(inside: list[int], outside: list[int]) -> None:
    points = np.asarray([[(a > b) + 0.5 * (a == b) for b in outside] for a in inside])  # (n, m)
    variance = points.mean(axis=1).var(ddof=1) / len(inside) + points.mean(axis=0).var(ddof=1) / len(outside)
    if variance < 1e-12:
        return
    _, (low, high) = auroc(np.asarray(inside, float), np.asarray(outside, float))
    margin = stats.norm.ppf(0.975) * np.sqrt(variance)
    assert (low, high) == pytest.approx((max(0, points.mean() - margin), min(1, points.mean() + margin)), abs=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal scores one apart: the true area is Phi(1 / sqrt 2)."""
    random = np.random.default_rng(0)
    truth, covered, runs = stats.norm.cdf(1 / np.sqrt(2)), 0, 400
    for _ in range(runs):
        _, (low, high) = auroc(random.normal(1, 1, 80), random.normal(0, 1, 60))
        covered += low <= truth <= high
    # 95 % of 400 runs is 380, with a standard deviation of 4.4
    assert 362 <= covered <= 398


def test_perfect_separation_has_an_interval_that_depends_on_n() -> None:
    few = auroc(np.ones(5), np.zeros(50))
    many = auroc(np.ones(500), np.zeros(500))
    assert few[0] == many[0] == 1
    assert few[1] == pytest.approx((0.025 ** (1 / 5), 1))
    assert many[1] == pytest.approx((0.025 ** (1 / 500), 1))
    assert auroc(np.zeros(9), np.zeros(9))[0] == 0.5


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0, 2.0], "0 inside images"),
        ([1.0, 2.0], [1.0], "1 outside images"),
        ([1.0, np.nan], [1.0, 2.0], "1 inside scores are not a number"),
    ],
)
def test_scores_that_say_nothing_are_refused(inside: list[float], outside: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        out_of_distribution(answers(inside), answers(outside))


def pictures(names: tuple[str, ...], size: int = 8, each: int = 2, source: str = "other:test") -> ImageSet:
    labels = np.repeat(np.arange(len(names)), each)
    random = np.random.default_rng(0)
    return ImageSet(random.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8), labels, names, source)


INSIDE = pictures(("cat", "dog"), source="mine:test")


def test_classes_are_left_out_by_name() -> None:
    images = pictures(("apple", "lion", "wolf", "rose"))
    kept = outside_images(images, INSIDE, leave_out=("wolf", "lion"))
    assert {images.class_names[label] for label in kept.labels} == {"apple", "rose"}
    np.testing.assert_array_equal(kept.images, images.images[[0, 1, 6, 7]])
    assert kept.source == "other:test:without lion, wolf"
    assert outside_images(images, INSIDE).source == "other:test"
    assert len(outside_images(images, INSIDE)) == 8


@pytest.mark.parametrize(
    ("images", "leave_out", "message"),
    [
        (pictures(("apple", "rose"), size=16), (), r"are 16 x 16, those of mine:test 8 x 8"),
        (pictures(("apple", "rose")), ("tulip",), "no class 'tulip'"),
        (pictures(("apple", "dog")), (), "own class 'dog'"),
        (pictures(("apple", "rose")), ("apple", "rose"), "no image of other:test is left"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: ImageSet, leave_out: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        outside_images(images, INSIDE, leave_out=leave_out)


def test_a_class_of_the_same_name_may_be_left_out() -> None:
    assert len(outside_images(pictures(("apple", "dog")), INSIDE, leave_out=("dog",))) == 2


def test_near_classes_are_of_the_two_data_sets() -> None:
    """CIFAR-100's spelling, as in the file that comes with it."""
    cifar100_superclasses = {
        "vehicles 1": {"bicycle", "bus", "motorcycle", "pickup_truck", "train"},
        "vehicles 2": {"lawn_mower", "rocket", "streetcar", "tank", "tractor"},
        "large carnivores": {"bear", "leopard", "lion", "tiger", "wolf"},
        "medium-sized mammals": {"fox", "porcupine", "possum", "raccoon", "skunk"},
    }
    assert set(NEAR_CIFAR10) <= set().union(*cifar100_superclasses.values())
    assert set(NEAR_CIFAR10.values()) <= set(CIFAR10_CLASSES)


def test_needs_no_torch() -> None:
    """Replaying a bundle's answers happens on the robot."""
    code = "import sys; sys.modules['torch'] = None; import flss_edge.robustness.out_of_distribution"
    subprocess.run([sys.executable, "-c", code], check=True)
