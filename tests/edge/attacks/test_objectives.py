"""The losses by hand, their mean over draws, and what picks the strongest of several candidates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flss_edge.adversary import value_and_gradient
from flss_edge.attacks.objectives import (
    Loss,
    cross_entropy,
    dlr,
    margin,
    other_classes,
    per_image,
    softmax_margin,
    strongest,
    summed,
    targeted_dlr,
    targeted_margin,
    targeted_softmax_margin,
)

LOG = math.log
LOGITS = torch.tensor([[3.0, 1.0, 0.0, -2.0], [3.0, 1.0, 0.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])  # right, and wrong
TARGETS = torch.tensor([2, 3])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (cross_entropy, [LOG(1 + math.e**-2 + math.e**-3 + math.e**-5), LOG(1 + math.e**3 + math.e + math.e**-2)]),
        (margin, [-2, 3]),
        (targeted_margin(TARGETS), [-3, -2]),
        (dlr, [-2 / 3, 1]),  # z_1 - z_3 = 3
        (targeted_dlr(TARGETS), [-3 / 4, -2 / 4]),  # z_1 - (z_3 + z_4) / 2 = 3 + 1
    ],
)
def test_losses_by_hand(loss: Loss, expected: list[float]) -> None:
    assert loss(LOGITS, LABELS).tolist() == pytest.approx(expected, abs=1e-9)


def test_margins_of_probabilities_by_hand() -> None:
    logits = torch.tensor([[LOG(5), LOG(3), LOG(2)], [LOG(5), LOG(3), LOG(2)]])
    assert softmax_margin(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-0.2, 0.2])
    target = targeted_softmax_margin(torch.tensor([2, 2]))
    assert target(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-0.3, -0.1])


def test_dlr_with_few_classes() -> None:
    two, three = torch.tensor([[2.0, -1.0]]), torch.tensor([[4.0, 2.0, -1.0]])
    label, target = torch.tensor([0]), torch.tensor([1])
    assert dlr(two, label).tolist() == [-3]
    assert targeted_dlr(target)(two, label).tolist() == [-3]
    assert dlr(three, label).tolist() == pytest.approx([-2 / 5])
    assert targeted_dlr(target)(three, label).tolist() == pytest.approx([-2 / 5])


def test_dlr_survives_ties() -> None:
    """The true class tied with another, and all logits equal, where the denominator vanishes."""
    logits = torch.tensor([[2.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    for loss in (dlr, targeted_dlr(torch.tensor([1, 1]))):
        values = loss(logits, torch.tensor([0, 0]))
        assert values.tolist() == [0, 0]
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert bool(gradient.isfinite().all())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(-5, 5))
def test_dlr_ignores_shift_and_scale(seed: int, scale: float, shift: float) -> None:
    """What it was made for: a network cannot hide its gradient behind large logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 6, (3,), generator=generator)
    for loss in (dlr, targeted_dlr((labels + 1) % 6)):
        torch.testing.assert_close(loss(scale * logits + shift, labels), loss(logits, labels), rtol=1e-7, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_the_sign_of_every_margin_tells_a_wrong_answer(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(5, classes, generator=generator), torch.randint(0, classes, (5,), generator=generator)
    wrong = logits.argmax(dim=1) != labels
    for loss in (margin, softmax_margin, dlr):
        assert torch.equal(loss(logits, labels) > 0, wrong)


@pytest.mark.parametrize("loss", [cross_entropy, margin, softmax_margin, dlr, targeted_dlr(TARGETS)])
def test_draws_are_averaged_with_their_gradients(loss: Loss) -> None:
    """The loss of each draw, then the mean; not the loss of the mean logits."""
    draws = torch.randn(7, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.zeros(2, 3, 1, 1, dtype=torch.float64)

    def victim(x: Tensor) -> Tensor:
        return draws * (1 + x.sum(dim=(1, 2, 3))[:, None])

    value, gradient = value_and_gradient(per_image(victim, loss, LABELS), images)
    each = [value_and_gradient(per_image(lambda x, s=s: victim(x)[s], loss, LABELS), images) for s in range(7)]
    torch.testing.assert_close(value, torch.stack([v for v, _ in each]).mean(dim=0))
    torch.testing.assert_close(gradient, torch.stack([g for _, g in each]).mean(dim=0))
    assert float(summed(per_image(victim, loss, LABELS))(images)) == pytest.approx(float(value.sum()))


def test_other_classes_by_falling_logit() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [5.0, 1.0, 1.0, 1.0]])
    images, labels = torch.zeros(2, 3, 1, 1), torch.tensor([3, 2])
    assert other_classes(lambda x: logits, images, labels).tolist() == [[1, 2, 0], [0, 1, 3]]
    drawn = torch.stack([logits, torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])])
    assert other_classes(lambda x: drawn, images, labels).tolist() == [[0, 1, 2], [3, 0, 1]]


def test_the_true_class_is_never_among_the_others_even_where_nothing_is_left_of_the_rest() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf]])
    found = other_classes(lambda x: logits, torch.zeros(1, 3, 1, 1), torch.tensor([0]))
    assert found.tolist() == [[1, 2]]


def test_the_strongest_candidate_of_each_image() -> None:
    candidates = [torch.full((3, 3, 1, 1), float(place)) for place in range(3)]
    scores = {0.0: [1.0, 0.0, 2.0], 1.0: [1.0, 3.0, 1.0], 2.0: [0.0, 2.0, 3.0]}
    found = strongest(iter(candidates), lambda x: torch.tensor(scores[float(x[0, 0, 0, 0])]))
    assert found[:, 0, 0, 0].tolist() == [0, 1, 2]  # of equals the earliest
