"""Copies of frames, so that a camera may overwrite its own at once, in buffers that are used again."""

from __future__ import annotations

from collections import deque

import numpy as np

from flss_runtime.errors import DataError
from flss_runtime.stream.frame import Pixels

_KEPT = 4  # one runs, one waits, one is being copied; and one to spare
_MOST_BYTES = 2**28
_TYPES = (np.dtype(np.uint8), np.dtype(np.float32))
_FIX = "pass uint8 RGB of shape (H, W, 3), or float32 (3, H, W) in [0, 1] of the encoder's size"


class FrameBuffers:
    """Lends buffers and takes them back; after the first frames of a size nothing is allocated.

    Any thread, without a lock: a signal's handler may interrupt whoever holds one, and close the stream.
    """

    def __init__(self) -> None:
        self._free: deque[Pixels] = deque(maxlen=_KEPT)  # drops those of a size that came first

    def copy(self, image: object) -> Pixels:
        """Copy an image into a buffer of its own, to be given back.

        Args:
            image: (H', W', 3) uint8 or (3, H, W) float32; whether the sizes and the values fit is seen later. The
                `DataError` of a message that no image could be made of is raised as it is.

        Raises:
            DataError: It is no array of three dimensions and one of these types, is empty, has more than 256 MiB, or
                cannot be read.
        """
        if isinstance(image, DataError):
            raise image
        if not isinstance(image, np.ndarray):
            raise DataError(f"a frame is no NumPy array but {type(image).__name__}", _FIX)
        if image.dtype not in _TYPES or image.ndim != 3 or not 0 < image.nbytes <= _MOST_BYTES:
            raise DataError(f"a frame is {image.dtype} of shape {image.shape}", _FIX)
        try:
            buffer = self._taken(image)
            np.copyto(buffer, image)
        except Exception as error:  # no memory, or a subclass of ndarray that does as it likes
            raise DataError(f"a frame cannot be copied ({type(error).__name__}: {error})", _FIX) from error
        return buffer

    def give(self, buffer: Pixels | None) -> None:
        """Take a buffer back; nobody may use it any more."""
        if buffer is not None:
            self._free.append(buffer)

    def _taken(self, image: Pixels) -> Pixels:
        try:
            buffer = self._free.pop()
        except IndexError:
            return np.empty(image.shape, image.dtype)
        fits = buffer.shape == image.shape and buffer.dtype == image.dtype
        return buffer if fits else np.empty(image.shape, image.dtype)  # a camera changed: the old one is let go
