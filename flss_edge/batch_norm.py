"""Batch norm's running statistics where one network sees several batches: clean, adversarial, in parts, as a proxy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flss_edge.parallel import Processes

SECOND = "second_norms"  # name of the second set in a network, and of its tensors
MOMENTUM = 0.1  # PyTorch's default, which every recipe here was published with


@contextmanager
def moved_by(network: nn.Module, momentum: float) -> Iterator[None]:
    """Let the running statistics move by `momentum` (0 freezes them) within the block."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield
    finally:
        for norm in norms:
            norm.momentum = MOMENTUM


def after_passes(count: int) -> float:
    """Return the momentum of one pass that moves the running statistics as far as `count` equal passes would."""
    return 1 - (1 - MOMENTUM) ** count


@contextmanager
def kept(network: nn.Module) -> Iterator[None]:
    """Put the running statistics back at the end of the block."""
    buffers = _statistics(network)
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


class Averaged:
    """Parts of a mini-batch that are normalised apart: each starts from the same statistics, and their mean remains.

    With one part in one process nothing is copied.
    """

    def __init__(self, network: nn.Module, parts: int, processes: Processes) -> None:
        """Remember the statistics that every part starts from."""
        self._alone = parts == 1 and processes.count == 1
        self._processes = processes
        self._buffers = [] if self._alone else _statistics(network)
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Run one part, which is `share` of the whole mini-batch."""
        for buffer, value in zip(self._buffers, self._before, strict=True):
            buffer.copy_(value)
        yield
        for total, buffer in zip(self._sums, self._buffers, strict=True):
            total.add_(buffer, alpha=share)

    def finish(self) -> None:
        """Leave the mean over all parts of all processes."""
        self._processes.add(self._sums)
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(total)


def add_second(network: nn.Module) -> None:
    """Give the network a second set of batch norms, trained along and used within `second`; never exported."""
    network.add_module(SECOND, nn.ModuleList(copy.deepcopy(norm) for _, _, norm in _places(network)))


@contextmanager
def second(network: nn.Module) -> Iterator[None]:
    """Let the second set of batch norms stand in for the first within the block."""
    places = _places(network)
    norms = network.get_submodule(SECOND)
    for (parent, name, _), norm in zip(places, norms.children(), strict=True):
        setattr(parent, name, norm)
    try:
        yield
    finally:
        for parent, name, norm in places:
            setattr(parent, name, norm)


def _places(network: nn.Module) -> list[tuple[nn.Module, str, nn.BatchNorm2d]]:
    return [
        (parent, name, child)
        for path, parent in network.named_modules()
        if path.partition(".")[0] != SECOND
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]


def _statistics(network: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
