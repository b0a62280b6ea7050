"""Images as a graph takes them: checked, stacked, and no more at a time than memory should hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import DataError
from flss_runtime.images import FloatArray, InputSpec, check_image, to_nchw

Images = npt.NDArray[Any] | Sequence[Any]

MAX_BATCH = 128
_CHUNK_BYTES = 64 * 2**20  # of noise
MAX_INPUT_BYTES = 8 * 2**20  # of images: an encoder's activations take some ten times its input


class Batches:
    """Turns images into batches; owns the buffer of a batch of one, which the next one overwrites.

    Args:
        input: What the encoder takes.
        noise_bytes: Noise that an image of a batch needs.

    Attributes:
        frame: The array (1, 3, H, W) float32 that every batch of one comes in.
    """

    def __init__(self, input: InputSpec, noise_bytes: int) -> None:
        self.input = input
        self.frame = np.empty((1, 3, input.height, input.width), np.float32)
        self._noise_bytes = noise_bytes

    def checked(self, images: Images) -> tuple[Sequence[Any], list[str]]:
        """Return the images one by one, and what is wrong with each: "" where nothing is."""
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not several and not (isinstance(images, np.ndarray) and images.ndim == 4):
            images = [images]  # one image, or something that is none and gets told so
        return list(images), [check_image(image, self.input) for image in images]

    def of(self, images: Images) -> Iterator[FloatArray]:
        """Yield batches (B, 3, H, W) float32 of images that all have to be valid.

        Raises:
            DataError: An image is invalid.
        """
        frames, problems = self.checked(images)
        for number, problem in enumerate(problems):
            if problem:
                raise DataError(
                    f"image {number} cannot be classified: {problem}",
                    "pass uint8 (B, H, W, 3) or float32 (B, 3, H, W) in [0, 1]; read_image() brings files to that",
                )
        yield from self.of_valid(frames)

    def of_valid(self, frames: Sequence[npt.NDArray[Any]]) -> Iterator[FloatArray]:
        """Yield batches (B, 3, H, W) float32 of valid images."""
        size = max(1, min(MAX_BATCH, _CHUNK_BYTES // self._noise_bytes, MAX_INPUT_BYTES // self.frame.nbytes))
        for start in range(0, len(frames), size):
            yield self.stack(frames[start : start + size])

    def stack(self, frames: Sequence[npt.NDArray[Any]]) -> FloatArray:
        """Return valid images as one batch (B, 3, H, W) float32, for one image without allocating."""
        if len(frames) == 1:
            if frames[0].dtype == np.uint8:
                return to_nchw(frames[0][None], self.frame)
            np.copyto(self.frame[0], frames[0])  # a graph is bound to this array, not to the caller's
            return self.frame
        batch = np.empty((len(frames), *self.frame.shape[1:]), np.float32)
        for row, image in enumerate(frames):
            if image.dtype == np.uint8:
                to_nchw(image[None], batch[row : row + 1])
            else:
                batch[row] = image
        return batch
