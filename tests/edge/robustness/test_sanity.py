"""The checks pass on honest models, and each of them fails on a model that was built to be caught by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from flss_edge.attacks import PlannedAttack, Victim
from flss_edge.attacks.apgd import apgd_ce
from flss_edge.attacks.suites import unperturbed
from flss_edge.classifiers.answers import Answers
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote
from flss_edge.minibatch import Draws
from flss_edge.robustness.check import Check
from flss_edge.robustness.sanity import (
    accuracy_falls,
    adaptive_is_stronger,
    gradients_are_there,
    more_samples,
    not_weaker,
    repeats_itself,
    run_checks,
)
from tests.edge.attacks.linear_votes import grey_images, many_classes

from .broken_models import (
    COUNT,
    EPSILON,
    Reversed,
    backwards,
    draws_of,
    features_of,
    image_set,
    not_a_number,
    quantised,
    saturated,
)


@pytest.fixture(scope="module")
def honest() -> Victim:
    return many_classes(4, 8)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return grey_images(COUNT)


@pytest.fixture(scope="module")
def labels(honest: Victim, images: Tensor) -> Tensor:
    """The model is right about nine of ten images."""
    with torch.no_grad():
        answers = honest(images).argmax(dim=1)
    return torch.where(torch.arange(COUNT) % 10 == 0, (answers + 1) % 4, answers)


def test_accuracy_falls_on_an_honest_model(honest: Victim, images: Tensor, labels: Tensor) -> None:
    check = accuracy_falls(honest, images, labels, draws=draws_of("epsilon"))
    assert check.passed and not check.advice
    accuracies = check.values["accuracies"]
    assert accuracies[0] == pytest.approx(0.9) and accuracies[-1] == 0
    assert accuracies == sorted(accuracies, reverse=True)
    assert "90.0% at 0/255" in check.text and "0.0% at 128/255" in check.text


@pytest.mark.parametrize("broken", [quantised, backwards], ids=lambda each: each.__name__)
def test_accuracy_that_does_not_reach_zero_fails(
    broken: Callable[[Victim], Victim], honest: Victim, images: Tensor, labels: Tensor
) -> None:
    check = accuracy_falls(broken(honest), images, labels, draws=draws_of("epsilon"))
    assert check.passed is False and check.values["accuracies"][-1] > 0.3
    assert "masking" in check.advice


def test_accuracy_that_rises_fails_even_where_it_ends_at_zero(images: Tensor) -> None:
    """A flat model that is wrong near a lattice, where the clean images lie, and again at the ends of the pixel range.

    The attack's random start already puts the answer right, and there is nothing to climb back.
    """

    def model(points: Tensor) -> Tensor:
        off_lattice = (points - (points * 10).round() / 10).abs().mean(dim=(1, 2, 3)) > 0.012
        at_an_end = ((points == 0) | (points == 1)).any(dim=3).any(dim=2).any(dim=1)
        right = (off_lattice & ~at_an_end).to(points)
        return torch.stack([right, 1 - right], dim=1) + 0 * points.sum(dim=(1, 2, 3))[:, None]

    labels, lattice = torch.zeros(COUNT, dtype=torch.int64), (images * 10).round() / 10
    check = accuracy_falls(model, lattice, labels, draws=draws_of("epsilon"))
    accuracies = check.values["accuracies"]
    assert accuracies[0] == 0 and max(accuracies) > 0.9 and accuracies[-1] == 0
    assert check.passed is False and check.values["chance_of_rise"] < 0.01


@pytest.mark.parametrize(
    ("strong", "weak", "both"), [(0, 0, 5), (3, 3, 0), (2, 9, 4), (0, 6, 0), (0, 7, 9), (20, 1, 3)]
)
def test_the_comparison_is_the_exact_sign_test(strong: int, weak: int, both: int) -> None:
    by_strong = np.array([1] * strong + [0] * weak + [1] * both + [0] * 3, np.bool_)
    by_weak = np.array([0] * strong + [1] * weak + [1] * both + [0] * 3, np.bool_)
    check = not_weaker("name", "A", by_strong, "B", by_weak, "do this")
    expected = binomtest(weak, strong + weak, 0.5, "greater").pvalue if strong + weak else 1.0
    assert check.values["chance"] == pytest.approx(expected)
    assert check.passed == (expected >= 0.01)
    assert check.advice == ("" if check.passed else "do this")
    assert (check.values["only_by_strong"], check.values["only_by_weak"]) == (strong, weak)
    assert f"{weak} fall to B only" in check.text


def test_gradients(honest: Victim, images: Tensor, labels: Tensor) -> None:
    check = partial(gradients_are_there, images=images, labels=labels, epsilon=EPSILON, draws=draws_of("gradients"))
    assert check(honest).passed
    masked = check(quantised(honest))
    assert masked.passed is False and masked.values["zero_margin_clean"] == 1
    flat = check(saturated(honest))
    assert flat.passed is False and "margin" in flat.advice
    assert flat.values["zero_cross_entropy_clean"] > 0.7 and flat.values["zero_margin_clean"] == 0
    broken = check(not_a_number(honest))
    assert broken.passed is False and broken.values["not_finite_margin_in_ball"] == 1


@dataclass(frozen=True)
class Astray:
    """A random classifier whose draws point the right way one by one and the wrong way on average."""

    network: Victim
    name: str = "astray"

    def sampled_logits(self, images: Tensor, samples: int, draws: Draws, name: str) -> Tensor:
        noise = 1e-3 * draws.normal(name, samples, 1).transpose(0, 1)
        sent = images if samples == 1 else Reversed.apply(images)
        return self.network(sent)[None] + noise[..., None] * torch.ones(4)

    def answer(self, images: Tensor, first: int) -> Answers:
        with torch.no_grad():
            labels = self.network(images).argmax(dim=1).numpy()
        return Answers(labels, np.ones(len(labels)), np.ones(len(labels), np.bool_))


def test_more_samples(honest: Victim, images: Tensor, labels: Tensor) -> None:
    settings = {"epsilon": EPSILON, "draws_of": draws_of, "first": 0}
    check = more_samples(Vote(honest), images, labels, **settings)  # type: ignore[arg-type]
    assert check is not None and check.passed and check.values["fooled_by_strong"] > 0
    for kind in (Confidence(honest), Vote(honest, noise="fixed")):  # type: ignore[arg-type]
        assert more_samples(kind, images, labels, **settings) is None  # type: ignore[arg-type]
    check = more_samples(Astray(honest), images, labels, **settings)  # type: ignore[arg-type]
    assert check is not None and check.passed is False and "draws" in check.advice


@dataclass(frozen=True)
class Alternating:
    """Always says the same class, and rejects every second batch."""

    name: str = "alternating"

    def answer(self, images: Tensor, first: int) -> Answers:
        accepted = np.full(len(images), first // len(images) % 2 == 0)
        return Answers(np.zeros(len(images), np.int64), np.ones(len(images)), accepted)


def test_repeats(honest: Victim, images: Tensor) -> None:
    fixed = repeats_itself(Vote(honest, "fixed", noise="fixed"), images, first=0)  # type: ignore[arg-type]
    assert fixed.passed and fixed.values["flips"] == 0
    vote = Vote(honest, num_samples=9, threshold=6, seed=4)  # type: ignore[arg-type]
    check = repeats_itself(vote, images, first=50, passes=3)
    assert check.passed is None and "persistent" in check.advice
    passes = [vote.answer(images, 50 + number * COUNT) for number in range(3)]
    decisions = [np.where(each.accepted, each.labels, -1) for each in passes]
    flips = [np.mean(decisions[0] != decisions[1]), np.mean(decisions[1] != decisions[2])]
    assert 0 < check.values["flips"] == pytest.approx(np.mean(flips))
    assert check.values["changed"] >= max(flips)
    alternating = repeats_itself(Alternating(), images, first=0)  # type: ignore[arg-type]
    assert alternating.passed is None and alternating.values["flips"] == 1


def all_checks(victim: Victim, images: Tensor, labels: Tensor, **settings: object) -> dict[str, Check]:
    network = many_classes(4, 8)
    classifiers = [Vote(network, num_samples=20, threshold=8), Confidence(network, "no-sampling")]
    arguments: dict[str, object] = {"epsilon": EPSILON, "draws_of": draws_of, "queries": 200, **settings}
    checks = run_checks(classifiers, victim, images, labels, **arguments)  # type: ignore[arg-type]
    return {check.name: check for check in checks}


def test_all_checks_on_an_honest_model(honest: Victim, images: Tensor, labels: Tensor) -> None:
    evaluated = image_set(0, 20, "test")
    checks = all_checks(
        honest,
        images,
        labels,
        features=features_of(honest),
        evaluated=evaluated,
        known={"calibration": image_set(20, 20, "x")},
        transferred={"elsewhere": images},
    )
    assert list(checks) == [
        "accuracy against epsilon",
        "more steps",
        "white box against Square",
        "white box against transfer from elsewhere",
        "gradients",
        "more draws of vote",
        "repeats of vote",
        "repeats of no-sampling",
        "planted examples",
        "evaluated data is new",
    ]
    assert {name: check.passed for name, check in checks.items() if not check.passed} == {"repeats of vote": None}
    assert all(check.text for check in checks.values())


@pytest.mark.parametrize("broken", [quantised, backwards], ids=lambda each: each.__name__)
def test_a_black_box_that_beats_the_white_box_is_an_alarm(
    broken: Callable[[Victim], Victim], honest: Victim, images: Tensor, labels: Tensor
) -> None:
    """Square needs no gradient; and what fools the honest network fools the masked one too."""
    draws = draws_of("transfer")
    fooling = apgd_ce(honest, images, labels, epsilon=EPSILON, draws=draws)
    checks = all_checks(broken(honest), images, labels, epsilon=EPSILON, transferred={"the network": fooling})
    for name in ("white box against Square", "white box against transfer from the network"):
        assert checks[name].passed is False and checks[name].values["only_by_weak"] >= 7
    assert "planted examples" not in checks and "evaluated data is new" not in checks


def planned(name: str, victim: str = "", epsilon: float = EPSILON, bounded: bool = True) -> PlannedAttack:
    return PlannedAttack(name, unperturbed, epsilon, victim, bounded=bounded)


@pytest.mark.parametrize(("found", "passed"), [(range(30), True), (range(16, 30), False)])
def test_an_attack_that_knows_the_vote_finds_no_less_than_one_that_does_not(found: range, passed: bool) -> None:
    """Of 40 images the naive attack fools the first 30; others fool fewer, or do not count."""

    def fooled(images: range) -> Answers:
        hit = np.isin(np.arange(40), images)
        return Answers(np.where(hit, 1, 0), np.ones(40), np.ones(40, np.bool_))

    plan = [
        planned("clean", epsilon=0.0),
        *(planned("pgd"), planned("square")),
        planned("noise-5", bounded=False),
        *(planned("vote:accepted-wrong", "vote"), planned("vote:accepted-wrong-closed", "vote")),
        planned("vote:rejection", "vote"),
        planned("pgd@16", epsilon=2 * EPSILON),
    ]
    sets = (range(0), range(30), range(5), range(40), found, range(15), range(40), range(40))
    answers = {attack.name: fooled(images) for attack, images in zip(plan, sets, strict=True)}
    (check,) = adaptive_is_stronger(np.zeros(40, np.int64), {"vote": answers}, plan)
    assert check.passed is passed and check.name == "aim at vote"
    assert check.values["weak"] == "pgd" and check.values["only_by_weak"] == (0 if passed else 15)
    assert check.values["chance"] == pytest.approx(1.0 if passed else 2 * 2**-15), "the best of two others"
    declined = {name: Answers(each.labels, each.scores, np.zeros(40, np.bool_)) for name, each in answers.items()}
    (nothing,) = adaptive_is_stronger(np.zeros(40, np.int64), {"vote": declined}, plan)
    assert nothing.passed and nothing.values["fooled_by_weak"] == 0, "what is declined fools nobody"
    assert adaptive_is_stronger(np.zeros(40, np.int64), {"vote": answers}, plan[:3]) == []
