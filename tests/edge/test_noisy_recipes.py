"""Noise on the images (rs, rs-trades, with the attack in L2) and noise in the weights (pni)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flss_edge.recipes import pni, smoothing
from flss_edge.weight_noise import INITIAL_SCALE, WeightNoise, parameter_groups

from .recipe_cases import attacked, minibatch, network_for, recipe, seen_by


@pytest.mark.parametrize("name", ["rs", "rs-trades"])
def test_the_noise_that_reaches_the_network_has_the_recipes_sigma(name: str) -> None:
    found = recipe(name, attack_steps=2)
    network, batch = network_for(found), minibatch(32)
    inputs = seen_by(network)
    if found.attack is not None:
        batch = found.attack(network.eval(), batch, found.config)
    found.losses[0](network.train(), batch, found.config)
    noise = inputs[-1] - (batch.images if batch.perturbed is None else batch.perturbed)
    assert float(noise.std()) == pytest.approx({"rs": 0.25, "rs-trades": 0.12}[name], rel=0.02)
    assert abs(float(noise.mean())) < 0.005
    assert float(inputs[-1].max()) > 1  # not clamped
    if name == "rs-trades":  # one noise for the attack's target, its steps and the loss
        assert len(inputs) == 1 + 2 + 2
        for clean in (inputs[0], inputs[3]):
            torch.testing.assert_close(clean - batch.images, noise, rtol=0, atol=1e-12)
        start = 0.001 * batch.draws.normal("attack start", 3, 16, 16)
        torch.testing.assert_close(inputs[1] - noise - batch.images, start, rtol=0, atol=1e-12)


def test_l2_attack_on_a_linear_objective() -> None:
    """In the middle of the range it ends at the image moved by the radius along the weights, whatever the steps."""
    torch.manual_seed(0)
    images, weights = 0.4 + 0.2 * torch.rand(4, 3, 5, 5, dtype=torch.float64), torch.randn(3, 5, 5, dtype=torch.float64)
    perturbed = smoothing.pgd_l2(lambda x: (x * weights).sum(), images, images, radius=0.3, step_size=0.2, steps=3)
    torch.testing.assert_close(perturbed, images + 0.3 * weights / weights.norm(), rtol=0, atol=1e-12)
    short = smoothing.pgd_l2(lambda x: (x * weights).sum(), images, images, radius=0.3, step_size=0.1, steps=2)
    torch.testing.assert_close(short, images + 0.2 * weights / weights.norm(), rtol=0, atol=1e-12)
    still = smoothing.pgd_l2(lambda x: 0 * x.sum(), images, images, radius=0.3, step_size=0.1, steps=2)
    torch.testing.assert_close(still, images, rtol=0, atol=0)


@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0])
def test_l2_attack_stays_in_its_ball_and_in_the_pixel_range(radius: float) -> None:
    found = recipe("rs-trades", l2_radius=radius, attack_step_size=2 * radius / 10)
    network, batch = network_for(found), minibatch()
    batch = replace(batch, images=batch.images.round(decimals=0) * 0.9 + 0.1 * batch.images)  # most pixels at an edge
    perturbed = attacked(found, network, batch)
    norms = (perturbed - batch.images).flatten(1).norm(dim=1)
    assert float(norms.max()) <= radius + 1e-9 and float(norms.min()) >= 0.9 * radius
    assert 0 <= float(perturbed.min()) and float(perturbed.max()) <= 1


def test_weight_noise_is_scale_times_the_weights_deviation_and_new_each_time() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 50, 3).double()
    noise = WeightNoise(layer.weight).double()
    assert noise.scale.shape == (50, 1, 1, 1)
    assert torch.equal(noise.scale.detach(), torch.full_like(noise.scale, 0.25)) and INITIAL_SCALE == 0.25
    noise.scale.data[:25] = 2.0
    first, second = ((noise(layer.weight) - layer.weight).detach() for _ in range(2))
    assert not torch.equal(first, second)
    weight = layer.weight.detach()
    deviation = float((weight - weight.mean()).square().mean()) ** 0.5
    for rows, scale in ((slice(0, 25), 2.0), (slice(25, 50), 0.25)):
        assert float(first[rows].std()) == pytest.approx(scale * deviation, rel=0.02)
    (gradient,) = torch.autograd.grad(noise(layer.weight).sum(), layer.weight)
    assert torch.equal(gradient, torch.ones_like(gradient))  # none through the deviation


def test_the_deviation_is_unbiased_and_of_the_whole_tensor() -> None:
    """Of the weights ((0, 0), (2, 2)): sqrt(4/3). The noise is torch's next normal numbers."""
    weight = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    torch.manual_seed(1)
    noise = WeightNoise(weight)(weight) - weight
    torch.manual_seed(1)
    torch.testing.assert_close(noise.detach(), 0.25 * (4 / 3) ** 0.5 * torch.randn(2, 2))


def test_every_scale_is_trained_and_does_not_decay() -> None:
    found = recipe("pni")
    network = network_for(found)
    scales = {name: p for name, p in network.named_parameters() if name.endswith("scale")}
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(scales) == len(weighted)
    pni.pni_loss(network, minibatch(), found.config)["clean_cross_entropy"].backward()  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scales.values())
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(network, weight_decay=0.5), lr=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 if name in scales else 0.95), msg=name)


def test_pni_trains_on_clean_images_only_at_first() -> None:
    found = recipe("pni", attack_steps=1)
    assert found.attack is not None
    network = network_for(found)
    early, later = (found.attack(network.eval(), minibatch(progress=p), found.config) for p in (4.9 / 160, 5 / 160))
    assert early.perturbed is None and later.perturbed is not None
    torch.manual_seed(5)
    alone = found.losses[0](network, early, found.config)
    torch.manual_seed(5)
    both = found.losses[0](network, later, found.config)
    assert set(alone) == {"clean_cross_entropy"} and set(both) == {"clean_cross_entropy", "adversarial_cross_entropy"}
    torch.testing.assert_close(both["clean_cross_entropy"], 0.5 * alone["clean_cross_entropy"])
