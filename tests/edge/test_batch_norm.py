"""Batch norm's running statistics where one network sees several batches in a mini-batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flss_edge import batch_norm
from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.minibatch import Draws, Minibatch
from flss_edge.model import FLSS, build_network
from flss_edge.parallel import Processes
from flss_edge.recipes.config import Recipe
from flss_edge.update import Update

from .small_runs import OFFICIAL_MODEL, plus_run, recipe


@pytest.fixture
def network() -> FLSS:
    torch.manual_seed(0)
    model = FLSS(OFFICIAL_MODEL).double().train()
    with torch.no_grad():  # running statistics that no momentum leaves alone
        for norm in norms(model):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model


def norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if "running" in name}


def images(count: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-12) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_one_pass_moves_as_far_as_several(network: FLSS, count: int) -> None:
    repeated = copy.deepcopy(network)
    for _ in range(count):
        repeated.encoder(images())
    before = statistics(network)
    with batch_norm.moved_by(network, batch_norm.after_passes(count)):
        network.encoder(images())
    assert_close(statistics(network), statistics(repeated))
    assert any(not torch.equal(value, before[name]) for name, value in statistics(network).items())
    assert {norm.momentum for norm in norms(network)} == {0.1}


def test_momentum_comes_back_after_an_exception(network: FLSS) -> None:
    with pytest.raises(ZeroDivisionError), batch_norm.moved_by(network, 0.0):
        assert {norm.momentum for norm in norms(network)} == {0.0}
        raise ZeroDivisionError
    assert {norm.momentum for norm in norms(network)} == {0.1}


def test_statistics_are_kept_also_after_an_exception(network: FLSS) -> None:
    before = statistics(network)
    with batch_norm.kept(network):
        network(images())
        assert any(not torch.equal(value, before[name]) for name, value in statistics(network).items())
    assert_close(statistics(network), before, atol=0)
    with pytest.raises(ZeroDivisionError), batch_norm.kept(network):
        network(images())
        raise ZeroDivisionError
    assert_close(statistics(network), before, atol=0)


def test_parts_start_alike_and_their_mean_remains(network: FLSS) -> None:
    """Two passes a part, as in the first update; the parts count by their images."""
    ends = []
    for part in (images(2, seed=2), images(4, seed=3)):
        alone = copy.deepcopy(network)
        alone(part)
        alone(part.flip(0) / 2)
        ends.append(statistics(alone))
    averaged = batch_norm.Averaged(network, 2, Processes())
    for part in (images(2, seed=2), images(4, seed=3)):
        with averaged.part(len(part) / 6):
            network(part)
            network(part.flip(0) / 2)
    averaged.finish()
    assert_close(statistics(network), {name: ends[0][name] / 3 + 2 * ends[1][name] / 3 for name in ends[0]})


def test_one_part_is_left_as_it_is(network: FLSS) -> None:
    alone = copy.deepcopy(network)
    alone(images())
    averaged = batch_norm.Averaged(network, 1, Processes())
    with averaged.part(1.0):
        network(images())
    averaged.finish()
    assert_close(statistics(network), statistics(alone), atol=0)


def main_names(network: nn.Module) -> list[str]:
    return [name for name in network.state_dict() if not name.startswith("second_norms.")]


@pytest.mark.parametrize("kind", ["flss", "classifier"])
def test_the_second_norms_stand_in_within_the_block_only(kind: str) -> None:
    torch.manual_seed(0)
    config = {"flss": OFFICIAL_MODEL, "classifier": type(OFFICIAL_MODEL)(3, 8, image_size=16, network="classifier")}[
        kind
    ]
    network = build_network(config).double().train()
    plain = copy.deepcopy(network)
    batch_norm.add_second(network)
    assert main_names(network) == list(plain.state_dict())
    assert len(norms(network)) == 2 * len(norms(plain))
    main, spare = norms(plain), list(network.get_submodule("second_norms").children())
    with torch.no_grad():
        for norm in spare:
            norm.weight.mul_(2)
    placed = [(path, module) for path, module in network.named_modules() if "second_norms" not in path]
    before = statistics(plain)
    with batch_norm.second(network):
        within = network(images())
        for path, module in placed:
            if isinstance(module, nn.BatchNorm2d):
                assert network.get_submodule(path) in spare, path
    for norm in main:
        norm.weight.data.mul_(2)
    torch.testing.assert_close(within, plain(images()), rtol=0, atol=1e-12)  # as if those were the only norms
    assert_close({name: network.state_dict()[name] for name in before}, before, atol=0)
    moved = [(norm.running_mean, norm.running_var) for norm in spare]
    assert all(not torch.equal(mean, torch.zeros_like(mean)) for mean, _ in moved)
    assert [network.get_submodule(path) for path, _ in placed] == [module for _, module in placed]
    with pytest.raises(ZeroDivisionError), batch_norm.second(network):
        raise ZeroDivisionError
    assert [network.get_submodule(path) for path, _ in placed] == [module for _, module in placed]


def trained(config: Recipe, steps: int = 2) -> FLSS:
    torch.manual_seed(0)
    model = FLSS(OFFICIAL_MODEL)
    if config.config.second_norms:
        batch_norm.add_second(model)
    update = Update(model, torch.optim.SGD(model.parameters(), lr=0.05), config)
    for step in range(steps):
        draws = Draws(0, step, 6, slice(0, 6), torch.device("cpu"))
        update([Minibatch(images().float(), torch.arange(6) % 3, draws, progress=0.5, nominal=6)])
    return model


def test_the_second_norms_are_trained_by_the_second_view_alone() -> None:
    model = trained(recipe("official", view_weight=0.5, awp_gamma=0.01))
    for name, parameter in model.get_submodule("second_norms").named_parameters():
        fresh = torch.ones_like(parameter) if name.endswith("weight") else torch.zeros_like(parameter)
        assert not torch.equal(parameter, fresh), name


def test_the_view_acts_on_the_network_by_its_loss_alone() -> None:
    """With a weight that float32 rounds away, weights and main statistics are those of a recipe without the view."""
    faint = trained(recipe("official", view_weight=1e-30, awp_gamma=0.01)).state_dict()
    without = trained(recipe("official", awp_gamma=0.01)).state_dict()
    assert len(faint) > len(without)
    assert_close({name: faint[name] for name in without}, without, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_hold_the_network_without_them(suffix: str, tmp_path: Path) -> None:
    model = trained(recipe("official", view_weight=0.5)).eval()
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, Checkpoint(model, ("a", "b", "c")))
    loaded = load_checkpoint(path).model.eval()
    assert list(loaded.state_dict()) == main_names(model)
    with torch.no_grad():
        assert torch.equal(loaded(images().float()), model(images().float()))


def test_the_state_of_a_run_holds_them(tmp_path: Path) -> None:
    trainer = plus_run(tmp_path, epochs=1)
    trainer.run()
    again = plus_run(tmp_path, epochs=1)
    trained_norms, fresh = (run.network.get_submodule("second_norms").state_dict() for run in (trainer, again))
    fresh = {name: value.clone() for name, value in fresh.items()}
    assert again.resume()
    for name, value in again.network.get_submodule("second_norms").state_dict().items():
        assert torch.equal(value, trained_norms[name]), name
        assert not torch.equal(value, fresh[name]), name
