"""Brightness and colour differences (YUV, 8 bits, two or four pixels sharing their colour) to RGB.

ITU-R BT.601 in studio range (Y from 16 to 235, U and V from 16 to 240 around 128), which is what cameras send and what
OpenCV takes them for; in fixed point with 20 fractional bits, rounded half up, as there.
"""

from __future__ import annotations

import numpy as np

from flss_runtime.images import ByteArray

_BITS = 20
_Y, _U_BLUE, _U_GREEN, _V_GREEN, _V_RED = (round(factor * 2**_BITS) for factor in (1.164, 2.018, -0.391, -0.813, 1.596))


def packed_to_rgb(pairs: ByteArray, places: tuple[int, int, int]) -> ByteArray:
    """Convert rows in which two pixels share four bytes.

    Args:
        pairs: (H, W / 2, 4).
        places: Where in the four bytes the first Y, U and V stand; the second Y is two bytes after the first.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, half = pairs.shape[:2]
    first, blue, red = places
    bright = pairs[..., first::2].reshape(height, 2 * half)
    colour = np.stack([pairs[..., blue], pairs[..., red]], axis=2)
    return _to_rgb(bright, colour.repeat(2, axis=1))


def planar_to_rgb(bright: ByteArray, colour: ByteArray) -> ByteArray:
    """Convert a plane of brightness and one of colour at half its size.

    Args:
        bright: (H, W).
        colour: (H / 2, W / 2, 2), U and V.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _to_rgb(bright, colour.repeat(2, axis=0).repeat(2, axis=1))


def _to_rgb(bright: ByteArray, colour: ByteArray) -> ByteArray:
    luma = np.maximum(bright.astype(np.int32) - 16, 0) * _Y + (1 << (_BITS - 1))
    blue, red = (colour[..., place].astype(np.int32) - 128 for place in (0, 1))
    image = np.empty((*bright.shape, 3), np.uint8)
    for channel, added in enumerate((_V_RED * red, _U_GREEN * blue + _V_GREEN * red, _U_BLUE * blue)):
        image[..., channel] = np.clip((luma + added) >> _BITS, 0, 255)
    return image
