"""Where an image's noise is in the bank, for a device that keeps its own copy of the bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flss_runtime.normal_stream import FloatArray

CHUNK = 1024  # normals that are rewritten at once


@dataclass(frozen=True, slots=True, eq=False)
class BankPlace:
    """Where an image's noise is in the bank.

    Attributes:
        bank: Flat float32 array, to be read only. It is the same object from call to call, until it is made anew.
        epoch: How many chunks of it have been rewritten since its stream began.
        start: Index of the first normal.
    """

    bank: FloatArray
    epoch: int
    start: int

    def changes_since(self, before: BankPlace | None) -> Iterator[slice]:
        """Yield the parts of the bank that are not as they were at an earlier call."""
        chunks = self.bank.size // CHUNK
        if before is None or before.bank is not self.bank or not 0 <= self.epoch - before.epoch <= chunks:
            yield slice(0, self.bank.size)
            return
        for step in range(before.epoch, self.epoch):
            start = step % chunks * CHUNK
            yield slice(start, start + CHUNK)
