"""The mini-batch update against a literal restatement of the released procedure, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.awp import perturbable, perturbed_weights
from flss_edge.model import FLSS, ModelConfig
from flss_edge.recipes import TrainConfig
from flss_edge.update import Update, bn_momentum

CONFIG = replace(TrainConfig(), batch_size=8, attack_steps=3)


def noisy_logits(model: FLSS, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """One full forward pass, as the released code makes one for every sample it needs."""
    mean, logvar = model.encoder(images)
    return model.head(mean + (0.5 * logvar).exp() * noise), mean, logvar


def literal_first_loss(
    model: FLSS, clean: Tensor, perturbed: Tensor, labels: Tensor, noise: Tensor, fresh: Tensor, w2: float, size: int
) -> Tensor:
    _, mu_c, lv_c = noisy_logits(model, clean, noise)
    logits, mu_a, lv_a = noisy_logits(model, perturbed, noise)
    kl1 = 0.01 * (-0.5 * (1 + lv_c - mu_c**2 - lv_c.exp())).sum() / size
    kl2 = w2 * (-0.5 * (1 + lv_a - lv_c - ((mu_c - mu_a) ** 2 + lv_a.exp()) / lv_c.exp())).sum() / size
    sampled = functional.log_softmax(noisy_logits(model, perturbed, fresh)[0], dim=1)
    target = functional.softmax(noisy_logits(model, perturbed, 0.0)[0], dim=1)
    kl3 = 0.1 * (target * (target.log() - sampled)).mean()
    return functional.cross_entropy(logits, labels) + kl1 + kl2 + kl3


def literal_update(
    model: FLSS, optimizer: torch.optim.SGD, clean: Tensor, labels: Tensor, awp: bool, w2: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(len(clean), model.config.features, generator=generator, dtype=clean.dtype)

    epsilon, step = CONFIG.epsilon, CONFIG.attack_step_size
    noise = draw()
    model.eval()
    start = torch.empty_like(clean).uniform_(-epsilon, epsilon, generator=generator)
    perturbed = (clean + start).clamp(0, 1)
    for _ in range(CONFIG.attack_steps):
        perturbed = perturbed.detach().requires_grad_(True)
        functional.cross_entropy(noisy_logits(model, perturbed, noise)[0], labels).backward()
        moved = perturbed.detach() + step * perturbed.grad.sign()  # type: ignore[union-attr]
        perturbed = torch.min(torch.max(moved, clean - epsilon), clean + epsilon).clamp(0, 1)
    perturbed = perturbed.detach()
    model.train()
    deltas = {}
    if awp:
        proxy = copy.deepcopy(model).train()
        ascent = torch.optim.SGD(proxy.parameters(), lr=0.1)
        ascent.zero_grad()
        (-literal_first_loss(proxy, clean, perturbed, labels, noise, draw(), w2, CONFIG.batch_size)).backward()
        ascent.step()
        for (name, weight), (_, moved) in zip(model.named_parameters(), proxy.named_parameters(), strict=True):
            if weight.dim() > 1 and "weight" in name:
                difference = moved.detach() - weight.detach()
                deltas[name] = 0.005 * weight.detach().norm() / (difference.norm() + 1e-20) * difference
                weight.data += deltas[name]
    optimizer.zero_grad()
    literal_first_loss(model, clean, perturbed, labels, noise, draw(), w2, len(clean)).backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        if name in deltas:
            weight.data -= deltas[name]
    optimizer.zero_grad()
    noise = draw()
    logits, mean, logvar = noisy_logits(model, clean, noise)
    kl1 = 0.01 * (-0.5 * (1 + logvar - mean**2 - logvar.exp())).sum() / CONFIG.batch_size
    target = functional.softmax(noisy_logits(model, clean, 0.0)[0], dim=1)
    kl4 = (target * (target.log() - functional.log_softmax(logits, dim=1))).mean()
    (functional.cross_entropy(logits, labels) + kl1 + kl4).backward()
    optimizer.step()


@pytest.mark.parametrize("progress", [0.0, 0.06, 0.5], ids=["warming", "before awp", "awp"])
def test_shared_encoder_passes_equal_the_literal_procedure(progress: float) -> None:
    torch.manual_seed(0)
    ours = FLSS(ModelConfig(num_classes=4, width=4)).double()
    literal = copy.deepcopy(ours)
    settings = {"lr": 0.05, "momentum": 0.85, "weight_decay": 5e-4}
    optimizer_a = torch.optim.SGD(ours.parameters(), **settings)
    optimizer_b = torch.optim.SGD(literal.parameters(), **settings)
    data = torch.Generator().manual_seed(5)
    for batch, size in enumerate((8, 8, 5)):  # the last one incomplete: its divisors differ
        clean = torch.rand(size, 3, 32, 32, generator=data, dtype=torch.float64)
        labels = torch.randint(0, 4, (size,), generator=data)
        update = Update(ours, optimizer_a, CONFIG, torch.Generator().manual_seed(100 + batch))
        update(clean, labels, progress)
        w2 = 0.01 if progress < 5 / 120 else 1.0
        literal_update(literal, optimizer_b, clean, labels, progress >= 9 / 120, w2, 100 + batch)
    for (name, a), b in zip(ours.state_dict().items(), literal.state_dict().values(), strict=True):
        if "num_batches_tracked" not in name:  # counts calls; batch norm with a fixed momentum never reads it
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_awp_leaves_running_statistics_and_weights_as_they_were() -> None:
    torch.manual_seed(1)
    model = FLSS(ModelConfig(num_classes=3, width=4)).double().train()
    images, labels = torch.rand(6, 3, 32, 32, dtype=torch.float64), torch.randint(0, 3, (6,))
    noise = torch.randn(6, model.config.features, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss() -> Tensor:
        with bn_momentum(model, 0.0):
            return functional.cross_entropy(noisy_logits(model, images, noise)[0], labels)

    unperturbed = float(loss().detach())
    with perturbed_weights(model, loss, gamma=0.01):
        for name, weight in perturbable(model).items():
            moved = float((weight.detach() - before[name]).norm() / before[name].norm())
            assert moved == pytest.approx(0.01, rel=1e-6), name
        assert float(loss().detach()) > unperturbed
    for name, value in model.state_dict().items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-14)


def test_which_tensors_are_perturbed() -> None:
    names = set(perturbable(FLSS(ModelConfig(width=4))))
    assert {"encoder.mean.weight", "encoder.logvar.weight", "head.0.weight", "encoder.conv1.weight"} <= names
    assert not any("bn" in name or "bias" in name or "downsample.1" in name for name in names)
