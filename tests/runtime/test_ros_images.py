"""Image messages become the frames that they show, against NumPy and Pillow by hand."""

from __future__ import annotations

import io
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flss_runtime.errors import DataError
from flss_runtime.images import InputSpec, check_image, fit_image
from flss_runtime.ros_images import ENCODINGS, image_from_compressed, image_from_ros

Bytes = npt.NDArray[np.uint8]


def random_image(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def message(encoding: str, pixels: npt.NDArray[Any], padding: int = 0, big: bool = False) -> tuple[Any, ...]:
    """The arguments of `image_from_ros` for pixels (H, W, channels) of any integer type."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).reshape(height, -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return encoding, height, width, padded.shape[1], big, padded.tobytes()


RGB = random_image()
GREY = RGB[..., :1]
EIGHT_BIT = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "8UC3": RGB[..., ::-1],
    "rgba8": np.dstack([RGB, random_image(channels=1, seed=1)]),  # whatever the driver pads with
    "bgra8": np.dstack([RGB[..., ::-1], random_image(channels=1, seed=1)]),
    "8UC4": np.dstack([RGB[..., ::-1], random_image(channels=1, seed=1)]),
    "mono8": GREY,
    "8UC1": GREY,
}


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("encoding", EIGHT_BIT)
def test_channels_of_eight_bits(encoding: str, padding: int) -> None:
    shown = RGB if EIGHT_BIT[encoding].shape[2] > 1 else GREY.repeat(3, axis=2)
    image = image_from_ros(*message(encoding, EIGHT_BIT[encoding], padding))
    np.testing.assert_array_equal(image, shown, strict=True)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16", "mono16"])
def test_channels_of_sixteen_bits_keep_the_upper_eight(encoding: str, big: bool) -> None:
    low = random_image(seed=2).astype(np.uint16)
    deep = RGB.astype(np.uint16) * 256 + low
    pixels = {"rgb": deep, "bgr": deep[..., ::-1], "mon": deep[..., :1]}[encoding[:3]]
    if "a" in encoding:
        pixels = np.dstack([pixels, low[..., :1]])
    shown = GREY.repeat(3, axis=2) if encoding == "mono16" else RGB
    for padding in (0, 3):
        np.testing.assert_array_equal(image_from_ros(*message(encoding, pixels, padding, big)), shown, strict=True)


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(["rgb8", "bgra8", "mono8", "bgr16", "mono16"]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 9),
    big=st.booleans(),
)
def test_padding_and_byte_order_change_nothing(encoding: str, height: int, width: int, padding: int, big: bool) -> None:
    channels = {"m": 1, "r": 3}.get(encoding[0], 4 if "a" in encoding else 3)
    pixels: Any = random_image(height, width, channels)
    pixels = pixels.astype(np.uint16) * 257 if "16" in encoding else pixels
    plain = image_from_ros(*message(encoding, pixels))
    np.testing.assert_array_equal(image_from_ros(*message(encoding, pixels, padding, big)), plain, strict=True)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "mono8", "rgb16"])
def test_whole_channels_are_a_view_and_can_be_classified(encoding: str) -> None:
    data = np.zeros(8 * 6 * 8, np.uint8)
    size = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "mono8": 1, "rgb16": 6}[encoding]
    image = image_from_ros(encoding, 6, 8, 8 * size, False, data[: 48 * size])
    assert np.shares_memory(image, data)
    assert check_image(image, InputSpec(6, 8)) == ""
    for size_wanted in ((6, 8), (3, 4)):
        fitted = fit_image(image, InputSpec(*size_wanted))
        np.testing.assert_array_equal(fitted, fit_image(np.ascontiguousarray(image), InputSpec(*size_wanted)))


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: array("B", data), lambda d: np.array([*d], np.uint8)]
)
def test_data_may_be_any_buffer(kind: Any) -> None:
    arguments = message("rgb8", RGB)
    np.testing.assert_array_equal(image_from_ros(*arguments[:-1], kind(arguments[-1])), RGB)
    png = encoded(RGB)
    np.testing.assert_array_equal(image_from_compressed("png", kind(png)), RGB)


ORDERS = {"rggb": "RG/GB", "bggr": "BG/GR", "gbrg": "GB/RG", "grbg": "GR/BG"}


def colour_at(order: str, row: int, column: int) -> str:
    return ORDERS[order].split("/")[row % 2][column % 2]


def mean_of_colour(mosaic: Bytes, order: str, row: int, column: int, colour: str) -> int:
    """The mean of the pixels of a colour in the 3 x 3 around a pixel that has another one, mirrored at the border."""
    height, width = mosaic.shape
    values = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            at = abs(row + down), abs(column + right)
            at = min(at[0], 2 * height - 2 - at[0]), min(at[1], 2 * width - 2 - at[1])
            if colour_at(order, *at) == colour:
                values.append(int(mosaic[at]))
    return (2 * sum(values) + len(values)) // (2 * len(values))


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 7), (3, 2)])
@pytest.mark.parametrize("order", ORDERS)
def test_a_bayer_mosaic_is_interpolated(order: str, size: tuple[int, int]) -> None:
    mosaic = random_image(*size, channels=1)[..., 0]
    image = image_from_ros(*message(f"bayer_{order}8", mosaic[..., None], padding=2))
    for row, column in np.ndindex(*size):
        for channel, colour in enumerate("RGB"):
            own = colour_at(order, row, column) == colour
            expected = int(mosaic[row, column]) if own else mean_of_colour(mosaic, order, row, column, colour)
            assert image[row, column, channel] == expected, (row, column, colour)


@pytest.mark.parametrize("big", [False, True])
def test_a_deep_mosaic_keeps_the_upper_eight_bits(big: bool) -> None:
    mosaic = random_image(channels=1)
    deep = mosaic.astype(np.uint16) * 256 + 77
    shown = image_from_ros(*message("bayer_grbg8", mosaic))
    np.testing.assert_array_equal(image_from_ros(*message("bayer_grbg16", deep, big=big)), shown)


# Colours of the BT.601 test pattern in studio range (EBU Tech. 3213), and what they are in RGB.
PATTERN = {
    (235, 128, 128): (255, 255, 255),
    (16, 128, 128): (0, 0, 0),
    (126, 128, 128): (128, 128, 128),
    (81, 90, 240): (255, 0, 0),
    (145, 54, 34): (0, 255, 0),
    (41, 240, 110): (0, 0, 255),
}


def rgb_by_the_standard(bright: npt.NDArray[Any], blue: npt.NDArray[Any], red: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """BT.601 from its luma weights, in floating point."""
    kr, kb = 0.299, 0.114
    y, pb, pr = (bright - 16.0) / 219, (blue - 128.0) / 224, (red - 128.0) / 224
    r, b = y + 2 * (1 - kr) * pr, y + 2 * (1 - kb) * pb
    return np.clip(np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1) * 255, 0, 255)


def yuv_message(encoding: str, bright: Bytes, blue: Bytes, red: Bytes, padding: int = 0) -> tuple[Any, ...]:
    """Brightness (H, W) and colour: (H, W / 2) of packed, (H / 2, W / 2) of planar encodings."""
    height, width = bright.shape
    if encoding.startswith("nv"):
        pair = (blue, red) if encoding == "nv12" else (red, blue)
        rows = np.concatenate([bright, np.stack(pair, axis=2).reshape(height // 2, width)])
    else:
        even, odd = bright[:, ::2], bright[:, 1::2]
        order = (blue, even, red, odd) if encoding in ("uyvy", "yuv422") else (even, blue, odd, red)
        rows = np.stack(order, axis=2).reshape(height, 2 * width)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return encoding, height, width, rows.shape[1], False, rows.tobytes()


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2", "nv12", "nv21"])
def test_brightness_and_colour_become_rgb(encoding: str, padding: int) -> None:
    down = 2 if encoding.startswith("nv") else 1
    rng = np.random.default_rng(3)
    bright = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    blue, red = rng.integers(0, 256, (2, 4 // down, 3), dtype=np.uint8)
    image = image_from_ros(*yuv_message(encoding, bright, blue, red, padding))
    whole = [plane.repeat(down, axis=0).repeat(2, axis=1).astype(float) for plane in (blue, red)]
    expected = rgb_by_the_standard(np.maximum(bright, 16), *whole)
    assert np.abs(image - expected).max() <= 1
    for (y, u, v), rgb in PATTERN.items():
        flat = [np.full(plane.shape, value, np.uint8) for plane, value in ((bright, y), (blue, u), (red, v))]
        shown = image_from_ros(*yuv_message(encoding, *flat))
        assert np.abs(shown.astype(int) - rgb).max() <= 1, rgb


WRONG = {
    "an unknown encoding": (("rgb9", 6, 8, 24, 0, bytes(144)), "'rgb9'.*rgb8, bgr8"),
    "an empty encoding": (("", 6, 8, 24, 0, bytes(144)), "''.*known"),
    "distances": (("16UC1", 6, 8, 16, 0, bytes(96)), "colour camera's topic"),
    "no rows": (("rgb8", 0, 8, 24, 0, b""), "8 x 0 pixels"),
    "no columns": (("rgb8", 6, 0, 0, 0, b""), "0 x 6 pixels"),
    "huge": (("rgb8", 2**20, 2**20, 2**22, 0, b""), "1048576 x 1048576 pixels"),
    "a step shorter than a row": (("rgb8", 6, 8, 23, 0, bytes(6 * 23)), "step 23.*at least 24"),
    "too few bytes": (("rgb8", 6, 8, 24, 0, bytes(143)), "143 bytes"),
    "too many bytes": (("rgb8", 6, 8, 24, 0, bytes(145)), "145 bytes"),
    "no bytes": (("mono16", 6, 8, 16, 0, b""), "0 bytes"),
    "pairs of an odd width": (("uyvy", 6, 7, 14, 0, bytes(84)), "odd size, 7"),
    "planes of an odd height": (("nv12", 5, 8, 8, 0, bytes(60)), "odd size, 5"),
    "a plane of brightness alone": (("nv21", 6, 8, 8, 0, bytes(48)), "step x 9 rows"),
    "a mosaic of one row": (("bayer_rggb8", 1, 8, 8, 0, bytes(8)), "8 x 1 pixels.*2 x 2"),
    "data that are a list": (("mono8", 2, 2, 2, 0, [0, 0, 0, 0]), "list"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_image_is_refused_with_what_arrived(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        image_from_ros(*arguments)


@settings(max_examples=200, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS) | st.text(max_size=8),
    height=st.integers(0, 2**32 - 1) | st.integers(0, 4),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 4),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 12),
    data=st.binary(max_size=64),
)
def test_any_message_is_an_image_or_refused(encoding: str, height: int, width: int, step: int, data: bytes) -> None:
    try:
        image = image_from_ros(encoding, height, width, step, False, data)
    except DataError:
        return
    assert image.shape == (height, width, 3) and image.dtype == np.uint8


def encoded(pixels: npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["png", "rgb8; png compressed bgr8", "jpeg", ""])
def test_a_compressed_image_is_what_its_bytes_say(form: str) -> None:
    np.testing.assert_array_equal(image_from_compressed(form, encoded(RGB)), RGB, strict=True)
    np.testing.assert_array_equal(image_from_compressed(form, encoded(GREY[..., 0])), GREY.repeat(3, axis=2))


def test_a_compressed_jpeg_is_decoded_as_a_file_is() -> None:
    jpeg = encoded(random_image(48, 64), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    np.testing.assert_array_equal(image_from_compressed("rgb8; jpeg compressed bgr8", jpeg), expected)


def test_a_compressed_deep_grey_keeps_the_upper_eight_bits() -> None:
    deep = GREY[..., 0].astype(np.uint16) * 256 + 99
    np.testing.assert_array_equal(
        image_from_compressed("mono16; png compressed ", encoded(deep)), GREY.repeat(3, axis=2)
    )


def test_a_compressed_mosaic_is_interpolated_unless_it_was_before() -> None:
    mosaic = random_image(channels=1)
    raw = image_from_ros(*message("bayer_rggb8", mosaic))
    png = encoded(mosaic[..., 0])
    np.testing.assert_array_equal(image_from_compressed("bayer_rggb8; png compressed ", png), raw)
    np.testing.assert_array_equal(
        image_from_compressed("bayer_rggb8; png compressed bgr8", png), mosaic.repeat(3, axis=2)
    )


PNG = encoded(RGB)
NO_PICTURES = {
    "nothing": ("jpeg", b"", "0 bytes"),
    "distances": ("16UC1; compressedDepth png", PNG, "distances"),
    "distances as a picture": ("16UC1; png compressed ", PNG, "distances"),
    "no picture": ("h264", b"\0\0\0\1" + bytes(90), "'h264'.*not a picture"),
    "cut off": ("png", PNG[:-40], "damaged or cut off"),
    "transparent": ("png", encoded(np.dstack([RGB, GREY])), "transparent"),
    "an unknown mosaic": ("bayer_xxxx8; jpeg compressed ", encoded(GREY[..., 0]), "bayer_xxxx8"),
    "data that are a list": ("png", [1, 2], "list"),
}


@pytest.mark.parametrize(("form", "data", "says"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_compressed_image_is_refused(form: str, data: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        image_from_compressed(form, data)


def test_a_compressed_image_too_large_to_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="too many pixels"):
        image_from_compressed("png", PNG)
