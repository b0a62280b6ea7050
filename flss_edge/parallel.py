"""Training in several processes, one for each device, started by torch's `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from flss_runtime.errors import UsageError

MEASUREMENT = timedelta(hours=2)  # the others wait that long for the first one's measurement of an epoch


@dataclass(frozen=True)
class Processes:
    """The processes that train one network; by default one.

    Attributes:
        rank: of this process, from 0; the first one writes the files.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes; one message for all of them."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.detach().copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.count == 1:
            return flag
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        flags = torch.tensor(float(flag), device=device)
        distributed.all_reduce(flags)
        return bool(flags.item())


@contextmanager
def join(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that `torchrun` started, if it did, and yield them with this process's device.

    Args:
        device: "cpu", or "cuda" for the GPU of this process's local rank.

    Raises:
        UsageError: one GPU by number was asked for, and there are several processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(), device
        return
    if ":" in device:
        raise UsageError(f"--device {device} names one GPU for {count} processes", "Write --device cuda.")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=MEASUREMENT)
    yield Processes(distributed.get_rank(), count), device
    distributed.destroy_process_group()  # not after an error: it could wait for processes that wait for this one
