"""Two halves of a mini-batch, normalised apart: the released procedure for them, in one process and in float64.

It shares no code with the update that it is compared with, but for the networks and the random numbers.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flss_edge import batch_norm
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, build_network
from flss_edge.recipes.flss import FLSSConfig

from .small_runs import OFFICIAL_MODEL, PLUS_MODEL, recipe

SIZES = (10, 10, 7, 9)  # of the mini-batches: the last ones are incomplete and odd
CONFIGS = {
    "official": (recipe("official", attack_steps=2), OFFICIAL_MODEL),
    "plus": (recipe("plus", attack_steps=2, rejection_samples=4), PLUS_MODEL),
}


def part_of(step: int, size: int, rows: slice) -> Minibatch:
    """Rows of a random mini-batch of float64 images, when the weights are perturbed already."""
    data = torch.Generator().manual_seed(step)
    images = torch.rand(size, 3, 16, 16, generator=data, dtype=torch.float64)
    labels = torch.randint(0, 3, (size,), generator=data)
    draws = Draws(7, step, size, rows, torch.device("cpu"), torch.float64)
    share = (rows.stop - rows.start) / size
    return Minibatch(images[rows], labels[rows], draws, 0.5, share, 10 * share)


def halves(size: int) -> list[slice]:
    return [slice(0, size // 2), slice(size // 2, size)]


def small_network(name: str) -> tuple[FLSS, torch.optim.SGD]:
    torch.manual_seed(0)
    network = build_network(CONFIGS[name][1]).double()
    assert isinstance(network, FLSS)
    if name == "plus":
        batch_norm.add_second(network)
    return network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.85, weight_decay=5e-4)


def reference() -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """The released procedure on two networks that normalise one half each and are made equal after every update."""
    network, optimizer = small_network("official")
    config = CONFIGS["official"][0].config
    assert isinstance(config, FLSSConfig)
    losses = []
    for step, size in enumerate(SIZES):
        batches = [part_of(step, size, rows) for rows in halves(size)]
        perturbed = [attacked(copy.deepcopy(network).eval(), batch, config) for batch in batches]
        twins = [copy.deepcopy(network).train() for _ in batches]
        for twin, batch, images in zip(twins, batches, perturbed, strict=True):
            (batch.share * first_loss(twin, batch, images, "proxy consistency", 10 * batch.share)).backward()
        deltas = []
        for weight, *of_twins in zip(network.parameters(), *(twin.parameters() for twin in twins), strict=True):
            direction = torch.stack([p.grad for p in of_twins if p.grad is not None]).sum(dim=0)
            moved = weight.dim() > 1  # of this network's weights: neither batch norm nor bias
            deltas.append(config.awp_gamma * weight.detach().norm() / direction.norm() * direction if moved else 0)
        with torch.no_grad():
            for weight, delta in zip(network.parameters(), deltas, strict=True):
                weight.add_(delta)
        shares = [batch.share for batch in batches]
        adversarial = [
            partial(first_loss, batch=batch, perturbed=images, fresh="adversarial consistency", size=len(batch.labels))
            for batch, images in zip(batches, perturbed, strict=True)
        ]
        first = descend(network, optimizer, adversarial, shares)
        with torch.no_grad():
            for weight, delta in zip(network.parameters(), deltas, strict=True):
                weight.sub_(delta)
        second = descend(network, optimizer, [partial(second_loss, batch=batch) for batch in batches], shares)
        losses.append((first, second))
    return network.state_dict(), losses


def descend(network: FLSS, optimizer: torch.optim.SGD, losses: list[Any], shares: list[float]) -> float:
    """One update from both halves: summed gradients, averaged running statistics."""
    twins = [copy.deepcopy(network).train() for _ in shares]
    values = [share * loss(twin) for loss, twin, share in zip(losses, twins, shares, strict=True)]
    for twin, value in zip(twins, values, strict=True):
        twin.zero_grad()
        value.backward()
    for weight, a, b in zip(network.parameters(), twins[0].parameters(), twins[1].parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        weight.grad = a.grad + b.grad
    optimizer.step()
    buffers = [dict(twin.named_buffers()) for twin in twins]
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(shares[0] * buffers[0][name] + shares[1] * buffers[1][name])
    return sum(float(value.detach()) for value in values)


def passed(network: FLSS, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, mean and log-variance of one whole pass."""
    mean, logvar = network.encoder(images)
    return network.head(mean + torch.exp(logvar / 2) * noise), mean, logvar


def attacked(network: FLSS, batch: Minibatch, config: FLSSConfig) -> Tensor:
    images = batch.images
    noise = batch.draws.normal("attack", network.config.features)
    moved = (images + config.epsilon * (2 * batch.draws.uniform("attack start", 3, 16, 16) - 1)).clamp(0, 1)
    for _ in range(config.attack_steps):
        moved = moved.detach().requires_grad_()
        functional.cross_entropy(passed(network, moved, noise)[0], batch.labels).backward()  # type: ignore[no-untyped-call]
        assert moved.grad is not None
        step = moved.detach() + config.attack_step_size * moved.grad.sign() - images
        moved = (images + step.clamp(-config.epsilon, config.epsilon)).clamp(0, 1)
    return moved.detach()


def first_loss(network: FLSS, batch: Minibatch, perturbed: Tensor, fresh: str, size: float) -> Tensor:
    """Four passes: clean; adversarial with the attack's noise, with fresh noise, without."""
    draw = lambda name: batch.draws.normal(name, network.config.features)  # noqa: E731
    _, mean_c, logvar_c = passed(network, batch.images, 0.0)
    logits, mean_a, logvar_a = passed(network, perturbed, draw("attack"))
    prior = 0.5 * (mean_c**2 + logvar_c.exp() - 1 - logvar_c).sum() / size
    ratio = (mean_a - mean_c) ** 2 / logvar_c.exp() + (logvar_a - logvar_c).exp()
    between = 0.5 * (ratio - 1 - logvar_a + logvar_c).sum() / size
    sampled = passed(network, perturbed, draw(fresh))[0].log_softmax(1)
    target = passed(network, perturbed, 0.0)[0].log_softmax(1)
    consistency = (target.exp() * (target - sampled)).mean()
    return functional.cross_entropy(logits, batch.labels) + 0.01 * prior + between + 0.1 * consistency


def second_loss(network: FLSS, batch: Minibatch) -> Tensor:
    """Two passes over the clean images: with fresh noise, without."""
    noise = batch.draws.normal("clean", network.config.features)
    logits, mean, logvar = passed(network, batch.images, noise)
    prior = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / batch.nominal
    target = passed(network, batch.images, 0.0)[0].log_softmax(1)
    consistency = (target.exp() * (target - logits.log_softmax(1))).mean()
    return functional.cross_entropy(logits, batch.labels) + 0.01 * prior + consistency
