"""Planted adversarial examples: found through honest gradients, missed through masked ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import Tensor

from flss_edge.attacks import Victim
from flss_edge.attacks.apgd import apgd_ce
from flss_edge.robustness.planted import found_by, plant, planted_are_found
from tests.edge.attacks.linear_votes import grey_images, many_classes

from .broken_models import COUNT, EPSILON, backwards, draws_of, features_of, quantised


@pytest.fixture(scope="module")
def honest() -> Victim:
    return many_classes(4, 8)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return grey_images(COUNT)


def test_planted_examples_are_found_through_honest_features(honest: Victim, images: Tensor) -> None:
    attack = partial(apgd_ce, steps=30)
    check = planted_are_found(attack, features_of(honest), images, epsilon=EPSILON, draws=draws_of("planted"))
    assert check.passed, check.text
    assert check.values["planted"] == check.values["found"] == COUNT
    assert check.values["found_by_random_search"] < COUNT / 3


def test_planted_examples_are_there_and_the_image_itself_is_none(honest: Victim, images: Tensor) -> None:
    draws = draws_of("planted")
    planted = plant(features_of(honest), images, epsilon=EPSILON, draws=draws)
    corner = (images + EPSILON * (2 * draws.uniform("planted", 3, 4, 4) - 1).sign()).clamp(0, 1)
    assert bool(planted.found(corner).all()) and not bool(planted.found(images).any())
    inner = (images + EPSILON * (2 * draws.uniform("inner 7", 3, 4, 4) - 1)).clamp(0, 1)
    assert not bool(planted.found(inner).any())


@pytest.mark.parametrize("broken", [quantised, backwards], ids=lambda each: each.__name__)
def test_planted_examples_are_missed_where_gradients_are_masked(
    broken: Callable[[Victim], Victim], honest: Victim, images: Tensor
) -> None:
    features = broken(features_of(honest))
    check = planted_are_found(partial(apgd_ce, steps=30), features, images, epsilon=EPSILON, draws=draws_of("planted"))
    assert check.passed is False and check.values["planted"] == COUNT and check.values["found"] < COUNT / 2
    assert check.advice


def test_an_attack_that_does_nothing_finds_nothing(honest: Victim, images: Tensor) -> None:
    planted = plant(features_of(honest), images, epsilon=EPSILON, draws=draws_of("planted"))
    idle = lambda victim, images, labels, epsilon, draws: images  # noqa: E731
    by_attack, _ = found_by(idle, planted, images, epsilon=EPSILON, draws=draws_of("planted"))
    assert not bool(by_attack.any())


def test_planted_examples_that_chance_finds_show_nothing(images: Tensor) -> None:
    """A single feature: half of all corners lie where one was planted."""

    def brightness(points: Tensor) -> Tensor:
        return points[:, :1, 0, 0].sign() * points[:, :1, 0, 0].square()

    check = planted_are_found(
        partial(apgd_ce, steps=30), brightness, images, epsilon=EPSILON, draws=draws_of("planted")
    )
    assert check.passed is None and check.values["found_by_random_search"] > COUNT / 2
    constant = planted_are_found(
        partial(apgd_ce, steps=3), lambda points: 0 * brightness(points), images, epsilon=EPSILON, draws=draws_of("p")
    )
    assert constant.passed is None and constant.values["planted"] == 0
