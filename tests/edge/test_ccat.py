"""CCAT: its targets, its two halves, and where its attack begins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from flss_edge.recipes import ccat

from .recipe_cases import attacked, minibatch, network_for, recipe, seen_by


def test_golden_values_of_the_ccat_target() -> None:
    """Uniform at distance epsilon; at a quarter of it 1 - 0.75^10 = 0.9437 of the way there; one-hot at the image."""
    values = ccat.targets(torch.tensor([2, 2, 2, 2]), torch.tensor([0.0, 0.25, 1.0, 3.0]), 10, 10.0)
    assert values[0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert float(values[1, 0]) == pytest.approx(0.094369, abs=1e-6)
    assert float(values[1, 2]) == pytest.approx(0.094369 + 0.056314, abs=1e-6)
    torch.testing.assert_close(values[2:], torch.full((2, 10), 0.1))


def test_ccat_keeps_one_half_clean_and_joins_both_in_one_pass() -> None:
    found = recipe("ccat", attack_steps=3)
    network, batch = network_for(found), minibatch(9)
    perturbed = attacked(found, network, batch)
    distance = (perturbed - batch.images).abs().amax(dim=(1, 2, 3))
    assert torch.equal(distance > 0, torch.arange(9) >= 4)
    inputs = seen_by(network)
    batch = replace(batch, perturbed=perturbed)
    values = ccat.ccat_loss(network.train(), batch, found.config)  # type: ignore[arg-type]
    assert len(inputs) == 1 and torch.equal(inputs[0], perturbed)
    logs = functional.log_softmax(network(perturbed), dim=1)
    clean = functional.nll_loss(logs[:4], batch.labels[:4], reduction="sum") / 9
    torch.testing.assert_close(values["clean_cross_entropy"], clean)
    weight = 1 - (1 - distance[4:] / 0.03) ** 10  # of the uniform distribution
    own = logs[4:].gather(1, batch.labels[4:, None]).squeeze(1)
    expected = -((1 - weight) * own + weight * logs[4:].mean(dim=1)).sum() / 9
    torch.testing.assert_close(values["adversarial_cross_entropy"], expected)


def test_ccat_begins_at_one_of_three_points() -> None:
    """At steps 0 … 19 each kind occurs: near the image, at a random distance for each image, at the image itself."""
    found = recipe("ccat", attack_steps=0)
    network, kinds = network_for(found), []
    for step in range(20):
        batch = minibatch(step=step)
        moved = (attacked(found, network, batch) - batch.images)[4:]
        distance = moved.abs().amax(dim=(1, 2, 3))
        assert float(distance.max()) <= 0.03 + 1e-12
        if not distance.any():
            kinds.append("zero")
        else:
            normal = float(distance.max() - distance.min()) < 0.004
            if normal:
                assert float(moved.std()) == pytest.approx(0.03 / (2 * math.log(768)), rel=0.1)
            kinds.append("normal" if normal else "uniform norm")
    assert {kinds.count(kind) > 2 for kind in ("zero", "normal", "uniform norm")} == {True}, kinds
