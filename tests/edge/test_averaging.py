"""The moving average of the weights, and that a run measures and saves it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flss_edge import batch_norm
from flss_edge.averaging import MovingAverage
from flss_edge.checkpoint import load_checkpoint
from flss_edge.evaluation import accuracy, pgd_accuracy
from flss_edge.model import FLSS
from flss_edge.trainer import SELECTION_STEP_SIZE

from .small_runs import OFFICIAL_MODEL, assert_same_tensors, official_run


@pytest.mark.parametrize(("decay", "steps"), [(0.999, 40), (0.5, 12), (0.05, 3)])
def test_it_follows_a_hand_written_loop(decay: float, steps: int) -> None:
    """Weights, biases and running statistics, second batch norms too; early on the decay is (1 + n) / (10 + n)."""
    torch.manual_seed(0)
    network = FLSS(OFFICIAL_MODEL).double().train()
    batch_norm.add_second(network)
    average = MovingAverage(network, decay)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for count in range(steps):
        with torch.no_grad():
            for value in network.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
                else:
                    value.add_(1)
        average.follow(network, count)
        weight = decay if decay < (1 + count) / (10 + count) else (1 + count) / (10 + count)
        for name, value in network.state_dict().items():
            old = expected[name]
            expected[name] = weight * old + (1 - weight) * value if value.is_floating_point() else old
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10)
    assert any("second_norms" in name for name in expected)


def test_it_is_a_network_of_its_own_that_nothing_trains() -> None:
    network = FLSS(OFFICIAL_MODEL).train()
    average = MovingAverage(network, 0.9)
    before = copy.deepcopy(average.network.state_dict())
    network(torch.rand(4, 3, 16, 16)).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert_same_tensors(average.network.state_dict(), before)
    assert not any(module.training for module in average.network.modules())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())


def test_a_run_saves_and_measures_the_average(tmp_path: Path) -> None:
    """Its checkpoint is the average of the weights after each mini-batch, and the accuracies are those of it."""
    trainer = official_run(tmp_path, ema_decay=0.99, epochs=2)
    followed: list[dict[str, Tensor]] = [copy.deepcopy(trainer.network.state_dict())]
    update = trainer.update

    def watched(parts: object) -> dict[str, Tensor]:
        terms = update(parts)  # type: ignore[arg-type]
        followed.append(copy.deepcopy(trainer.network.state_dict()))
        return terms

    trainer.update = watched  # type: ignore[assignment]
    trainer.run()
    expected = followed[0]
    for count, state in enumerate(followed[1:]):
        weight = min(0.99, (1 + count) / (10 + count))
        for name, value in state.items():
            if value.is_floating_point():
                expected[name] = weight * expected[name] + (1 - weight) * value
    last = load_checkpoint(tmp_path / "last.pt")
    trained = trainer.network.state_dict()
    assert trainer.average is not None
    assert_same_tensors(last.model.state_dict(), trainer.average.network.state_dict())
    for name, value in last.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, trained[name]), name
    selection, config = trainer.data.selection, trainer.config
    robust = pgd_accuracy(
        last.model,
        selection,
        epsilon=config.epsilon,
        step_size=SELECTION_STEP_SIZE,
        steps=config.selection_steps,
        seed=config.seed + 2,
    )
    assert last.training["selection_accuracy"] == accuracy(last.model, selection)
    assert last.training["selection_pgd_accuracy"] == robust


def test_measurements_are_made_on_the_average(tmp_path: Path) -> None:
    """The average says class 1 whatever it sees, the trained network class 0, which is rarer."""
    trainer = official_run(tmp_path, ema_decay=0.99)
    keep = np.array([0, 1, 4, 7, 2, 5, 8, 11])  # one image of class 0, three of class 1, four of class 2
    trainer.data = replace(trainer.data, selection=trainer.data.selection.take(keep, "unbalanced"))
    assert trainer.average is not None
    for network, favourite in ((trainer.average.network, 1), (trainer.network, 0)):
        with torch.no_grad():
            network.head[-1].weight.zero_()
            network.head[-1].bias.copy_(torch.eye(3)[favourite])
    assert trainer._measure(1, lambda: False) == {"selection_accuracy": 3 / 8, "selection_pgd_accuracy": 3 / 8}
