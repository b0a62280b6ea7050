"""Expectation over transformation: fresh draws a call, the mean of their gradients, what a linear head makes of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from flss_edge.adversary import value_and_gradient
from flss_edge.attacks import Attack
from flss_edge.attacks.apgd import apgd_ce
from flss_edge.attacks.eot import ExpectationOverTransformation
from flss_edge.attacks.gama import gama_pgd
from flss_edge.attacks.objectives import (
    Loss,
    cross_entropy,
    dlr,
    margin,
    per_image,
    softmax_margin,
    targeted_margin,
)
from flss_edge.attacks.pgd import pgd_attack, pgd_restarts
from flss_edge.classifiers.confidence import Confidence
from flss_edge.classifiers.vote import Vote
from flss_edge.model import FLSS, ModelConfig

from .attack_cases import PassCounter, draws_for

COUNT = 4
LABELS = torch.arange(COUNT) % 3
IMAGES = torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vote(noise_scale: float = 2.0, hidden: tuple[int, ...] = ()) -> Vote:
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3, width=4, blocks=(1, 1), image_size=16, hidden=hidden)
    return Vote(FLSS(config).double().eval(), noise_scale=noise_scale)


def eot(classifier: Vote | Confidence, samples: int = 5, seed: int = 0) -> ExpectationOverTransformation:
    return ExpectationOverTransformation(classifier, samples, draws_for(COUNT, seed=seed))


def test_every_call_draws_anew_and_a_new_wrapper_repeats_them() -> None:
    victim = eot(vote())
    first, second = victim(IMAGES), victim(IMAGES)
    assert first.shape == (5, COUNT, 3)
    assert victim.calls == 2
    assert not torch.isclose(first, second).any()
    again = eot(vote())
    assert torch.equal(again(IMAGES), first) and torch.equal(again(IMAGES), second)
    assert not torch.isclose(eot(vote(), seed=1)(IMAGES), first).any()
    assert not torch.isclose(first[0], first[1]).any()  # nor are the draws of one call the same


@pytest.mark.parametrize("loss", [cross_entropy, margin, softmax_margin, dlr])
def test_the_gradient_is_the_mean_of_the_draws_gradients(loss: Loss) -> None:
    _, gradient = value_and_gradient(per_image(eot(vote()), loss, LABELS), IMAGES)

    def draw(sample: int) -> Tensor:
        return value_and_gradient(per_image(lambda x: eot(vote())(x)[sample], loss, LABELS), IMAGES)[1]

    torch.testing.assert_close(gradient, torch.stack([draw(sample) for sample in range(5)]).mean(dim=0))


def test_a_linear_head_gives_the_margin_the_gradient_of_the_path_without_sampling() -> None:
    """For one pair of classes: the noise has mean zero and goes through a linear map. Its mean falls as 1 / sqrt(S)."""
    classifier, pair = vote(), targeted_margin((LABELS + 1) % 3)
    _, expected = value_and_gradient(per_image(classifier, pair, LABELS), IMAGES)

    def error(samples: int, loss: Loss) -> float:
        _, found = value_and_gradient(per_image(eot(classifier, samples), loss, LABELS), IMAGES)
        return float((found - expected).norm() / expected.norm())

    assert error(20_000, pair) < 0.02 < error(20, pair)
    assert error(20_000, cross_entropy) > 0.2  # has another gradient altogether


def test_without_noise_every_draw_is_the_path_without_sampling() -> None:
    classifier = vote(noise_scale=0.0)
    torch.testing.assert_close(eot(classifier)(IMAGES), classifier(IMAGES).expand(5, -1, -1))


def test_a_hidden_layer_makes_the_gradients_differ() -> None:
    classifier, pair = vote(noise_scale=3.0, hidden=(16,)), targeted_margin((LABELS + 1) % 3)
    _, plain = value_and_gradient(per_image(classifier, pair, LABELS), IMAGES)
    _, found = value_and_gradient(per_image(eot(classifier, 20_000), pair, LABELS), IMAGES)
    assert float((found - plain).norm() / plain.norm()) > 0.05


def test_a_deterministic_classifier_has_one_draw() -> None:
    classifier = Confidence(vote().network, "no-sampling")
    assert torch.equal(eot(classifier)(IMAGES), classifier(IMAGES)[None])


ATTACKS: dict[str, Attack] = {
    "pgd_attack": partial(pgd_attack, steps=6),
    "pgd_restarts": partial(pgd_restarts, steps=3, restarts=2),
    "apgd_ce": partial(apgd_ce, steps=6),
    "gama_pgd": partial(gama_pgd, steps=6),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_go_through_the_vote_repeatably_and_raise_its_loss(attack: Attack) -> None:
    def attacked() -> Tensor:
        return attack(eot(vote(0.3)), IMAGES, LABELS, epsilon=0.05, draws=draws_for(COUNT))

    found = attacked()
    assert torch.equal(found, attacked())
    assert float((found - IMAGES).abs().max()) <= 0.05 + 1e-12
    with torch.no_grad():
        clean, raised = (per_image(eot(vote(0.3), 500, seed=9), cross_entropy, LABELS)(x) for x in (IMAGES, found))
    assert bool((raised > clean).all())


def test_the_encoder_runs_once_however_many_draws() -> None:
    classifier = vote()
    passes = PassCounter(classifier.network.encoder)
    pgd_attack(eot(classifier, 50), IMAGES, LABELS, epsilon=0.05, draws=draws_for(COUNT), steps=3)
    assert passes.forward == 3 * COUNT
