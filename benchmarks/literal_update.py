"""The released training procedure of one mini-batch, restated step by step: what the fast update must equal.

One full forward pass for every latent sample, a copy of the network for the weight perturbation, and weight gradients
computed and thrown away inside the attack. `tests/edge/test_update.py` compares the results, `benchmarks/training.py`
the time.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.minibatch import Draws
from flss_edge.model import FLSS
from flss_edge.recipes.flss import FLSSConfig


def literal_update(
    model: FLSS,
    optimizer: torch.optim.Optimizer,
    clean: Tensor,
    labels: Tensor,
    draws: Draws,
    config: FLSSConfig,
    progress: float,
) -> dict[str, float]:
    """Train on one mini-batch as the released code does and return the losses of its two updates."""
    draw = lambda name: draws.normal(name, model.config.features)  # noqa: E731
    w2 = config.kl_between_warmup_weight if progress < config.kl_between_warmup else config.kl_between_weight
    noise = draw("attack")
    start = config.epsilon * (2 * draws.uniform("attack start", *clean.shape[1:]) - 1)
    perturbed = _attacked(model, clean, clean + start, labels, noise, config)
    model.train()
    deltas: dict[str, Tensor] = {}
    if progress >= config.awp_start:
        proxy = copy.deepcopy(model).train()
        ascent = torch.optim.SGD(proxy.parameters(), lr=0.1)
        ascent.zero_grad()
        fresh = draw("proxy consistency")
        (-_first_loss(proxy, clean, perturbed, labels, noise, fresh, w2, config.batch_size)).backward()
        ascent.step()
        for (name, weight), (_, moved) in zip(model.named_parameters(), proxy.named_parameters(), strict=True):
            if weight.dim() > 1 and "weight" in name:
                difference = moved.detach() - weight.detach()
                size = weight.detach().norm() / (difference.norm() + 1e-20)
                deltas[name] = config.awp_gamma * size * difference
                weight.data += deltas[name]
    optimizer.zero_grad()
    fresh = draw("adversarial consistency")
    first = _first_loss(model, clean, perturbed, labels, noise, fresh, w2, len(clean))
    first.backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        if name in deltas:
            weight.data -= deltas[name]
    optimizer.zero_grad()
    logits, mean, logvar = _forward(model, clean, draw("clean"))
    kl1 = 0.01 * (-0.5 * (1 + logvar - mean**2 - logvar.exp())).sum() / config.batch_size
    target = functional.softmax(_forward(model, clean, 0.0)[0], dim=1)
    kl4 = (target * (target.log() - functional.log_softmax(logits, dim=1))).mean()
    second = functional.cross_entropy(logits, labels) + kl1 + kl4
    second.backward()
    optimizer.step()
    return {"adversarial_loss": float(first.detach()), "clean_loss": float(second.detach())}


def _attacked(model: FLSS, clean: Tensor, start: Tensor, labels: Tensor, noise: Tensor, config: FLSSConfig) -> Tensor:
    model.eval()
    perturbed = start.clamp(0, 1)
    for _ in range(config.attack_steps):
        perturbed = perturbed.detach().requires_grad_(True)
        functional.cross_entropy(_forward(model, perturbed, noise)[0], labels).backward()
        assert perturbed.grad is not None
        moved = perturbed.detach() + config.attack_step_size * perturbed.grad.sign()
        perturbed = torch.min(torch.max(moved, clean - config.epsilon), clean + config.epsilon).clamp(0, 1)
    return perturbed.detach()


def _first_loss(
    model: FLSS,
    clean: Tensor,
    perturbed: Tensor,
    labels: Tensor,
    noise: Tensor,
    fresh: Tensor,
    w2: float,
    size: int,
) -> Tensor:
    _, mu_c, lv_c = _forward(model, clean, noise)
    logits, mu_a, lv_a = _forward(model, perturbed, noise)
    kl1 = 0.01 * (-0.5 * (1 + lv_c - mu_c**2 - lv_c.exp())).sum() / size
    kl2 = w2 * (-0.5 * (1 + lv_a - lv_c - ((mu_c - mu_a) ** 2 + lv_a.exp()) / lv_c.exp())).sum() / size
    sampled = functional.log_softmax(_forward(model, perturbed, fresh)[0], dim=1)
    target = functional.softmax(_forward(model, perturbed, 0.0)[0], dim=1)
    kl3 = 0.1 * (target * (target.log() - sampled)).mean()
    return functional.cross_entropy(logits, labels) + kl1 + kl2 + kl3


def _forward(model: FLSS, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, mean and log-variance of one full forward pass."""
    mean, logvar = model.encoder(images)
    return model.head(mean + (0.5 * logvar).exp() * noise), mean, logvar
