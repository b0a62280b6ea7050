"""ROS 2's image messages to RGB frames, with NumPy and Pillow, without ROS and cv_bridge.

Where the bytes of a frame are RGB in some order already, the result is a view of them: nothing is copied.
"""

from __future__ import annotations

from array import array
from typing import TypeAlias

import numpy as np

from flss_runtime.errors import DataError
from flss_runtime.images import ByteArray, decode_image
from flss_runtime.mosaic import demosaic
from flss_runtime.yuv import packed_to_rgb, planar_to_rgb

ImageData: TypeAlias = "bytes | bytearray | memoryview | array[int] | ByteArray"

# Encoding -> channels a pixel, bytes a channel, order. OpenCV's bare types are read as viewers do: blue first.
_CHANNELS = {
    "rgb8": (3, 1, "rgb"),
    "bgr8": (3, 1, "bgr"),
    "rgba8": (4, 1, "rgb"),
    "bgra8": (4, 1, "bgr"),
    "mono8": (1, 1, "grey"),
    "rgb16": (3, 2, "rgb"),
    "bgr16": (3, 2, "bgr"),
    "rgba16": (4, 2, "rgb"),
    "bgra16": (4, 2, "bgr"),
    "mono16": (1, 2, "grey"),
    "8UC1": (1, 1, "grey"),
    "8UC3": (3, 1, "bgr"),
    "8UC4": (4, 1, "bgr"),
    **{f"bayer_{order}{8 * size}": (1, size, order) for size in (1, 2) for order in ("rggb", "bggr", "gbrg", "grbg")},
}
# Encoding -> place of Y, U and V in four bytes that are two pixels.
_PACKED = {
    "uyvy": (1, 0, 2),
    "yuv422": (1, 0, 2),
    "yuyv": (0, 1, 3),
    "yuv422_yuy2": (0, 1, 3),
}
_PLANAR = {"nv12": "uv", "nv21": "vu"}
ENCODINGS = (*_CHANNELS, *_PACKED, *_PLANAR)

_MAX_PIXELS = 2**26  # 67 megapixels: what is larger is a damaged header
_DEPTH = "16UC1", "16SC1", "32FC1", "32FC", "64FC1"


def image_from_ros(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool | int, data: ImageData
) -> ByteArray:
    """Give a `sensor_msgs/Image` as an RGB frame.

    16-bit values keep their upper 8 bits, grey becomes three equal channels, and the fourth channel is ignored: what a
    camera sees is opaque, and drivers pad with any value. Bayer mosaics are interpolated bilinearly; YUV is BT.601 in
    studio range, with the chroma of the nearest sample. `8UC3` and `8UC4` are taken for BGR and BGRA.

    Args:
        encoding: One of `ENCODINGS`.
        height: Rows, in pixels.
        width: Columns, in pixels.
        step: Bytes from one row to the next, padding included.
        is_bigendian: Byte order of 16-bit values.
        data: `step * height` bytes (for nv12 and nv21 half as many again): bytes, array.array("B"), or uint8 array.

    Returns:
        (height, width, 3) uint8 RGB, not to be written to and valid as long as `data`: a view of it for all encodings
        of whole channels.

    Raises:
        DataError: The encoding is unknown, or the sizes are zero, too large or do not go together.
    """
    if encoding not in ENCODINGS:
        raise _unknown(encoding)
    if not (height >= 1 and width >= 1 and height * width <= _MAX_PIXELS):
        raise DataError(
            f"an image message is {width} x {height} pixels",
            f"send images of 1 to {_MAX_PIXELS:,} pixels; other sizes mean that the message is damaged",
        )
    if encoding in _PLANAR:
        return _planar(encoding, height, width, step, data)
    if encoding in _PACKED:
        _require_even(encoding, width)
        rows = _rows(encoding, height, width, 2 * width, step, data)
        return packed_to_rgb(rows.reshape(height, width // 2, 4), _PACKED[encoding])
    channels, size, order = _CHANNELS[encoding]
    rows = _rows(encoding, height, width, width * channels * size, step, data)
    upper = 0 if is_bigendian or size == 1 else 1
    values = rows.reshape(height, width, channels * size)[..., upper::size]
    if order == "rgb":
        return values[..., :3]
    if order == "bgr":
        return values[..., 2::-1]
    if order == "grey":
        return np.broadcast_to(values, (height, width, 3))
    return demosaic(values[..., 0], order)


def image_from_compressed(format: str, data: ImageData) -> ByteArray:
    """Give a `sensor_msgs/CompressedImage` as an RGB frame, decoded as `read_image` decodes a file.

    A Bayer mosaic that was compressed as it is ("bayer_rggb8; jpeg compressed ") is interpolated as a raw one.

    Args:
        format: The message's format, such as "jpeg" or "rgb8; jpeg compressed bgr8". What the picture is, its bytes
            say themselves.
        data: The bytes of a JPEG, PNG, TIFF, WebP or BMP file.

    Returns:
        (H, W, 3) uint8 RGB, not to be written to.

    Raises:
        DataError: It is a depth image, no picture that can be read, damaged, empty, or too large.
    """
    original, _, codec = (part.strip() for part in format.partition(";"))
    if codec.startswith("compressedDepth") or original in _DEPTH:
        raise DataError(
            f"a compressed image is of format {format!r}: distances, not a picture", "choose the colour camera's topic"
        )
    content = _bytes(data)
    if not content.size:
        raise DataError(f"a compressed image of format {format!r} is empty (0 bytes)", "see what the camera sends")
    image = decode_image(content.data, f"a compressed image of format {format!r}")
    if original.startswith("bayer_") and codec.endswith("compressed"):  # no pixel format behind: not converted before
        if original not in ENCODINGS:
            raise _unknown(original)
        return demosaic(image[..., 0], _CHANNELS[original][2])
    return image


def _planar(encoding: str, height: int, width: int, step: int, data: ImageData) -> ByteArray:
    _require_even(encoding, width)
    _require_even(encoding, height)
    rows = _rows(encoding, height + height // 2, width, width, step, data)
    chroma = rows[height:].reshape(height // 2, width // 2, 2)
    return planar_to_rgb(rows[:height], chroma if _PLANAR[encoding] == "uv" else chroma[..., ::-1])


def _rows(encoding: str, rows: int, width: int, row_bytes: int, step: int, data: ImageData) -> ByteArray:
    """Return the rows without their padding, (rows, row_bytes), a view of the data."""
    content = _bytes(data)
    if step < row_bytes or content.size != step * rows:
        raise DataError(
            f"an image message of encoding {encoding} and {width} pixels a row has step {step} and "
            f"{content.size:,} bytes",
            f"send at least {row_bytes} bytes a row, and step x {rows} rows of them",
        )
    return content.reshape(rows, step)[:, :row_bytes]


def _bytes(data: ImageData) -> ByteArray:
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise DataError(f"the image data are {type(data).__name__}", "pass bytes or a uint8 array") from error


def _require_even(encoding: str, size: int) -> None:
    if size % 2:
        raise DataError(
            f"an image message of encoding {encoding} has an odd size, {size} pixels",
            "send even sizes: two pixels share their colour",
        )


def _unknown(encoding: str) -> DataError:
    fix = f"send one of: {', '.join(ENCODINGS)}"
    if encoding in _DEPTH:
        fix = f"choose the colour camera's topic, for these are usually distances; else {fix} (grey: mono16)"
    return DataError(f"an image message has the encoding {encoding!r}, which is not known here", fix)
