"""CCAT's adaptive attack on any victim: its starts, what it keeps, its passes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flss_edge.attacks import Attack, Victim
from flss_edge.attacks.confidence import confidence_ce, confidence_wrong
from flss_edge.attacks.objectives import cross_entropy, per_image
from flss_edge.confidence_attack import confidence_attack, log_wrong_confidence, uniform_norm_start

from . import attack_cases
from .attack_cases import Case, cases, curved, draws_for, images_with_corners, passes_of
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "confidence_wrong": partial(confidence_wrong, steps=8, step_size=0.01, restarts=2),
    "confidence_ce": partial(confidence_ce, steps=5, restarts=2),
}


def ends(victim: Victim, images: Tensor, labels: Tensor, attack: Attack, starts: range) -> list[Tensor]:
    """Where confidence_attack gets to from the image (-1) and from the random starts."""
    objective, step_size, steps, factor = {
        "confidence_wrong": (log_wrong_confidence(victim, labels), 0.01, 8, 1.1),
        "confidence_ce": (per_image(victim, cross_entropy, labels), 0.05, 5, 1.25),
    }[attack]
    places = {number: uniform_norm_start(images, draws_for(len(images)), 0.1, f"start {number}") for number in starts}
    return [
        confidence_attack(
            objective, images, places.get(number, images), epsilon=0.1, step_size=step_size, steps=steps, factor=factor
        )
        for number in (-1, *starts)
    ]


@pytest.mark.parametrize("name", SHORT)
def test_keeps_the_end_with_the_surest_wrong_class(name: str) -> None:
    """Of the random starts' and of the image's own; the cross-entropy's too, though another one may raise it more."""
    victim, images, labels = curved(), images_with_corners(24), torch.arange(24) % 4
    sure = log_wrong_confidence(victim, labels)
    candidates = torch.stack(ends(victim, images, labels, name, range(4)))
    values = torch.stack([sure(x) for x in candidates])
    assert len(values.argmax(dim=0).unique()) >= 4  # nearly every start is the best one somewhere
    for restarts in (0, 1, 4):
        found = partial(SHORT[name], restarts=restarts)(victim, images, labels, epsilon=0.1, draws=draws_for(24))
        best = values[: restarts + 1].argmax(dim=0)
        assert torch.equal(found, candidates[best, torch.arange(24)])


def test_a_random_victims_probabilities_are_averaged() -> None:
    """Not its logits, where one draw can outvote all others."""
    images, labels = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), torch.tensor([0])

    def victim(x: Tensor) -> Tensor:
        """Two classes: one draw is certain of the wrong one, most in the dark; the other thinks so in the light."""
        light = x.mean(dim=(1, 2, 3)) - 0.5
        margins = torch.stack([20 - 40 * light, 10 * light])
        return torch.stack([0 * margins, margins], dim=-1)

    found = confidence_wrong(victim, images, labels, epsilon=0.2, draws=draws_for(1), steps=300, restarts=0)
    torch.testing.assert_close(found, images + 0.2, rtol=0, atol=1e-3)
    averaged = confidence_wrong(
        lambda x: victim(x).mean(dim=0), images, labels, epsilon=0.2, draws=draws_for(1), steps=300, restarts=0
    )
    torch.testing.assert_close(averaged, images - 0.2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("attack", [confidence_wrong, confidence_ce])
def test_reaches_the_worst_point_of_a_linear_model(attack: Attack, classes: int) -> None:
    short = partial(attack, steps=100, step_size=0.02, restarts=1)
    attack_cases.assert_reaches_the_worst_point(short, classes)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(attack: Attack, case: Case) -> None:
    attack_cases.assert_inside(attack, case)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_attacks_each_image_on_its_own(attack: Attack) -> None:
    attack_cases.assert_each_image_on_its_own(attack)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_the_draws_decide(attack: Attack) -> None:
    attack_cases.assert_repeats(attack)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_averages_over_draws(attack: Attack) -> None:
    attack_cases.assert_averages_draws(attack)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("attack", "restarts"), [(confidence_wrong, 10), (confidence_ce, 50)])
def test_passes(attack: Attack, restarts: int, steps: int) -> None:
    """With the published number of restarts."""
    assert passes_of(partial(attack, steps=steps)) == passes_by_hand(attack, steps=steps, restarts=restarts)
