"""Square: the worst corner of a linear model, its schedule and its squares, and every attack's properties."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.attacks.objectives import margin
from flss_edge.attacks.square import covered, square

from . import attack_cases
from .attack_cases import Case, PassCounter, cases, curved, draws_for, images_with_corners, passes_of
from .labels_of_victim import against_the_answers
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "stopping": partial(square, queries=12),
    "to the last query": partial(square, queries=12, stop=False),
}


@pytest.mark.parametrize("classes", [2, 4])
def test_reaches_the_worst_corner_of_a_linear_model(classes: int) -> None:
    """By then its squares are single pixels, of which a tiny image has few."""
    attack_cases.assert_reaches_the_worst_point(partial(square, queries=1500, stop=False), classes)


def test_flips_what_can_be_flipped_by_a_margin_and_nothing_else() -> None:
    model, images, labels = attack_cases.opposed(4), images_with_corners(30), torch.arange(30) % 2
    possible = margin(model(model.worst(images, labels, 0.06)), labels)
    found = margin(model(square(model, images, labels, epsilon=0.06, draws=draws_for(30), queries=400)), labels)
    assert bool((found[possible > 0.05] > 0).all())
    assert bool((found[possible < 0] < 0).all())
    assert int((possible > 0.05).sum()) > 5 and int((possible < 0).sum()) > 5


def test_the_squares_shrink_by_the_papers_schedule() -> None:
    shares = [covered(number, 0.8, 10_000) for number in range(5000)]
    shrinks = [number for number in range(1, 5000) if shares[number] < shares[number - 1]]
    assert shrinks == [11, 51, 201, 501, 1001, 2001, 4001]
    assert shares[0] == 0.8 and shares[-1] == 0.8 / 2**7
    stretched = [covered(number, 0.8, 1000) for number in range(1000)]
    assert [n for n in range(1, 1000) if stretched[n] < stretched[n - 1]] == [2, 6, 21, 51, 101, 201, 401, 601, 801]


def asked(images: Tensor, queries: int, epsilon: float = 0.1) -> list[Tensor]:
    """What the first image's victim was asked, relative to the image, while every query is better than the last."""
    seen: list[Tensor] = []

    def victim(x: Tensor) -> Tensor:
        seen.append(x[0] - images[0])
        rising = torch.full((len(x),), float(len(seen)), dtype=x.dtype)
        return torch.stack([0 * rising, rising], dim=1)

    labels = torch.zeros(len(images), dtype=torch.int64)
    square(victim, images, labels, epsilon=epsilon, draws=draws_for(len(images)), queries=queries, stop=False)
    return seen


def test_asks_for_stripes_and_then_for_squares_of_one_sign_a_channel() -> None:
    images = torch.full((2, 3, 16, 16), 0.5, dtype=torch.float64)
    clean, stripes, *rest = asked(images, queries=60)
    assert not clean.any()
    assert torch.equal(stripes, stripes[:, :1].expand_as(stripes)) and len(stripes.unique()) == 2
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 0.1))
    previous, sides = stripes, []
    for delta in rest:
        torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.1))
        changed = (delta != previous).nonzero()
        height, width = (changed[:, 1:].amax(dim=0) - changed[:, 1:].amin(dim=0) + 1).tolist()
        top, left = changed[:, 1:].amin(dim=0).tolist()
        assert all(
            len(channel[top : top + height, left : left + width].unique()) == 1 for channel in delta[changed[:, 0]]
        )
        sides.append(max(height, width))
        previous = delta
    assert max(sides[:11]) <= 14 and max(sides[11:51]) <= 10 and max(sides[51:]) <= 7  # sqrt(.8, .4, .2) * 16


def test_squares_reach_every_pixel() -> None:
    """The last row and column too, which the released code leaves out."""
    images = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    changes = asked(images, queries=300)
    touched = sum((late != early).any(dim=0) for early, late in pairwise(changes[1:]))
    assert bool((touched > 0).all())


@pytest.mark.parametrize("attack", [partial(square, queries=60), partial(square, queries=60, stop=False)])
def test_the_margin_never_falls_with_more_queries(attack: Attack) -> None:
    network, images = curved(), images_with_corners(20)
    labels = network(images).argmax(dim=1)
    previous = torch.full((20,), -torch.inf, dtype=torch.float64)
    for queries in (1, 5, 60):
        found = partial(attack, queries=queries)(network, images, labels, epsilon=0.05, draws=draws_for(20))
        value = margin(network(found), labels)
        assert bool((value >= previous).all())
        previous = value
    assert bool((previous > margin(network(images), labels)).all())


def test_stops_at_the_first_wrong_answer_and_leaves_alone_what_is_wrong() -> None:
    network, images, labels = curved(), images_with_corners(20), torch.arange(20) % 4
    counter = PassCounter(network)
    found = {
        stop: square(network, images, labels, epsilon=0.05, draws=draws_for(20), queries=100, stop=stop)
        for stop in (True, False)
    }
    assert counter.forward < 2 * 20 * 101  # fewer than with everybody to the end
    wrong = margin(network(images), labels) > 0
    assert bool(wrong.any()) and torch.equal(found[True][wrong], images[wrong])
    values = {stop: margin(network(x), labels) for stop, x in found.items()}
    assert torch.equal(values[True] > 0, (values[False] > 0) | wrong)
    assert bool((values[False] > values[True])[values[True] > 0].any())
    failed = values[True] <= 0
    assert torch.equal(found[True][failed], found[False][failed])  # who is not finished cannot tell the difference


def test_accepts_on_the_mean_of_the_draws() -> None:
    """One draw prefers brighter images, the other darker ones four times as much."""
    images, labels = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)

    def victim(x: Tensor) -> Tensor:
        light = x.mean(dim=(1, 2, 3)) - 0.5
        margins = torch.stack([light - 0.1, -4 * light - 0.1])
        return torch.stack([0 * margins, margins], dim=-1)

    found = square(victim, images, labels, epsilon=0.2, draws=draws_for(2), queries=800, stop=False)
    torch.testing.assert_close(found, images - 0.2)


def test_a_random_victim_always_gets_the_whole_batch() -> None:
    """Its draws may belong to places in the batch."""
    network, images, labels = curved(), images_with_corners(8), torch.arange(8) % 4
    sizes = set()

    def victim(x: Tensor) -> Tensor:
        sizes.add(len(x))
        return network(x)[None]

    square(victim, images, labels, epsilon=0.1, draws=draws_for(8), queries=30)
    assert sizes == {8}


def test_needs_no_gradient() -> None:
    images, labels = images_with_corners(4), torch.arange(4) % 4

    def victim(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return curved()(x)

    square(victim, images, labels, epsilon=0.1, draws=draws_for(4), queries=5)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_stays_inside_the_ball_and_the_pixel_range(attack: Attack, case: Case) -> None:
    attack_cases.assert_inside(attack, case)


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_attacks_each_image_on_its_own(attack: Attack) -> None:
    attack_cases.assert_each_image_on_its_own(against_the_answers(attack))


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_the_draws_decide(attack: Attack) -> None:
    attack_cases.assert_repeats(against_the_answers(attack))


@pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
def test_averages_over_draws(attack: Attack) -> None:
    attack_cases.assert_averages_draws(against_the_answers(attack))


@pytest.mark.parametrize("queries", [1, 7])
def test_passes(queries: int) -> None:
    assert passes_of(partial(square, queries=queries, stop=False)) == passes_by_hand(square, queries=queries)
