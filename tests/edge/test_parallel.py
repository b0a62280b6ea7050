"""Two processes train as one does: against accumulated parts, and against an independent reference."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flss_edge import trainer as trainer_module
from flss_edge.averaging import MovingAverage
from flss_edge.checkpoint import load_checkpoint
from flss_edge.hardware import Hardware
from flss_edge.parallel import Processes, join
from flss_edge.trainer import Stopped
from flss_edge.update import Update
from flss_runtime.errors import UsageError

from .half_batches import CONFIGS, SIZES, halves, part_of, reference, small_network
from .nursery import Nursery
from .small_runs import assert_same_end, assert_same_tensors, official_run, records


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the nursery's processes: more threads add up in another order, and training amplifies the rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as process:
        yield process


def as_one_of_two(rank: int, port_file: str) -> None:
    """Set what `torchrun` sets."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = Path(port_file).read_text()


def trained(name: str, processes: Processes, own: slice) -> dict[str, Any]:
    """Four mini-batches in float64, of which this process has those of the two halves that `own` says."""
    network, optimizer = small_network(name)
    average = MovingAverage(network, 0.9)
    update = Update(network, optimizer, CONFIGS[name][0], processes)
    logged = []
    for step, size in enumerate(SIZES):
        terms = update([part_of(step, size, rows) for rows in halves(size)[own]])
        average.follow(network, step)
        processes.add(list(terms.values()))
        logged.append(terms)
    return {"terms": logged, "network": network.state_dict(), "average": average.network.state_dict()}


def train_half(rank: int, port: str, name: str, folder: str) -> None:
    """One of two processes."""
    as_one_of_two(rank, port)
    with join("cpu") as (processes, device):
        assert (processes.rank, processes.count, device) == (rank, 2, "cpu")
        assert processes.first == (rank == 0)
        assert [processes.any(flag) for flag in (False, True, rank == 1)] == [False, True, True]
        result = trained(name, processes, slice(rank, rank + 1))
    torch.save(result, Path(folder) / f"{rank}.pt")


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float) -> None:
    """Equal but for rounding; how often batch norm was called is not compared, as nothing reads it."""
    names = [name for name in b if "num_batches_tracked" not in name]
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=list(CONFIGS))
def two(request: pytest.FixtureRequest, nursery: Nursery, port: str, tmp_path: Path) -> tuple[str, list[Any]]:
    """What each of two processes ended with."""
    assert nursery.run(train_half, port, request.param, str(tmp_path), count=2) == [0, 0]
    return request.param, [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture
def port(tmp_path: Path) -> str:
    """A file with a free port's number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    path = tmp_path / "port"
    path.write_text(str(number))
    return str(path)


def test_two_processes_equal_one_with_two_parts_and_the_reference(two: tuple[str, list[Any]]) -> None:
    name, (first, second) = two
    for key in ("network", "average"):
        assert_same_tensors(first[key], second[key])  # the processes never drift apart
    one = trained(name, Processes(), slice(0, 2))
    for key in ("network", "average"):
        assert_close(first[key], one[key], 1e-9)
    for ours, expected in zip(first["terms"], one["terms"], strict=True):
        assert list(ours) == list(expected)
        assert_close(ours, expected, 1e-9)
    if name == "official":
        network, losses = reference()
        assert_close(first["network"], network, 1e-9)
        for terms, (adversarial, clean) in zip(first["terms"], losses, strict=True):
            assert float(terms["adversarial_loss"]) == pytest.approx(adversarial, abs=1e-9)
            assert float(terms["clean_loss"]) == pytest.approx(clean, abs=1e-9)


def test_halves_are_not_the_whole() -> None:
    """Normalised apart they give other weights; so the test above can fail."""
    network, optimizer = small_network("official")
    Update(network, optimizer, CONFIGS["official"][0])([part_of(0, 10, slice(0, 10))])
    apart, optimizer = small_network("official")
    Update(apart, optimizer, CONFIGS["official"][0])([part_of(0, 10, rows) for rows in halves(10)])
    distance = max(
        float((a - b).detach().abs().max()) for a, b in zip(network.parameters(), apart.parameters(), strict=True)
    )
    assert distance > 1e-4


def run_half(rank: int, port: str, folder: str, notes: str, resume: bool, who: int, asks: int) -> None:
    """A whole run in two processes; process `who` asks to stop when it is itself asked the time number `asks`."""
    as_one_of_two(rank, port)
    trainer_module.STEPS_BETWEEN_LOGS = 2
    asked = count(1)
    with join("cpu") as (processes, device):
        hardware = Hardware(device, processes=processes)
        own = Path(folder) if resume or rank == 0 else Path(notes) / "never written"
        trainer = official_run(own, hardware, ema_decay=0.9)
        assert trainer.resume() == resume
        stopped = False
        try:
            trainer.run(stop=lambda: next(asked) == asks and rank == who)
        except Stopped:
            stopped = True
    assert not (Path(notes) / "never written").exists()
    (Path(notes) / f"{rank}.json").write_text(json.dumps([stopped, trainer.step, trainer.evaluated]))


def test_whole_runs_in_two_processes(
    nursery: Nursery, tmp_path: Path, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one process with two parts; and stopped by the second process, then in the first one's measurement."""
    monkeypatch.setattr(trainer_module, "STEPS_BETWEEN_LOGS", 2)
    one, two, stopped, notes = (tmp_path / name for name in ("one", "two", "stopped", "notes"))
    for folder in (one, two, stopped, notes):
        folder.mkdir()

    def run(folder: Path, resume: bool, who: int = 0, asks: int = 0) -> list[list[int]]:
        arguments = (port, str(folder), str(notes), resume, who, asks)
        assert nursery.run(run_half, *arguments, count=2) == [0, 0]
        return [json.loads((notes / f"{rank}.json").read_text()) for rank in (0, 1)]

    official_run(one, Hardware(accumulate=2), ema_decay=0.9).run()
    assert run(two, resume=False) == [[False, 15, 3]] * 2
    for ours, expected in zip(records(two), records(one), strict=True):
        assert ours == pytest.approx(expected, abs=1e-5)
    ours, expected = (load_checkpoint(folder / "last.pt") for folder in (two, one))
    assert ours.training["parts"] == expected.training["parts"] == 2
    assert_close(ours.model.state_dict(), expected.model.state_dict(), 1e-5)

    assert run(stopped, resume=False, who=1, asks=2) == [[True, 4, 0]] * 2
    assert run(stopped, resume=True, who=0, asks=1) == [[True, 5, 0]] * 2  # while the first measures epoch 1
    assert run(stopped, resume=True) == [[False, 15, 3]] * 2
    assert_same_end(stopped, two)


def test_two_parts_resume_what_two_processes_began(nursery: Nursery, tmp_path: Path, port: str) -> None:
    """The state says into how many parts a mini-batch is divided, not by whom; one part is another training."""
    folder, notes = tmp_path / "run", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    assert nursery.run(run_half, port, str(folder), str(notes), False, 1, 1, count=2) == [0, 0]
    assert official_run(folder, Hardware(accumulate=2), ema_decay=0.9).resume()
    with pytest.raises(UsageError, match=r"other settings \(parts\)"):
        official_run(folder, ema_decay=0.9).resume()


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cuda:1") as (processes, device):
        assert (processes, device) == (Processes(), "cuda:1")
    tensors = [torch.ones(3)]
    Processes().add(tensors)
    assert tensors[0].tolist() == [1, 1, 1]
    assert Processes().any(True) and not Processes().any(False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="names one GPU for 2 processes"), join("cuda:1"):
        pass


def add_tensors(rank: int, port: str) -> None:
    """Shapes, orders in memory and types come back as they were; an empty list sends nothing."""
    as_one_of_two(rank, port)
    with join("cpu") as (processes, _):
        kernels = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        expected = kernels.clone() * 3
        parameter = torch.nn.Parameter(torch.full((2,), 1.0 + rank))
        scalar = torch.tensor(10.0 * rank)
        processes.add([kernels.mul_(1 + rank), parameter, scalar])
        processes.add([])
        assert torch.equal(kernels, expected) and kernels.is_contiguous(memory_format=torch.channels_last)
        assert parameter.tolist() == [3, 3] and float(scalar) == 10


def test_sums_over_processes_are_made_in_place(nursery: Nursery, port: str) -> None:
    assert nursery.run(add_tensors, port, count=2) == [0, 0]
