"""TRADES: its attack, its terms, and its two passes against the literal three, in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flss_edge.adversary import input_gradient
from flss_edge.awp import perturbable
from flss_edge.minibatch import Minibatch
from flss_edge.model import Network
from flss_edge.recipes import trades
from flss_edge.update import Update

from .recipe_cases import CLASSES, attacked, minibatch, network_for, recipe


def test_the_trades_attack_raises_the_divergence_from_the_clean_answer() -> None:
    network, batch = network_for(recipe("trades")).eval(), minibatch()
    points = [batch.images]
    for steps in (1, 10):
        points.append(
            attacked(recipe("trades", epsilon=0.05, attack_step_size=0.01, attack_steps=steps), network, batch)
        )
    objective = trades.divergence_from(network, batch.images)
    values = [float(objective(point).detach()) for point in points]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[0] < values[1] < values[2]


def literal_trades(
    network: Network, optimizer: torch.optim.SGD, batch: Minibatch, config: trades.TradesConfig, order: str
) -> float:
    """One update as the released codes make it: `order` of three train passes, C clean and A adversarial."""

    def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
        log_ratio = functional.log_softmax(clean, dim=1) - functional.log_softmax(adversarial, dim=1)
        return (functional.softmax(clean, dim=1) * log_ratio).sum()

    def loss(model: Network, order: str) -> Tensor:
        outputs = [(kind, model(batch.images if kind == "C" else perturbed)) for kind in order]
        clean = [logits for kind, logits in outputs if kind == "C"]
        adversarial = next(logits for kind, logits in outputs if kind == "A")
        target, natural = clean if order == "ACC" else clean[::-1]  # the cross-entropy's pass is the last, or the first
        value = divergence(target, adversarial) / len(batch.images)
        return functional.cross_entropy(natural, batch.labels) + config.beta * value

    network.eval()
    lower, upper = (batch.images - config.epsilon).clamp(min=0), (batch.images + config.epsilon).clamp(max=1)
    start = batch.images + 0.001 * batch.draws.normal("attack start", *batch.images.shape[1:])
    perturbed = torch.clamp(start, lower, upper)
    for _ in range(config.attack_steps):
        gradient = input_gradient(lambda x: divergence(network(batch.images).detach(), network(x)), perturbed)
        perturbed = torch.clamp(perturbed + config.attack_step_size * gradient.sign(), lower, upper)
    network.train()
    moves: dict[str, Tensor] = {}
    if config.awp_gamma and batch.progress >= config.awp_start:
        proxy = copy.deepcopy(network)
        ascent = torch.optim.SGD(proxy.parameters(), lr=0.1)
        ascent.zero_grad()
        (-loss(proxy, "CAC")).backward()  # type: ignore[no-untyped-call]
        ascent.step()
        moved = dict(proxy.named_parameters())
        for name, weight in perturbable(network).items():
            difference = (moved[name] - weight).detach()
            moves[name] = config.awp_gamma * weight.detach().norm() / (difference.norm() + 1e-20) * difference
            weight.data += moves[name]
    value = loss(network, order)
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, move in moves.items():
        network.get_parameter(name).data -= move
    return float(value.detach())


@pytest.mark.parametrize(
    ("name", "order", "progress"), [("trades", "CAC", 0.5), ("trades-awp", "ACC", 0.0), ("trades-awp", "ACC", 0.5)]
)
def test_two_passes_of_trades_equal_the_literal_three(name: str, order: str, progress: float) -> None:
    """Losses, gradients, weights and running statistics over three mini-batches, the last one incomplete."""
    found = recipe(name, attack_steps=3)
    assert isinstance(found.config, trades.TradesConfig)
    ours = network_for(found)
    literal = copy.deepcopy(ours)
    optimizers = [torch.optim.SGD(network.parameters(), 0.05, 0.9, 0, 5e-4) for network in (ours, literal)]
    update = Update(ours, optimizers[0], found)
    for step, size in enumerate((8, 8, 5)):
        batch = minibatch(size, step, progress)
        terms = update([batch])
        expected = literal_trades(literal, optimizers[1], batch, found.config, order)
        assert float(terms[found.losses[0].__name__]) == pytest.approx(expected, abs=1e-9)
        for (key, a), b in zip(ours.named_parameters(), literal.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    for (key, a), b in zip(ours.state_dict().items(), literal.state_dict().values(), strict=True):
        if "num_batches_tracked" not in key:  # counts calls; batch norm with a fixed momentum never reads it
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_golden_values_of_trades() -> None:
    clean, adversarial = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    values = trades.terms(clean, adversarial, torch.tensor([1]), beta=6.0)
    assert float(values["divergence"]) == pytest.approx(6 * 0.085123, abs=1e-5)  # KL(clean || adversarial)
    assert float(values["clean_cross_entropy"]) == pytest.approx(-math.log(0.2), abs=1e-6)


def test_trades_gradients_against_finite_differences_on_both_sides() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(5, CLASSES, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    labels = torch.arange(5) % CLASSES
    assert torch.autograd.gradcheck(lambda p, q: tuple(trades.terms(p, q, labels, 6.0).values()), logits)
    for gradient in torch.autograd.grad(trades.terms(*logits, labels, 6.0)["divergence"], logits):
        assert float(gradient.norm()) > 0.1
