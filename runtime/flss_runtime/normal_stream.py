"""Raw integers and normals from a key and a counter, the same on every platform and for every version of NumPy.

NumPy keeps the raw stream of its bit generators stable, but not what it makes of it (`Generator.standard_normal` may
change), so the transform to normals is our own. The order of operations is part of the format: see `noise`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

BANK_STREAM, OFFSET_STREAM = 0, 1
_PIECE = 1024
_ONE, _ELEVEN = np.uint64(1), np.uint64(11)


class NormalStream:
    """One key's raw integers and normals, read from any counter.

    Args:
        key: 0 <= key < 2**128. It is kept inside the generator only and appears in no `repr`.
    """

    def __init__(self, key: int) -> None:
        self._generator = np.random.Philox(key=key)
        # Setting the state costs 1 us, a new generator 12.
        self._state: Any = self._generator.state
        self._counter = self._state["state"]["counter"]

    def raw(self, block: int, generation: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
        """Read raw integers.

        Args:
            block: First counter word of the first four integers, 0 <= block < 2**64; the next four come from block + 1.
            generation: Second counter word.
            stream: Third counter word, which keeps uses of one key apart.
            count: Number of integers.

        Returns:
            (count,) uint64.
        """
        self._counter[:3] = block, generation, stream
        self._generator.state = self._state
        return self._generator.random_raw(count)

    def write_normals(self, out: FloatArray, start: int, generation: int) -> None:
        """Fill an array with the normals of one generation of the bank.

        Args:
            out: (n,) float32, written.
            start: Position of the first normal in the bank, a multiple of 4.
            generation: How often that part of the bank has been renewed.
        """
        for first in range(0, out.size, _PIECE):  # piecewise: the intermediate arrays stay in the nearest cache
            piece = out[first : first + _PIECE]
            raw = self.raw((start + first) // 4, generation, BANK_STREAM, piece.size + piece.size % 2)
            raw >>= _ELEVEN
            # 53 bits each; the + 1 keeps zero out of the logarithm, so no normal exceeds sqrt(2 * 53 * ln 2) = 8.58.
            radius = (raw[0::2] + _ONE) * 2.0**-53
            np.log(radius, out=radius)
            radius *= -2.0
            np.sqrt(radius, out=radius)
            angle = raw[1::2] * (2.0 * math.pi * 2.0**-53)
            piece[0::2] = radius * np.cos(angle)
            piece[1::2] = (radius * np.sin(angle))[: piece.size // 2]
