"""The host images of a benchmark: the bundle's own, or camera frames made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flss_runtime.arrays import read_golden, read_reference
from flss_runtime.bundle import Bundle
from flss_runtime.manifest import GOLDEN_NAME, REFERENCE_NAME

_FRAME_BYTES = 64 * 2**20  # of camera frames: a benchmark should fit beside what else a robot runs


@dataclass(frozen=True)
class ImagePool:
    """Host images that frames are drawn from.

    Attributes:
        images: contiguous (H, W, 3) uint8 arrays.
        source: file of the bundle they come from.
        real: whether they are photographs of the data set, None where the bundle does not say.
    """

    images: tuple[NDArray[np.uint8], ...]
    source: str
    real: bool | None

    def order(self, seed: int, length: int = 4096) -> list[int]:
        """Return indices drawn with replacement; every arm walks through the same ones."""
        return [int(index) for index in np.random.default_rng(seed).integers(len(self.images), size=length)]

    def batch(self, size: int) -> NDArray[np.uint8]:
        """Return (size, H, W, 3) images, from the first on and again from there."""
        return np.stack([self.images[index % len(self.images)] for index in range(size)])

    def as_frames(self, size: tuple[int, int]) -> ImagePool:
        """Return the images scaled to camera frames: what is timed depends on their size, not on what they show.

        Args:
            size: width and height in pixels.
        """
        from PIL import Image

        few = max(4, _FRAME_BYTES // (3 * size[0] * size[1]))
        frames = (np.array(Image.fromarray(image).resize(size), np.uint8) for image in self.images[:few])
        return ImagePool(tuple(frames), self.source, self.real)


def load_images(bundle: Bundle) -> ImagePool:
    """Take the reference images of a bundle, or its few golden ones where it has no reference."""
    reference = read_reference(bundle)
    images = reference.images if reference else read_golden(bundle).images
    frames = tuple(np.ascontiguousarray(image) for image in images)
    return ImagePool(frames, REFERENCE_NAME if reference else GOLDEN_NAME, real=reference.real if reference else None)
