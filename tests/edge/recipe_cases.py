"""What the tests of the recipes share: narrow networks, random mini-batches, an attack alone; all in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flss_edge import batch_norm
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import ModelConfig, Network, build_network
from flss_edge.recipes import recipe_named
from flss_edge.recipes.config import Recipe

CLASSES = 4


def recipe(name: str, **settings: Any) -> Recipe:
    found = recipe_named(name)
    return replace(found, config=replace(found.config, **settings))


def network_for(found: Recipe, width: int = 4) -> Network:
    """A narrow, shallow network of the recipe's kind, in float64."""
    torch.manual_seed(0)
    fields = {**found.network, "width": width, "blocks": (1, 1), "num_classes": CLASSES, "image_size": 16}
    network = build_network(ModelConfig(**fields))
    if found.config.second_norms:
        batch_norm.add_second(network)
    return network.double()


def minibatch(size: int = 8, step: int = 0, progress: float = 0.5, rows: slice | None = None) -> Minibatch:
    """A mini-batch, or the part of it at `rows`, of random images in float64."""
    data = torch.Generator().manual_seed(step)
    images = torch.rand(size, 3, 16, 16, generator=data, dtype=torch.float64)
    labels = torch.arange(size) % CLASSES
    rows = rows or slice(0, size)
    draws = Draws(7, step, size, rows, torch.device("cpu"), torch.float64)
    share = (rows.stop - rows.start) / size
    return Minibatch(images[rows], labels[rows], draws, progress, share=share, nominal=size * share)


def attacked(found: Recipe, network: Network, batch: Minibatch) -> Tensor:
    assert found.attack is not None
    perturbed = found.attack(network.eval(), batch, found.config).perturbed
    assert perturbed is not None
    return perturbed


def seen_by(network: nn.Module) -> list[Tensor]:
    """A list that from now on gets whatever the network is given."""
    inputs: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].detach()))
    return inputs
