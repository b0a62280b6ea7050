"""Where a training run computes, and how exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flss_edge.parallel import Processes
from flss_runtime.errors import UsageError

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes; the recipe says what.

    Attributes:
        device: torch's name of it.
        precision: fp32, tf32 (matrix products of a GPU rounded to 10 bits), or bf16 for the backbone; losses, KL terms
            and the weight perturbation are in float32 always. bf16 has float32's range and needs no loss scaling.
        processes: those that share each mini-batch.
        accumulate: parts of a process's share, one after the other: less memory, and batch norm sees smaller batches.
        compile: torch.compile the backbone.
    """

    device: str = "cpu"
    precision: str = "fp32"
    processes: Processes = field(default_factory=Processes)
    accumulate: int = 1
    compile: bool = False

    @property
    def parts(self) -> int:
        """Number of parts of a mini-batch that are normalised apart, over all processes."""
        return self.processes.count * self.accumulate

    def prepare(self) -> torch.device:
        """Set what a GPU may round, and return the device; a CPU computes float32 as such.

        Raises:
            UsageError: an unknown precision, or no part of a mini-batch.
        """
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}", f"Use one of: {', '.join(PRECISIONS)}.")
        if self.accumulate < 1:
            raise UsageError(f"accumulate is {self.accumulate}", "Give the number of parts, at least 1.")
        if self.compile:
            # Train and eval, each momentum, both sets of batch norms, full and last mini-batches: a graph for each.
            # Past torch's limit of 8 it would go on uncompiled. The name is the one that torch 2.6 knows too.
            torch._dynamo.config.cache_size_limit = 64
        device = torch.device(self.device)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
            torch.backends.cudnn.benchmark = True  # shapes repeat for hours
        return device
