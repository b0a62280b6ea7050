"""The FLSS recipes beyond the literal equality of test_update: what `paper` and `plus` change, each alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.losses import kl_between, kl_of_logits, kl_to_prior, soft_vote_margin
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, ModelConfig, sample_latents
from flss_edge.recipes import recipe_named
from flss_edge.recipes.flss import FLSSConfig, adversarial_loss, attack, clean_loss
from flss_edge.update import Update

MODEL = ModelConfig(num_classes=4, width=4, image_size=16)
PLAIN = FLSSConfig(attack_steps=2)


@pytest.fixture
def model() -> FLSS:
    torch.manual_seed(2)
    return FLSS(MODEL).double()


def minibatch(progress: float = 0.5, size: int = 6) -> Minibatch:
    data = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, 16, 16, generator=data, dtype=torch.float64)
    labels = torch.randint(0, 4, (size,), generator=data)
    draws = Draws(3, 0, size, slice(0, size), torch.device("cpu"), torch.float64)
    return Minibatch(images, labels, draws, progress, nominal=float(size))


def attacked(model: FLSS, config: FLSSConfig, progress: float = 0.5) -> Minibatch:
    return attack(model.eval(), minibatch(progress), config)


def test_paper_is_algorithm_1_read_literally(model: FLSS) -> None:
    """Unit weights, no warm-up, KL(sampled || mean) summed over the classes, one noise vector for attack and KL3."""
    config = replace(recipe_named("paper").config, attack_steps=2)
    batch = attacked(model, config, progress=0.0)
    assert batch.perturbed is not None
    terms = adversarial_loss(model, batch, config)  # in eval mode: the passes below see the same statistics
    noise = batch.draws.normal("attack", MODEL.features)
    mean_c, logvar_c = model.encoder(batch.images)
    mean_a, logvar_a = model.encoder(batch.perturbed)
    sampled = functional.softmax(model.head(sample_latents(mean_a, logvar_a, noise)), dim=1)
    plain = functional.softmax(model.head(mean_a), dim=1)
    expected = {
        "adversarial_cross_entropy": -sampled.log().gather(1, batch.labels[:, None]).mean(),
        "adversarial_kl_prior": kl_to_prior(mean_c, logvar_c, 6),
        "adversarial_kl_between": kl_between(mean_a, logvar_a, mean_c, logvar_c, 6),
        "adversarial_kl_consistency": (sampled * (sampled / plain).log()).sum(dim=1).mean(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert config.awp_gamma == 0.005 and config.awp_start == 0.0
    clean = clean_loss(model, batch, config)
    sampled = functional.softmax(
        model.head(sample_latents(mean_c, logvar_c, batch.draws.normal("clean", MODEL.features))), dim=1
    )
    plain = functional.softmax(model.head(mean_c), dim=1)
    torch.testing.assert_close(
        clean["clean_kl_consistency"], (sampled * (sampled / plain).log()).sum(dim=1).mean(), rtol=1e-9, atol=1e-12
    )


def test_official_reduces_by_classes_as_well(model: FLSS) -> None:
    batch = attacked(model, PLAIN)
    released = adversarial_loss(model, batch, PLAIN)["adversarial_kl_consistency"]
    summed = adversarial_loss(model, batch, replace(PLAIN, consistency_reduction="batchmean"))
    torch.testing.assert_close(4 * released, summed["adversarial_kl_consistency"])


def test_the_attacks_noise_is_one_vector_an_image_and_the_first_losss(model: FLSS) -> None:
    """The attacked images must raise the very loss that is then minimised."""
    config = replace(PLAIN, attack_steps=5)
    batch = attacked(model, config)
    assert batch.perturbed is not None
    distance = (batch.perturbed - batch.images).abs().max()
    assert float(distance) <= 8 / 255 + 1e-12
    before = adversarial_loss(model, replace(batch, perturbed=batch.images), config)["adversarial_cross_entropy"]
    after = adversarial_loss(model, batch, config)["adversarial_cross_entropy"]
    assert after.item() > before.item()


@pytest.mark.parametrize(("progress", "radius"), [(0.0, 0.25), (0.3, 0.625), (0.6, 1.0), (0.9, 1.0)])
def test_the_radius_ascends_and_the_steps_with_it(model: FLSS, progress: float, radius: float) -> None:
    config = replace(PLAIN, epsilon_start=0.25, epsilon_ramp=0.6, attack_steps=8)
    assert config.radius(progress) == pytest.approx(radius)
    batch = attacked(model, config, progress)
    assert batch.perturbed is not None
    distance = (batch.perturbed - batch.images).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(distance, torch.full_like(distance, radius * 8 / 255), rtol=0, atol=1e-9)


def test_soft_vote_margin_golden_values() -> None:
    logits = torch.log(torch.tensor([[[0.7, 0.2, 0.1]], [[0.3, 0.6, 0.1]]], dtype=torch.float64))  # two samples
    labels = torch.tensor([0])
    assert float(soft_vote_margin(logits, labels, 1.0)) == pytest.approx((0.7 + 0.3) / 2 - (0.2 + 0.6) / 2)
    # at a low temperature every sample votes for its arg-max alone: one vote each, and then two against none
    assert float(soft_vote_margin(logits, labels, 0.01)) == pytest.approx(0.0, abs=1e-9)
    both = torch.stack([logits[0], logits[0]])
    assert float(soft_vote_margin(both, labels, 0.01)) == pytest.approx(1.0, abs=1e-9)
    assert float(soft_vote_margin(both, torch.tensor([2]), 0.01)) == pytest.approx(-1.0, abs=1e-9)


def test_gradients_of_the_new_terms_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda x: soft_vote_margin(x, labels, 0.5), (logits,))
    p, q = (torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(kl_of_logits, (p, q))


def test_the_rejection_term_is_minus_log_of_the_margin_and_attacked(model: FLSS) -> None:
    config = replace(PLAIN, rejection_weight=0.7, rejection_samples=5, attack_steps=5)
    batch = attacked(model, config)
    assert batch.perturbed is not None
    mean, logvar = model.encoder(batch.perturbed)
    numbers = batch.draws.normal("rejection", 5, MODEL.features)
    logits = torch.stack([model.head(sample_latents(mean, logvar, 2.0 * numbers[:, n])) for n in range(5)])
    margin = soft_vote_margin(logits, batch.labels, 0.5)
    expected = -0.7 * torch.log((1 + margin) / 2).mean()
    torch.testing.assert_close(adversarial_loss(model, batch, config)["rejection"], expected)
    unaware = attacked(model, replace(config, rejection_weight=0.0))
    assert unaware.perturbed is not None
    assert not torch.equal(unaware.perturbed, batch.perturbed)
    weaker = adversarial_loss(model, replace(batch, perturbed=batch.images), config)["rejection"]
    assert expected.item() > weaker.item()


def test_the_second_view_has_batch_norms_of_its_own(model: FLSS) -> None:
    batch_norm.add_second(model)
    config = replace(PLAIN, view_weight=0.5)
    batch = attacked(model, config)
    assert batch.perturbed_view is not None
    assert not torch.equal(batch.perturbed_view, batch.perturbed)
    model.train()
    first = model.encoder.bn1.running_mean.clone()
    second = model.second_norms[0].running_mean.clone()  # type: ignore[index,union-attr]
    only_view = adversarial_loss(model, batch, config)["view_cross_entropy"]
    assert not torch.equal(model.second_norms[0].running_mean, second)  # type: ignore[index,union-attr]
    moved_with_view = model.encoder.bn1.running_mean.clone()
    only_view.backward()
    assert model.encoder.bn1.weight.grad is None
    assert model.second_norms[0].weight.grad is not None  # type: ignore[index,union-attr]
    model.encoder.bn1.running_mean.copy_(first)
    adversarial_loss(model, batch, PLAIN)
    torch.testing.assert_close(model.encoder.bn1.running_mean, moved_with_view)  # the view left it alone


PLUS_ALONE: list[dict[str, Any]] = [
    {"ema_decay": 0.9},
    {"epsilon_start": 0.25, "epsilon_ramp": 0.6},
    {"view_weight": 0.5},
    {"rejection_weight": 0.5},
]


@pytest.mark.parametrize("settings", PLUS_ALONE, ids=lambda settings: next(iter(settings)))
def test_each_addition_can_be_switched_on_alone(model: FLSS, settings: dict[str, Any]) -> None:
    recipe = recipe_named("official")
    recipe = replace(recipe, config=replace(PLAIN, **settings))
    if "view_weight" in settings:
        batch_norm.add_second(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    terms = Update(model, optimizer, recipe)([minibatch()])
    added = set(terms) - set(Update(model, optimizer, recipe_named("official"))([minibatch()]))
    assert added == {"view_weight": {"view_cross_entropy"}, "rejection_weight": {"rejection"}}.get(
        next(iter(settings)), set()
    )
    assert all(math.isfinite(value.item()) for value in terms.values())


def test_plus_without_its_additions_is_official() -> None:
    plus = recipe_named("plus").config
    off = {"ema_decay": 0.0, "epsilon_start": 1.0, "epsilon_ramp": 0.0, "view_weight": 0.0, "rejection_weight": 0.0}
    steps = {"attack_steps": 10, "attack_step_size": 2 / 255}
    assert replace(plus, recipe="official", **off, **steps) == recipe_named("official").config
    assert recipe_named("plus").network == {"activation": "silu"}
