"""Bayer mosaics, as colour cameras read their sensors out, to RGB."""

from __future__ import annotations

import numpy as np

from flss_runtime.errors import DataError
from flss_runtime.images import ByteArray

_ALONG, _ACROSS = ((0, -1), (0, 1)), ((-1, 0), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_CHANNEL = {"r": 0, "g": 1, "b": 2}


def demosaic(mosaic: ByteArray, order: str) -> ByteArray:
    """Interpolate the two colours that a pixel lacks bilinearly: the mean of its nearest neighbours of that colour.

    Beyond the border the mosaic is mirrored, which keeps its colours in their places. Means are rounded half up.

    Args:
        mosaic: (H, W), one colour a pixel, H and W >= 2.
        order: Colours of the upper left 2 x 2 pixels in reading order: "rggb", "bggr", "gbrg" or "grbg".

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: The mosaic lacks a colour, for it has a single row or column.
    """
    height, width = mosaic.shape
    if height < 2 or width < 2:
        raise DataError(f"a Bayer mosaic is {width} x {height} pixels", "send at least 2 x 2 pixels")
    padded = np.pad(mosaic, 1, "reflect").astype(np.uint16)
    image = np.empty((height, width, 3), np.uint8)
    for place, colour in enumerate(order):
        row, column = divmod(place, 2)
        target = image[row::2, column::2]

        def mean_of(neighbours: tuple[tuple[int, int], ...], row: int = row, column: int = column) -> ByteArray:
            total = sum(
                padded[1 + row + down : 1 + height + down : 2, 1 + column + right : 1 + width + right : 2]
                for down, right in neighbours
            )
            return (np.asarray(total) + len(neighbours) // 2) // len(neighbours)

        target[..., _CHANNEL[colour]] = mosaic[row::2, column::2]
        if colour == "g":
            beside = order[place ^ 1]  # the other colour of this row
            target[..., _CHANNEL[beside]] = mean_of(_ALONG)
            target[..., 2 - _CHANNEL[beside]] = mean_of(_ACROSS)
        else:
            target[..., 1] = mean_of(_ALONG + _ACROSS)
            target[..., 2 - _CHANNEL[colour]] = mean_of(_DIAGONAL)
    return image
