"""The mini-batch update against a literal restatement of the released procedure, in float64."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.awp import perturbable, perturbed_weights
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, ModelConfig
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import Recipe
from flss_edge.update import Update


def load_benchmark(name: str) -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


literal_update = load_benchmark("literal_update").literal_update


def official(**settings: Any) -> Recipe:
    recipe = recipe_named("official")
    return replace(recipe, config=replace(recipe.config, **settings))


def minibatch(size: int, step: int, progress: float, nominal: int, classes: int = 4) -> Minibatch:
    """A whole mini-batch of random images in float64."""
    data = torch.Generator().manual_seed(step)
    images = torch.rand(size, 3, 32, 32, generator=data, dtype=torch.float64)
    labels = torch.randint(0, classes, (size,), generator=data)
    draws = Draws(7, step, size, slice(0, size), torch.device("cpu"), torch.float64)
    return Minibatch(images, labels, draws, progress, nominal=nominal)


def sgd(model: FLSS) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.85, weight_decay=5e-4)


@pytest.mark.parametrize("progress", [0.0, 0.06, 0.5], ids=["warming", "before awp", "awp"])
def test_the_fast_update_equals_the_literal_procedure(progress: float) -> None:
    """Losses, gradients, weights and running statistics over four mini-batches, the last one incomplete."""
    torch.manual_seed(0)
    recipe = official(batch_size=8, attack_steps=3)
    ours = FLSS(ModelConfig(num_classes=4, width=4)).double()
    literal = copy.deepcopy(ours)
    optimizer_a, optimizer_b = sgd(ours), sgd(literal)
    update = Update(ours, optimizer_a, recipe)
    for step, size in enumerate((8, 8, 8, 5)):  # the last one's divisors differ
        batch = minibatch(size, step, progress, nominal=8)
        terms = update([batch])
        expected = literal_update(
            literal, optimizer_b, batch.images, batch.labels, batch.draws, recipe.config, progress
        )
        for name, value in expected.items():
            assert float(terms[name]) == pytest.approx(value, abs=1e-9), name
        for (name, a), b in zip(ours.named_parameters(), literal.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None  # those of the second update
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(ours.state_dict().items(), literal.state_dict().values(), strict=True):
        if "num_batches_tracked" not in name:  # counts calls; batch norm with a fixed momentum never reads it
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_move_by_gamma_of_their_norm_along_the_gradient_and_back() -> None:
    torch.manual_seed(1)
    model = FLSS(ModelConfig(num_classes=3, width=4)).double().train()
    images, labels = torch.rand(6, 3, 32, 32, dtype=torch.float64), torch.randint(0, 3, (6,))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss() -> Tensor:
        return functional.cross_entropy(model(images), labels)

    weights = perturbable(model)
    del weights["encoder.logvar.weight"]  # the mean path does not use it
    with batch_norm.kept(model):
        unperturbed = loss()
        gradients = torch.autograd.grad(unperturbed, list(weights.values()))
    with perturbed_weights(list(weights.values()), gradients, gamma=0.01), batch_norm.kept(model):
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            moved = weight.detach() - before[name]
            assert float(moved.norm() / before[name].norm()) == pytest.approx(0.01, rel=1e-6), name
            assert float(functional.cosine_similarity(moved.flatten(), gradient.flatten(), dim=0)) > 1 - 1e-9
        assert float(loss().detach()) > float(unperturbed.detach())
    for name, value in model.state_dict().items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-14)


def test_which_tensors_are_perturbed() -> None:
    names = set(perturbable(FLSS(ModelConfig(width=4))))
    assert {"encoder.mean.weight", "encoder.logvar.weight", "head.0.weight", "encoder.conv1.weight"} <= names
    assert not any("bn" in name or "bias" in name or "downsample.1" in name for name in names)
