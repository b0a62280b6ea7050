"""GAMA: its loss and schedules by hand, its targets, the worst point of a linear model, properties and passes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flss_edge.attacks import Attack
from flss_edge.attacks.gama import gama_mt, gama_pgd, relaxation_weights, relaxed
from flss_edge.attacks.objectives import other_classes, softmax_margin, targeted_softmax_margin
from flss_runtime.errors import UsageError

from . import attack_cases
from .attack_cases import Case, cases, curved, draws_for, images_with_corners, passes_of
from .pass_counts import passes_by_hand

SHORT: dict[str, Attack] = {
    "gama_pgd": partial(gama_pgd, steps=12),
    "gama_mt-2": partial(gama_mt, steps=12, rank=2),
    "gama_mt-5": partial(gama_mt, steps=12, rank=5),
}


def test_lambda_falls_from_50_by_2_a_step() -> None:
    weights = relaxation_weights(100)
    assert weights[:25] == pytest.approx([50 - 2 * step for step in range(25)])
    assert weights[25:] == [0.0] * 75
    assert relaxation_weights(8) == pytest.approx([50, 25, 0, 0, 0, 0, 0, 0])


def test_the_loss_by_hand() -> None:
    """p = (.5, .3, .2), anchor (.2, .2, .6): squared distance .09 + .01 + .16 = .26."""
    logits = torch.tensor([[math.log(5), math.log(3), math.log(2)]], dtype=torch.float64)
    anchor, label = torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64), torch.tensor([1])
    assert relaxed(softmax_margin, anchor, 50.0)(logits, label).item() == pytest.approx(0.2 + 13.0)
    assert relaxed(softmax_margin, anchor, 0.0)(logits, label).item() == pytest.approx(0.2)
    targeted = targeted_softmax_margin(torch.tensor([2]))
    assert relaxed(targeted, anchor, 2.0)(logits, label).item() == pytest.approx(-0.1 + 0.52)
    drawn = relaxed(softmax_margin, anchor, 50.0)(torch.stack([logits] * 2), label)
    assert drawn.squeeze(1).tolist() == pytest.approx([13.2] * 2)


def literal(
    victim: torch.nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int, signs: Tensor
) -> Tensor:
    """The released loop, restated: lambda, sizes and projection by hand."""
    x = (images + epsilon * signs).clamp(0, 1)
    anchor = victim(x).softmax(dim=1).detach()
    size, weight = 2 * epsilon, 50.0
    for step in range(steps):
        if step in (60 * steps // 100, 85 * steps // 100):
            size /= 10
        x = x.detach().requires_grad_(True)
        p = victim(x).softmax(dim=1)
        true = torch.nn.functional.one_hot(labels, p.shape[1]).to(p.dtype)
        best_other = (p - 2 * true).max(dim=1).values
        value = (best_other - (p * true).sum(dim=1) + weight * ((anchor - p) ** 2).sum(dim=1)).mean()
        (gradient,) = torch.autograd.grad(value, x)
        x = x.detach() + size * gradient.sign()
        x = images + (x - images).clamp(-epsilon, epsilon)
        x = x.clamp(0, 1)
        weight = max(weight - 50.0 / (steps / 4), 0)
    return x.detach()


def test_equals_the_released_loop() -> None:
    victim, images, labels = curved(), images_with_corners(6), torch.arange(6) % 4
    signs = torch.where(draws_for(6).uniform("start", 3, 4, 4) < 0.5, -1.0, 1.0).double()
    expected = literal(victim, images, labels, 0.1, 40, signs)
    found = gama_pgd(victim, images, labels, epsilon=0.1, draws=draws_for(6), steps=40)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_targets_are_ranks_among_the_other_classes() -> None:
    """One pixel for each class; the clean answer is right for the first image and wrong for the second."""
    wants = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    images, labels = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64), torch.tensor([0, 2])

    def victim(x: Tensor) -> Tensor:
        return wants + x[:, 0].flatten(1)[:, :5] - 0.5

    ranks = {2: [1, 0], 3: [2, 1], 4: [3, 3], 5: [4, 4], 9: [4, 4]}
    for rank, expected in ranks.items():
        found = gama_mt(victim, images, labels, epsilon=0.1, draws=draws_for(2), steps=20, rank=rank)
        moved = found[:, 0].flatten(1)[:, :5] - 0.5
        for image, target in enumerate(expected):
            assert float(moved[image, target]) == pytest.approx(0.1)
            assert float(moved[image, labels[image]]) == pytest.approx(-0.1)


def test_every_rank_moves_a_misclassified_image() -> None:
    victim, images = curved(), images_with_corners(20)
    labels = (victim(images).argmax(dim=1) + 1) % 4  # all of them wrong
    others = other_classes(victim, images, labels)
    for rank in (2, 3, 4):
        loss = targeted_softmax_margin(others[:, rank - 2])
        found = gama_mt(victim, images, labels, epsilon=0.1, draws=draws_for(20), steps=40, rank=rank)
        assert bool((loss(victim(found), labels) > loss(victim(images), labels)).all())


def test_no_rank_is_gama_pgd() -> None:
    victim, images, labels = curved(), images_with_corners(5), torch.arange(5) % 4
    both = [attack(victim, images, labels, epsilon=0.1, draws=draws_for(5), steps=9) for attack in (gama_pgd, gama_mt)]
    assert torch.equal(*both)


@pytest.mark.parametrize("rank", [-1, 0, 1])
def test_ranks_begin_at_two(rank: int) -> None:
    with pytest.raises(UsageError, match=f"rank {rank}"):
        gama_mt(curved(), images_with_corners(2), torch.arange(2), epsilon=0.1, draws=draws_for(2), rank=rank)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ["gama_pgd", "gama_mt-2"])
def test_reaches_the_worst_point_of_a_linear_model(name: str, classes: int) -> None:
    attack_cases.assert_reaches_the_worst_point(SHORT[name], classes)


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
def test_passes(steps: int) -> None:
    assert passes_of(partial(gama_pgd, steps=steps)) == passes_by_hand(gama_pgd, steps=steps)
    assert passes_of(partial(gama_mt, steps=steps, rank=3)) == passes_by_hand(gama_mt, steps=steps, rank=3)
