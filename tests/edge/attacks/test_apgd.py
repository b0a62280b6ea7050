"""Auto-PGD: checkpoints, halving and restarts by hand, what it keeps, the linear oracle, properties and passes."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.attacks.apgd import (
    StepSizes,
    apgd_ce,
    apgd_dlr,
    apgd_targeted,
    ascend,
    checkpoints,
    full_uniform_start,
)
from flss_edge.attacks.objectives import cross_entropy, margin, per_image

from . import attack_cases
from .attack_cases import Case, cases, curved, draws_for, images_with_corners, passes_of
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "apgd_ce": partial(apgd_ce, steps=12),
    "apgd_dlr": partial(apgd_dlr, steps=12),
    "apgd_targeted": partial(apgd_targeted, steps=12, targets=3),
}


def test_checkpoints_of_a_hundred_steps() -> None:
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_checkpoints_of_other_numbers_of_steps() -> None:
    assert list(checkpoints(1000)) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert list(checkpoints(50)) == [11, 21, 30, 38, 45]  # 11, 10, 9, 8 and 7 steps; six more would be 51
    assert list(checkpoints(10)) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert list(checkpoints(1)) == [1]
    assert list(checkpoints(0)) == []


UNIT = 1 / 16


def test_a_trace_by_hand() -> None:
    """Over a peak at 0.5, in sixteenths from it: ball 4, first size 8; ten steps are looked at after 2, 3, 4, ...

    1: from 1 down by 8, held at the ball's -4.          2: -4 + .75 * 8 + .25 * (-4 - 1) = .75, the best so far.
       One rise of two: size 4, from .75, with -4 before. 3: .75 - .75 * 4 + .25 * (.75 + 4) = -1.0625, lower.
       Size 2, back to .75.                              4: .75 - .75 * 2 = -.75, equal, no rise. Size 1, back.
    5: .75 - .75 = 0, the peak. One rise of one: nothing is halved.
    6: no slope; 0 + .25 * (0 - .75) = -.1875, lower: back to 0.        7 and on: 0.
    """
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    places: list[float] = []

    def objective(x: Tensor) -> Tensor:
        places.append(float((x.detach()[0, 0, 0, 0] - 0.5) / UNIT))
        return -(x - 0.5).square().sum(dim=(1, 2, 3))

    found = ascend(objective, images, images + UNIT, epsilon=4 * UNIT, steps=10)
    assert places == [1, -4, 0.75, -1.0625, -0.75, 0, -0.1875, 0, 0, 0, 0]
    assert torch.equal(found, images)


def test_step_sizes_by_hand() -> None:
    """Checkpoints after 2, 3 and 4 of ten steps; four images.

    A: rises always.                                   B: never rises: halved every time.
    C: rises, but its best stays: halved at 2 without a rise to blame, spared at 3 because of that, halved at 4.
    D: one rise of two: halved at 2; rises at 3 and 4 to a new best: spared.
    """
    schedule = StepSizes(torch.zeros(4), size=8.0, steps=10, rho=0.75)
    rows = [  # rose, best
        ([True, False, True, False], [1.0, 0.0, 0.0, 0.0]),
        ([True, False, True, True], [2.0, 0.0, 0.0, 0.0]),
        ([True, False, True, True], [3.0, 0.0, 0.0, 1.0]),
        ([True, False, True, True], [4.0, 0.0, 0.0, 2.0]),
    ]
    backs = [schedule.after(n, rose=torch.tensor(r), best=torch.tensor(b)) for n, (r, b) in enumerate(rows, start=1)]
    assert backs[0] is None
    assert [back.tolist() for back in backs[1:] if back is not None] == [
        [False, True, True, True],
        [False, True, False, False],
        [False, True, True, False],
    ]
    assert schedule.sizes.tolist() == [8, 1, 2, 4]


def test_just_rho_of_the_steps_is_too_few() -> None:
    """Twelve rises in sixteen steps, the interval from 41 to 57, and a new best: halved, as the released code does."""
    for rises, expected in ((12, 4.0), (13, 8.0)):
        schedule = StepSizes(torch.zeros(1), size=8.0, steps=100, rho=0.75)
        for step in range(1, 58):
            rose = step <= 41 or step - 41 <= rises
            schedule.after(step, rose=torch.tensor([rose]), best=torch.tensor([float(step)]))
        assert schedule.sizes.tolist() == [expected]


def test_the_start_fills_the_ball() -> None:
    images = torch.full((20, 3, 8, 8), 0.5, dtype=torch.float64)
    noise = (full_uniform_start(images, draws_for(20), 0.1) - images) / 0.1
    assert noise.abs().amax(dim=(1, 2, 3)).tolist() == pytest.approx([1.0] * 20)
    assert float(noise.std()) == pytest.approx(1 / 3**0.5, rel=0.05)
    assert abs(float(noise.mean())) < 0.02


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 25))
def test_returns_the_best_of_what_it_saw(seed: int, steps: int) -> None:
    """And of the successes the best, where there was one, even if another iterate had a higher objective."""
    victim, images = curved(), images_with_corners(4, seed=seed)
    labels, start = torch.arange(4), images_with_corners(4, seed=seed + 1)
    values: list[Tensor] = []
    kept: list[Tensor] = []

    def objective(x: Tensor) -> Tensor:
        value = per_image(victim, cross_entropy, labels)(x)
        values.append(value.detach())
        return value

    def keep(x: Tensor) -> Tensor:
        kept.append(x.sum(dim=(1, 2, 3)).mul(1e3).long() % 3 == 0)  # has nothing to do with the objective
        return kept[-1]

    score = per_image(victim, cross_entropy, labels)
    found = ascend(objective, images, start, epsilon=0.1, steps=steps)
    seen = torch.stack(values)
    assert len(seen) == steps + 1
    torch.testing.assert_close(score(found), seen.max(dim=0).values)
    values.clear()
    preferred = ascend(objective, images, start, epsilon=0.1, steps=steps, keep=keep)
    seen, successes = torch.stack(values), torch.stack(kept)
    of_successes = torch.where(successes | ~successes.any(dim=0), seen, -torch.inf).max(dim=0).values
    torch.testing.assert_close(score(preferred), of_successes)


def test_a_flip_goes_before_a_higher_loss() -> None:
    """Of the iterates with a wrong answer the one with the highest loss, although others had a higher one."""
    victim, images = curved(6), images_with_corners(300)
    labels = victim(images).argmax(dim=1)
    seen: list[Tensor] = []

    def recorded(x: Tensor) -> Tensor:
        seen.append(victim(x))
        return seen[-1]

    found = victim(apgd_ce(recorded, images, labels, epsilon=0.03, draws=draws_for(300), steps=30))
    losses = torch.stack([cross_entropy(logits, labels) for logits in seen]).detach()
    wrong = torch.stack([margin(logits, labels) > 0 for logits in seen])
    expected = torch.where(wrong | ~wrong.any(dim=0), losses, -torch.inf).max(dim=0).values
    torch.testing.assert_close(cross_entropy(found, labels), expected)
    assert torch.equal(margin(found, labels) > 0, wrong.any(dim=0))
    assert bool((expected < losses.max(dim=0).values).any())


def test_an_image_that_is_never_flipped_is_moved_to_its_highest_loss() -> None:
    model, images, labels = attack_cases.opposed(), images_with_corners(6), torch.arange(6) % 2

    def sure(x: Tensor) -> Tensor:
        return model(x) + 100 * torch.nn.functional.one_hot(labels, 2)

    found = apgd_dlr(sure, images, labels, epsilon=0.05, draws=draws_for(6), steps=10)
    assert bool((margin(sure(found), labels) < 0).all())
    torch.testing.assert_close(found, model.worst(images, labels, 0.05), rtol=0, atol=1e-12)


def test_a_misclassified_image_is_attacked_too() -> None:
    victim, images = curved(), images_with_corners(10)
    labels = (victim(images).argmax(dim=1) + 1) % 4
    found = apgd_ce(victim, images, labels, epsilon=0.05, draws=draws_for(10), steps=20)
    assert bool((cross_entropy(victim(found), labels) > cross_entropy(victim(images), labels)).all())
    assert bool((margin(victim(found), labels) > 0).all())


def test_more_steps_are_never_weaker_on_average() -> None:
    victim, images, labels = curved(6), images_with_corners(60), torch.arange(60) % 6
    attack = partial(apgd_ce, victim, images, labels, epsilon=0.05, draws=draws_for(60))
    values = [cross_entropy(victim(attack(steps=steps)), labels).mean().item() for steps in (0, 1, 5, 25, 100)]
    assert values == sorted(values)


def test_targets_are_at_most_the_other_classes_and_the_best_is_kept() -> None:
    victim, images, labels = curved(), images_with_corners(20), torch.arange(20) % 4
    margins = [
        margin(
            victim(apgd_targeted(victim, images, labels, epsilon=0.1, draws=draws_for(20), steps=8, targets=n)), labels
        )
        for n in (1, 2, 3, 9)
    ]
    assert bool((margins[1] >= margins[0]).all()) and bool((margins[2] >= margins[1]).all())
    assert torch.equal(margins[3], margins[2])
    assert bool((margins[2] > margins[0]).any())


def test_every_target_has_a_start_of_its_own() -> None:
    victim, images, labels = curved(), images_with_corners(2), torch.arange(2)
    seen: list[Tensor] = []

    def recorded(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return victim(x)

    apgd_targeted(recorded, images, labels, epsilon=0.1, draws=draws_for(2), steps=0)
    clean, *starts = seen[0], seen[1], seen[3], seen[5]  # each start is looked at again, as the end of its run
    assert len(seen) == 7
    assert not any(torch.equal(one, other) for one, other in combinations([clean, *starts], 2))


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_reaches_the_worst_point_of_a_linear_model(attack: Attack, classes: int) -> None:
    attack_cases.assert_reaches_the_worst_point(attack, classes)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(attack: Attack, case: Case) -> None:
    attack_cases.assert_inside(attack, case)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_attacks_each_image_on_its_own_and_by_its_draws(attack: Attack) -> None:
    attack_cases.assert_each_image_on_its_own(attack)
    attack_cases.assert_repeats(attack)
    attack_cases.assert_averages_draws(attack)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("attack", [apgd_ce, apgd_dlr, apgd_targeted])
def test_passes(attack: Attack, steps: int) -> None:
    assert passes_of(partial(attack, steps=steps)) == passes_by_hand(attack, steps=steps, targets=9)
