from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flss_runtime.errors import BundleError, DataError, UsageError
from flss_runtime.images import InputSpec, check_image, read_image, to_nchw

SPEC = InputSpec(6, 8)


def picture(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, values: npt.NDArray[Any] | Image.Image, **options: Any) -> Path:
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_a_picture_of_the_right_size_is_never_touched(tmp_path: Path, suffix: str, resize: str) -> None:
    image = read_image(save(tmp_path / f"a.{suffix}", picture()), InputSpec(6, 8, resize=resize))
    np.testing.assert_array_equal(image, picture(), strict=True)
    assert image.flags.writeable and image.flags.c_contiguous


def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = picture(channels=1)
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "grey.png", grey), SPEC), expected)
    palette = Image.fromarray(grey).convert("P")
    np.testing.assert_array_equal(read_image(save(tmp_path / "palette.png", palette), SPEC), expected)
    bits = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "bits.png", bits), SPEC), np.where(expected > 127, 255, 0).astype(np.uint8)
    )


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path, suffix: str) -> None:
    deep = np.random.default_rng(1).integers(0, 2**16, (6, 8)).astype(np.uint16)
    image = read_image(save(tmp_path / f"deep.{suffix}", deep), SPEC)
    np.testing.assert_array_equal(image, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_big_endian_16_bit_grey(tmp_path: Path) -> None:
    deep = np.random.default_rng(1).integers(0, 2**16, (6, 8)).astype(np.uint16)
    big = Image.frombytes("I;16B", (8, 6), deep.astype(">u2").tobytes())
    image = read_image(save(tmp_path / "big.tiff", big), SPEC)
    np.testing.assert_array_equal(image[..., 0], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(picture())
    turn = Image.Transpose
    order = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    undo = dict(enumerate([*order, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270], start=2))
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / "turned.png", stored, exif=exif), SPEC)
    np.testing.assert_array_equal(image, picture())


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    opaque = np.dstack([picture(), np.full((6, 8), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", opaque), SPEC), picture())
    grey = Image.fromarray(picture(channels=1))
    grey_alpha = Image.merge("LA", (grey, Image.new("L", (8, 6), 255)))
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", grey_alpha), SPEC)[..., 0], picture(channels=1))


def transparent_pictures() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[2, 3] = 254
    grey = Image.fromarray(picture(channels=1))
    deep = Image.fromarray(np.full((6, 8), 513, np.uint16))
    return {
        "rgba": (Image.fromarray(np.dstack([picture(), alpha])), {}),
        "la": (Image.merge("LA", (grey, Image.fromarray(alpha))), {}),
        "palette": (grey.convert("P"), {"transparency": int(picture(channels=1)[0, 0])}),
        "palette_bytes": (grey.convert("P"), {"transparency": bytes([0] * 256)}),
        "grey_key": (grey, {"transparency": int(picture(channels=1)[0, 0])}),
        "rgb_key": (Image.fromarray(picture()), {"transparency": tuple(picture()[0, 0].tolist())}),
        "deep_key": (deep, {"transparency": 513}),
    }


@pytest.mark.parametrize("kind", transparent_pictures())
def test_transparency_is_refused(tmp_path: Path, kind: str) -> None:
    image, options = transparent_pictures()[kind]
    with pytest.raises(DataError, match="transparent") as caught:
        read_image(save(tmp_path / "a.png", image, **options), SPEC)
    assert "flatten it onto a background first" in caught.value.fix


def test_a_transparent_colour_that_does_not_occur_is_harmless(tmp_path: Path) -> None:
    grey = np.full((6, 8), 7, np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(grey), transparency=9)
    assert (read_image(path, SPEC) == 7).all()
    deep = save(tmp_path / "b.png", Image.fromarray(np.full((6, 8), 513, np.uint16)), transparency=9)
    assert (read_image(deep, SPEC) == 2).all()


def test_stretch_is_pillows_antialiased_bilinear(tmp_path: Path) -> None:
    large = picture(30, 50)
    expected = np.asarray(Image.fromarray(large).resize((8, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", large), SPEC), expected)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (6, 20), (3, 4), (12, 16), (1, 9)])
def test_crop_scales_the_shorter_side_and_cuts_the_centre(tmp_path: Path, height: int, width: int) -> None:
    large = picture(height, width)
    spec = InputSpec(8, 8, resize="crop")
    short = min(height, width)
    scaled = Image.fromarray(large)
    if short != 8:
        scaled = scaled.resize((round(width * 8 / short), round(height * 8 / short)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - 8) // 2, (scaled.height - 8) // 2
    expected = np.asarray(scaled)[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", large), spec), expected)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(kind: str, size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(size, size)).save(buffer, kind)
    return buffer.getvalue()


BAD_FILES = {
    "empty": (b"", "empty", "copy or record it again"),
    "text": (b"not a picture at all", "not a picture", "convert it to PNG or JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture", "convert it"),
    "bomb": (png_header(20000, 20000), "too many pixels", "scale it down"),
    "doubtful bomb": (png_header(10000, 10000), "too many pixels", "scale it down"),
    "jpeg cut off": (encoded("JPEG")[:-600], "damaged or cut off", "copy or record it again"),
    "png cut off": (encoded("PNG")[:-600], "damaged or cut off", "copy or record it again"),
    "bmp cut off": (encoded("BMP")[:-600], "damaged or cut off", "copy or record it again"),
    "webp cut off": (encoded("WEBP")[:-600], "bad.png", ""),
    "tiff cut off": (encoded("TIFF")[:600], "bad.png", ""),
    "gif cut off": (encoded("GIF")[:900], "damaged or cut off", "copy or record it again"),
    "png header only": (encoded("PNG")[:20], "bad.png", ""),
    "png with a flipped bit": (encoded("PNG").replace(b"IDAT", b"IDAX"), "bad.png", ""),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_data_errors_with_a_remedy(tmp_path: Path, kind: str) -> None:
    content, problem, fix = BAD_FILES[kind]
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_image(path, SPEC)
    assert str(path) in caught.value.problem
    assert caught.value.fix and fix in caught.value.fix
    assert caught.value.exit_code == 7


def test_missing_files_and_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "absent.png", SPEC)
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path, SPEC)


def test_32_bit_values_are_refused(tmp_path: Path) -> None:
    for values in (np.zeros((6, 8), np.float32), np.zeros((6, 8), np.int32)):
        with pytest.raises(DataError, match="32-bit"):
            read_image(save(tmp_path / "a.tiff", values), SPEC)


def test_a_very_long_picture_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "line.png", np.zeros((1, 60000, 3), np.uint8))
    with pytest.raises(DataError, match="too long and narrow"):
        read_image(path, InputSpec(224, 224, resize="crop"))
    assert read_image(path, InputSpec(224, 224)).shape == (224, 224, 3)


@settings(deadline=None)  # a slow machine is no error
@given(st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.integers(0, 200))
def test_damage_never_escapes_as_another_error(tmp_path_factory: Any, noise: bytes, kind: str, place: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    content = bytearray(encoded(kind, 8))
    content[place : place + len(noise)] = noise
    path.write_bytes(bytes(content))
    try:
        image = read_image(path, SPEC)
    except DataError:
        return
    assert check_image(image, SPEC) == ""


def test_to_nchw_is_division_in_float32() -> None:
    values = np.arange(256, dtype=np.uint8)
    images = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(2, 8, 16, 3)
    expected = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    result = to_nchw(images)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()
    # The correctly rounded quotients, so that torchvision's x.div(255) in float32 has no other choice.
    np.testing.assert_array_equal(result, (images.transpose(0, 3, 1, 2).astype(np.float64) / 255).astype(np.float32))
    out = np.full_like(result, -1)
    assert to_nchw(images[:, ::-1], out) is out
    np.testing.assert_array_equal(out, expected[:, :, ::-1])


def test_valid_images_pass() -> None:
    assert check_image(picture(), SPEC) == ""
    assert check_image(picture(12, 8)[::2], SPEC) == ""
    assert check_image(np.zeros((3, 6, 8), np.float32), SPEC) == ""
    assert check_image(np.ones((3, 6, 8), np.float32), SPEC) == ""


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (None, "NoneType"),
        ([[1, 2]], "list"),
        (np.zeros((8, 6, 3), np.uint8), r"shape \(8, 6, 3\); expected \(6, 8, 3\)"),
        (np.zeros((6, 8), np.uint8), r"shape \(6, 8\)"),
        (np.zeros((6, 8, 4), np.uint8), r"shape \(6, 8, 4\)"),
        (np.zeros((3, 6, 8), np.uint8), "uint8 image of shape"),
        (np.zeros((6, 8, 3), np.float32), r"expected \(3, 6, 8\)"),
        (np.zeros((3, 6, 8)), "float64"),
        (np.zeros((3, 6, 8), np.float16), "float16"),
        (np.zeros((6, 8, 3), np.int64), "int64"),
        (np.zeros((6, 8, 3), np.uint16), "uint16"),
        (np.full((3, 6, 8), np.nan, np.float32), "NaN or infinity"),
        (np.full((3, 6, 8), np.inf, np.float32), "NaN or infinity"),
        (np.full((3, 6, 8), -np.inf, np.float32), "NaN or infinity"),
        (np.full((3, 6, 8), 255, np.float32), "divide 8-bit values by 255"),
        (np.full((3, 6, 8), -0.01, np.float32), "values from -0.01"),
        (np.full((3, 6, 8), np.nextafter(np.float32(1), np.float32(2)), np.float32), "expected"),
    ],
)
def test_invalid_images_are_described(image: object, problem: str) -> None:
    assert re.search(problem, check_image(image, SPEC))


def test_one_bad_pixel_is_found() -> None:
    for value in (np.nan, np.inf, -np.inf, 1.5, -1e-3):
        image = np.full((3, 6, 8), 0.5, np.float32)
        image[1, 2, 3] = value
        assert check_image(image, SPEC) != ""


def test_input_spec_survives_json() -> None:
    spec = InputSpec(224, 192, resize="crop")
    assert InputSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


BAD_FIELDS: dict[str, list[Any]] = {
    "height": [0, "32", True],
    "width": [10**6],
    "layout": ["NHWC"],
    "dtype": ["uint8"],
    "value_range": [[0, 255], 3, [[0], [1]]],
    "resize": ["pad", ["crop"]],
    "colour": ["bgr"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD_FIELDS for value in BAD_FIELDS[field]])
def test_unsupported_specs_are_refused(field: str, value: Any) -> None:
    with pytest.raises(BundleError) as caught:
        InputSpec.from_json({**SPEC.to_json(), field: value})
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("fields", [None, [], {}, {"height": 32, "width": 32}])
def test_incomplete_specs_are_refused(fields: object) -> None:
    with pytest.raises(BundleError, match="manifest's input"):
        InputSpec.from_json(fields)
    with pytest.raises(UsageError, match="height is 0"):
        InputSpec(0, 32)
