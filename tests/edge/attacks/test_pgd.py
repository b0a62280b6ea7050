"""FGSM and the PGD attacks: the worst point of a linear model, their properties, schedules and passes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.attacks.objectives import margin
from flss_edge.attacks.pgd import falling_sizes, fgsm, pgd_attack, pgd_cw, pgd_restarts

from . import attack_cases
from .attack_cases import Case, cases, curved, draws_for, images_with_corners, passes_of
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd_attack": partial(pgd_attack, steps=12),
    "pgd_cw": partial(pgd_cw, steps=12),
    "pgd_restarts": partial(pgd_restarts, steps=12, restarts=3),
}


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_reaches_the_worst_point_of_a_linear_model(attack: Attack, classes: int) -> None:
    attack_cases.assert_reaches_the_worst_point(attack, classes)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(attack: Attack, case: Case) -> None:
    attack_cases.assert_inside(attack, case)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_attacks_each_image_on_its_own(attack: Attack) -> None:
    attack_cases.assert_each_image_on_its_own(attack)


@pytest.mark.parametrize("name", SHORT)
def test_the_draws_decide(name: str) -> None:
    attack_cases.assert_repeats(SHORT[name], random=name != "fgsm")


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_averages_over_draws(attack: Attack) -> None:
    attack_cases.assert_averages_draws(attack)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("attack", [pgd_attack, pgd_cw, pgd_restarts])
def test_passes(attack: Attack, steps: int) -> None:
    assert passes_of(partial(attack, steps=steps)) == passes_by_hand(attack, steps=steps, restarts=10)


def test_passes_of_fgsm() -> None:
    assert passes_of(fgsm) == passes_by_hand(fgsm)


def test_the_size_falls_to_a_tenth_at_half_and_at_three_quarters() -> None:
    sizes = falling_sizes(16 / 255, 100, (50, 75))
    assert sizes == pytest.approx([16 / 255] * 50 + [1.6 / 255] * 25 + [0.16 / 255] * 25)
    assert falling_sizes(1.0, 7, (60, 85)) == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.01])
    assert falling_sizes(1.0, 0, (50, 75)) == []


def places_of(attack: Attack, epsilon: float) -> Tensor:
    """Where one pixel stands at every evaluation, and at the end, relative to the image; it wants to go up."""
    images, labels = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), torch.tensor([0])
    seen: list[Tensor] = []

    def victim(x: Tensor) -> Tensor:
        seen.append(x.detach()[0, 0, 0, 0] - 0.5)
        total = x.sum(dim=(1, 2, 3))
        return torch.stack([-total, total], dim=1) / 100

    found = attack(victim, images, labels, epsilon=epsilon, draws=draws_for(1))
    return torch.stack([*seen, found[0, 0, 0, 0] - 0.5]) / epsilon


@pytest.mark.parametrize("epsilon", [8 / 255, 0.01])
def test_published_step_sizes_scale_with_the_radius(epsilon: float) -> None:
    places = places_of(partial(pgd_attack, steps=2), epsilon)
    start = 2 * float(draws_for(1).uniform("start", 3, 4, 4)[0, 0, 0, 0]) - 1
    assert places.tolist() == pytest.approx([start, min(start + 0.25, 1), min(start + 0.5, 1)])
    assert places_of(partial(pgd_attack, steps=1, step_size=epsilon / 100), epsilon)[1] == pytest.approx(start + 0.01)
    assert places_of(partial(pgd_cw, steps=1), epsilon)[1] == pytest.approx(1)
    assert places_of(fgsm, epsilon).tolist() == pytest.approx([0, 1])


def test_the_margin_attack_takes_its_steps_by_the_schedule() -> None:
    places = places_of(partial(pgd_cw, step_size=0.0005), epsilon=0.1)
    assert float(places[-1]) < 0.99  # never held by the ball
    assert places.diff().tolist() == pytest.approx([0.005] * 50 + [0.0005] * 25 + [0.00005] * 25)


def test_no_step_returns_the_start() -> None:
    images, labels = images_with_corners(4), torch.arange(4)
    numbers = draws_for(4).uniform("start", 3, 4, 4)
    start = (images + 0.1 * (2 * numbers - 1)).clamp(0, 1)
    for attack in (pgd_attack, pgd_cw):
        found = attack(curved(), images, labels, epsilon=0.1, draws=draws_for(4), steps=0)
        torch.testing.assert_close(found, start, rtol=0, atol=1e-12)


def test_restarts_keep_the_largest_margin_of_each_image() -> None:
    """Never below any single restart, and not always the same one."""
    victim, images, labels = curved(6), images_with_corners(40), torch.arange(40) % 6
    several = {
        count: margin(
            victim(pgd_restarts(victim, images, labels, epsilon=0.2, draws=draws_for(40), steps=2, restarts=count)),
            labels,
        )
        for count in (1, 2, 4)
    }
    assert bool((several[2] >= several[1]).all()) and bool((several[4] >= several[2]).all())
    improved = several[2] > several[1]
    assert bool(improved.any()) and not bool(improved.all())
