"""The objectives without sampling: the pairwise margins of a linear head, and the gate of a cascade."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flss_edge.attacks.adaptive import ACCEPTED_AND_WRONG, HeldOut, accepted_and_wrong
from flss_edge.attacks.closed_form import closed_form_objective, gate_objective
from flss_edge.classifiers.cascade import Cascade
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.deterministic import DeterministicVote, win_probability
from flss_edge.classifiers.vote import Vote
from flss_edge.model import FLSS, ModelConfig
from flss_runtime.errors import UsageError

from .attack_cases import draws_for
from .linear_votes import PIXELS, grey_images, linear_flss, many_classes, two_classes


@torch.no_grad()
def by_hand(network: FLSS, images: Tensor, target: Tensor, scale: float) -> list[float]:
    mean, logvar = network.encoder(images)
    weight = network.head[0].weight
    values = []
    for row, j in enumerate(target.tolist()):
        margins = []
        for k in range(len(weight)):
            if k == j:
                continue
            variance = sum((weight[j, i] - weight[k, i]) ** 2 * logvar[row, i].exp() for i in range(weight.shape[1]))
            gap = ((weight[j] - weight[k]) * mean[row]).sum()
            margins.append(float(gap / (scale * variance**0.5)))
        values.append(min(margins))
    return values


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_is_the_smallest_pairwise_margin(scale: float) -> None:
    network, images, target = many_classes(), grey_images(5), torch.tensor([0, 4, 2, 2, 1])
    vote = Vote(network, noise_scale=scale)
    found = closed_form_objective(vote, target)(images)
    assert found.tolist() == pytest.approx(by_hand(network, images, target, scale))
    gate = Confidence(network)
    for same in (DeterministicVote(network, noise_scale=scale), Cascade(gate, vote)):
        assert torch.equal(closed_form_objective(same, target)(images), found)


def test_agrees_with_the_chance_of_winning_each_pair() -> None:
    network, images, target = many_classes(), grey_images(5), torch.tensor([0, 4, 2, 2, 1])
    chances = win_probability(network, images, 2.0)[torch.arange(5), target]  # (B, K)
    chances[torch.arange(5), target] = 1
    found = torch.special.ndtr(closed_form_objective(Vote(network), target)(images))
    torch.testing.assert_close(found, chances.min(dim=1).values)


def test_is_the_share_of_the_sampled_votes_for_two_classes() -> None:
    network, _ = two_classes(slope=0.7)
    vote, images, target = Vote(network), grey_images(5), torch.zeros(5, dtype=torch.int64)
    shares = vote.class_scores(images, 20_000, draws_for(5), "many", 1e-4)[:, 0]
    found = torch.special.ndtr(closed_form_objective(vote, target)(images)).detach()
    torch.testing.assert_close(found, shares.detach(), rtol=0, atol=0.015)
    assert float(found.min()) < 0.2 and float(found.max()) > 0.6


def test_has_a_gradient_where_all_votes_agree() -> None:
    network, u = two_classes(slope=50.0, std=0.01)
    images = (0.5 + 0.4 * u.sign().reshape(1, 3, 4, 4)).requires_grad_(True)
    target = torch.tensor([1])
    soft = Vote(network).class_scores(images, 50, draws_for(1), "soft", 0.5)[:, 1]
    assert float(soft.detach()) == 0
    (gradient,) = torch.autograd.grad(closed_form_objective(Vote(network), target)(images).sum(), images)
    assert torch.equal(gradient.flatten().sign(), -u.sign())


def test_equal_weights_give_finite_gradients() -> None:
    network = many_classes()
    with torch.no_grad():
        network.head[0].weight[1] = network.head[0].weight[0]  # type: ignore[index]
    images = grey_images(2).requires_grad_(True)
    value = closed_form_objective(Vote(network), torch.tensor([0, 2]))(images)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())


def test_refuses_what_has_no_closed_form() -> None:
    network, target = many_classes(), torch.tensor([0])
    with pytest.raises(UsageError, match="no-sampling does not vote with latent samples"):
        closed_form_objective(Confidence(network, "no-sampling"), target)
    with pytest.raises(UsageError, match="noise_scale is 0"):
        closed_form_objective(Vote(network, noise_scale=0.0), target)
    deep = FLSS(ModelConfig(num_classes=3, width=1, blocks=(1,), hidden=(4,), image_size=4))
    with pytest.raises(UsageError, match="1 hidden layers"):
        closed_form_objective(Vote(deep), target)
    with pytest.raises(UsageError, match="vote has no gate"):
        gate_objective(Vote(network), target)


def hidden_gate() -> tuple[Cascade, Tensor]:
    """A cascade whose vote never accepts, and whose gate opens far out on pixels that FLSS does not look at.

    FLSS votes more surely for a class than its mean path is confident in it, so a soft score that looks end to end
    falls where the gate opens: who climbs it keeps the gate shut.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (PIXELS,), generator=generator).double() * 2 - 1
    seen = (torch.arange(PIXELS) < PIXELS // 2).double()
    opposite = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    flss = linear_flss((seen * signs * 0.2 / 2.4)[None], opposite, torch.tensor([0.08], dtype=torch.float64))
    gate = linear_flss(((1 - seen) * signs * 2)[None], opposite, torch.tensor([1.0], dtype=torch.float64))
    return Cascade(Confidence(gate, threshold=0.99), Vote(flss, threshold=100)), signs


def test_finds_the_gate_where_the_score_turns_away_from_it() -> None:
    cascade, signs = hidden_gate()
    images = torch.full((4, 3, 4, 4), 0.5, dtype=torch.float64) + 0.01 * signs.reshape(3, 4, 4)
    labels = torch.zeros(4, dtype=torch.int64)
    judge = HeldOut(cascade, labels, draws_for(4, seed=3), 100)
    values = {}
    for objective in ("score", "gate"):
        found = accepted_and_wrong(
            cascade, images, labels, epsilon=0.1, draws=draws_for(4), objective=objective, restarts=1, steps=20
        )
        values[objective] = judge.value(found, ACCEPTED_AND_WRONG)
        answers = cascade.answer(found, 0)
        assert (answers.accepted & (answers.labels == 1)).all() == (objective == "gate")
    assert bool((values["gate"] > 1).all()) and bool((values["score"] < 1).all())


def test_the_gate_counts_whatever_class_it_is_sure_of() -> None:
    cascade, signs = hidden_gate()
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    images[0] += 0.1 * signs.reshape(3, 4, 4)
    images[1] -= 0.1 * signs.reshape(3, 4, 4)
    value = gate_objective(cascade, torch.tensor([0, 1]))(images)
    torch.testing.assert_close(value[0], value[1])
    gap = 2 * 0.1 * 2 * (PIXELS // 2)  # the gate's logits are +-0.1 * 2 for each of its pixels
    answer = 2 * 0.1 * 0.2 / 2.4 * (PIXELS // 2)
    expected = -math.log1p(math.exp(-gap)) - math.log1p(math.exp(-answer))
    assert float(value[0].detach()) == pytest.approx(expected)
