"""Every recipe: its name and network, its schedule and settings, that it trains, and its gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flss_edge.model import ModelConfig
from flss_edge.recipes import RECIPES, recipe_named
from flss_edge.update import Update
from flss_edge.weight_noise import parameter_groups
from flss_runtime.errors import UsageError

from .recipe_cases import CLASSES, attacked, minibatch, network_for, recipe

ATTACKED = [name for name, found in RECIPES.items() if found.attack is not None]


@pytest.mark.parametrize("name", RECIPES)
def test_its_loss_falls_when_a_minibatch_is_repeated(name: str) -> None:
    found = recipe(name, attack_steps=2)
    network, batch = network_for(found), minibatch()
    groups = parameter_groups(network, found.config.weight_decay)
    update = Update(network, torch.optim.SGD(groups, lr=0.02, momentum=0.8), found)
    sums = []
    for _ in range(12):
        torch.manual_seed(3)  # the same noise in the weights
        terms = update([batch])
        sums.append(sum(float(terms[loss.__name__]) for loss in found.losses))
    assert all(math.isfinite(value) for value in sums)
    assert sums[-1] < 0.9 * sums[0], sums


def test_names_and_networks() -> None:
    baselines = "standard pgd-at at-awp trades trades-awp ccat rs rs-trades pni"
    assert " ".join(RECIPES) == f"official paper plus {baselines}"
    layers = {}
    for name in baselines.split():
        config = ModelConfig(**RECIPES[name].network)
        assert config.network == "classifier" and config.weight_noise == (name == "pni")
        layers[name] = (2 * sum(config.blocks) + 2, config.width)
    resnets = {"ccat": (20, 64), "rs": (110, 16), "rs-trades": (110, 16), "pni": (20, 16)}
    assert layers == {name: resnets.get(name, (18, 64)) for name in baselines.split()}


def test_published_settings() -> None:
    keys = "epochs batch_size weight_decay epsilon attack_steps attack_step_size awp_gamma awp_start selection".split()
    expected = {
        "standard": (110, 128, 5e-4, 8 / 255, 10, 2 / 255, 0, 0, "clean"),
        "pgd-at": (110, 128, 5e-4, 8 / 255, 10, 2 / 255, 0, 0, "pgd"),
        "at-awp": (200, 128, 5e-4, 8 / 255, 10, 2 / 255, 0.01, 0, "pgd"),
        "trades": (76, 128, 2e-4, 8 / 255, 10, 2 / 255, 0, 0, "pgd"),
        "trades-awp": (200, 128, 5e-4, 8 / 255, 10, 2 / 255, 0.005, 9 / 200, "pgd"),
        "ccat": (200, 100, 0, 0.03, 40, 0.005, 0, 0, "last"),
        "rs": (90, 400, 1e-4, 8 / 255, 10, 2 / 255, 0, 0, "last"),
        "rs-trades": (55, 256, 1e-4, 8 / 255, 10, 0.087, 0, 0, "last"),
        "pni": (160, 128, 3e-4, 0.031, 7, 0.01, 0, 0, "pgd"),
    }
    for name, values in expected.items():
        config = recipe_named(name).config
        assert tuple(getattr(config, key) for key in keys) == pytest.approx(values), name
        assert config.nesterov == (name == "pni")
    own = {"trades": ["beta"], "ccat": ["rho", "attack_momentum", "attack_factor"], "rs": ["sigma"]}
    own |= {"rs-trades": ["beta", "sigma", "l2_radius"], "pni": ["adversarial_start", "adversarial_weight"]}
    found = [[getattr(recipe_named(name).config, key) for key in keys] for name, keys in own.items()]
    assert found == [[6.0], [10.0, 0.9, 1.5], [0.25], [6.0, 0.12, 0.435], [5 / 160, 0.5]]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("standard", {0: 0.1, 99: 0.1, 100: 0.01, 104: 0.01, 105: 0.001, 109: 0.001}),
        ("pgd-at", {0: 0.1, 99: 0.1, 100: 0.01, 104: 0.01, 105: 0.001, 109: 0.001}),
        ("at-awp", {99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001, 199: 0.001}),
        ("trades", {73: 0.1, 74: 0.01, 75: 0.01}),
        ("trades-awp", {98: 0.1, 99: 0.01, 148: 0.01, 149: 0.001}),
        ("ccat", {0: 0.075, 1: 0.075 * 0.95, 10: 0.075 * 0.95**10, 199: 0.075 * 0.95**199}),
        ("rs", {29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}),
        ("rs-trades", {49: 0.1, 50: 0.01, 54: 0.01}),
        ("pni", {79: 0.1, 80: 0.01, 119: 0.01, 120: 0.001}),
    ],
)
def test_learning_rate_of_each_epoch(name: str, rates: dict[int, float]) -> None:
    config, steps = recipe_named(name).config, 7
    assert config.epochs - max(rates) in range(1, 100)
    for epoch, rate in rates.items():
        for step in (epoch * steps, epoch * steps + steps - 1):  # constant within an epoch
            assert config.learning_rate(step, steps) == (pytest.approx(rate, rel=1e-9), 0.9), (epoch, step)


def test_settings_of_a_method_can_be_overridden() -> None:
    config = recipe_named("ccat").config.with_settings(["rho=2", "attack_factor=1.1", "schedule=step"])
    assert (config.rho, config.attack_factor, config.schedule) == (2.0, 1.1, "step")  # type: ignore[attr-defined]
    config = recipe_named("trades").config.with_settings(["lr_milestones=1/2,3/4", "selection=last", "nesterov=true"])
    assert (config.lr_milestones, config.selection, config.nesterov) == ((0.5, 0.75), "last", True)
    refused = {
        "pgd-at": ["beta=6", "selection=best", "lr_milestones=1/2,x", "recipe=trades", "epochs"],
        "ccat": ["epsilon=0", "attack_factor=0.5", "attack_momentum=1"],
        "pni": ["adversarial_weight=2", "sigma=0.1"],
        "rs": ["sigma=-1", "l2_radius=1"],
    }
    for name, settings in refused.items():
        for setting in settings:
            with pytest.raises(UsageError):
                recipe_named(name).config.with_settings([setting])


def test_nesterov_needs_a_momentum() -> None:
    with pytest.raises(UsageError, match="nesterov needs a momentum"):
        recipe_named("pni").with_settings(["momentum=0"])
    assert recipe_named("pni").with_settings(["momentum=0", "nesterov=false"]).config.momentum == 0


@pytest.mark.parametrize("name", RECIPES)
def test_settings_of_an_attack_are_for_recipes_that_have_one(name: str) -> None:
    settings = ["epochs=3", "attack_steps=2"]
    if name in ATTACKED:
        assert recipe_named(name).with_settings(settings) == recipe(name, epochs=3, attack_steps=2)
    else:
        with pytest.raises(UsageError, match=f"recipe {name} has no attack, so attack_steps would do nothing"):
            recipe_named(name).with_settings(settings)


@pytest.mark.parametrize("name", ATTACKED)
def test_attacks_leave_no_gradient_on_weights_and_no_trace_in_the_network(name: str) -> None:
    found = recipe(name, attack_steps=2)
    network = network_for(found)
    before = copy.deepcopy(network.state_dict())
    perturbed = attacked(found, network, minibatch())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not perturbed.requires_grad
    assert 0 <= float(perturbed.min()) and float(perturbed.max()) <= 1
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["pgd-at", "trades", "pni"])
def test_attacks_fill_the_ball(name: str) -> None:
    found = recipe(name)
    network, batch = network_for(found), minibatch()
    distance = (attacked(found, network, batch) - batch.images).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(distance, torch.full_like(distance, found.config.epsilon), rtol=0, atol=1e-12)
    # The attack of pgd-at uses the labels; those of TRADES and PNI go by what the network says.
    torch.manual_seed(1)
    first = attacked(found, network, batch)
    torch.manual_seed(1)
    other = attacked(found, network, replace(batch, labels=(batch.labels + 1) % CLASSES))
    assert torch.equal(first, other) == (name != "pgd-at")


@pytest.mark.parametrize("name", ["standard", "pgd-at", "ccat", "pni"])
def test_loss_gradients_against_finite_differences(name: str) -> None:
    found = recipe(name)
    batch = minibatch(5)
    step = 0.02 * torch.rand(5, 1, 1, 1, dtype=torch.float64)
    batch = replace(batch, perturbed=torch.cat([batch.images[:2], (batch.images + step)[2:]]))
    logits = torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True)

    def total(logits: Tensor) -> Tensor:
        return torch.stack(list(found.losses[0](lambda images: logits, batch, found.config).values())).sum()

    assert torch.autograd.gradcheck(total, (logits,))


@pytest.mark.parametrize("name", ["pgd-at", "trades", "ccat", "rs", "rs-trades"])
def test_parts_add_up_to_the_whole(name: str) -> None:
    """With batch norm in eval mode, so that images do not meet there, shares of a mini-batch give its gradient."""
    found = recipe(name, attack_steps=2)
    network = network_for(found).eval()
    perturbed = minibatch(7).images + 0.01

    def gradients(rows: slice) -> list[Tensor]:
        part = replace(minibatch(7, rows=rows), perturbed=perturbed[rows])
        values = found.losses[0](network, part, found.config)
        return [part.share * g for g in torch.autograd.grad(sum(values.values()), list(network.parameters()))]

    whole, first, second = (gradients(rows) for rows in (slice(0, 7), slice(0, 3), slice(3, 7)))
    for a, b, c in zip(whole, first, second, strict=True):
        torch.testing.assert_close(a, b + c, rtol=0, atol=1e-12)
    if found.attack is not None and name != "ccat":  # ccat halves each part
        parts = [attacked(found, network, minibatch(7, rows=rows)) for rows in (slice(0, 3), slice(3, 7))]
        torch.testing.assert_close(attacked(found, network, minibatch(7)), torch.cat(parts), rtol=0, atol=1e-12)
