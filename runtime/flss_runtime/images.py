"""Pictures and camera frames to what the encoder takes, and the checks that keep bad ones out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import BundleError, DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

# Pillow would also start Ghostscript for an EPS file; these are decoded by code it ships or links.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_PIXELS = 2**26  # of a picture scaled for cropping: a very long and narrow one would fill the memory
_RESIZES = ("stretch", "crop")
_SCALE = np.float32(255)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the encoder graph takes, and how a picture of another size becomes that.

    Args:
        height: Rows, in pixels.
        width: Columns, in pixels.
        layout: Order of the graph's dimensions; "NCHW" in this version.
        dtype: Element type of the graph's input; "float32" in this version.
        value_range: Values of black and white; (0.0, 1.0) in this version.
        resize: "stretch" to the size whatever the shape, or "crop": scale the shorter side, then cut the centre.

    Raises:
        UsageError: A value this version does not support.
    """

    height: int
    width: int
    layout: str = "NCHW"
    dtype: str = "float32"
    value_range: tuple[float, float] = (0.0, 1.0)
    resize: str = "stretch"

    def __post_init__(self) -> None:
        problem = _spec_problem(self)
        if problem:
            raise UsageError(f"input specification: {problem}", "use NCHW float32 in [0, 1] and stretch or crop")

    def to_json(self) -> dict[str, Any]:
        """Give the fields as JSON values, for a manifest."""
        return {**asdict(self), "value_range": list(self.value_range)}

    @classmethod
    def from_json(cls, fields: object) -> InputSpec:
        """Read what `to_json` gave.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type or not supported by this version.
        """
        fix = "export the bundle again with this version of flss-edge"
        if not isinstance(fields, Mapping):
            raise BundleError("the manifest's input is not an object", fix)
        expected = set(cls.__dataclass_fields__)
        if set(fields) != expected:
            raise BundleError(f"the manifest's input has the fields {sorted(fields)}, not {sorted(expected)}", fix)
        value_range = fields["value_range"]
        try:
            return cls(
                **{**fields, "value_range": tuple(value_range) if isinstance(value_range, list) else value_range}
            )
        except UsageError as error:
            raise BundleError(f"the manifest's {error.problem}", fix) from error


def read_image(path: str | Path, spec: InputSpec) -> ByteArray:
    """Read a picture and bring it to the encoder's size.

    The EXIF orientation is applied; grey and palette pictures become RGB; 16-bit grey keeps its upper 8 bits; an alpha
    channel that is opaque everywhere is dropped; of an animation the first picture counts. Colour profiles are ignored.
    Resizing is Pillow's antialiased bilinear filter; a picture that has the right size already is never touched.

    Args:
        path: A PNG, JPEG, BMP, GIF, TIFF, WebP or PPM file.
        spec: Size and resize rule.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: The file cannot be read, is empty, damaged or no picture, is too large to decode safely, has 32-bit
            values, or is transparent somewhere.
    """
    path = Path(path)
    with warnings.catch_warnings():
        from PIL import Image

        warnings.simplefilter("ignore")  # corrupt metadata beside a sound picture
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return np.array(_fit(_decode(path, path), spec, path), np.uint8)


def decode_image(data: bytes | memoryview, name: str) -> ByteArray:
    """Decode a picture that is in memory at its own size, by the rules of `read_image`.

    For pictures that a camera sends compressed: unlike `read_image` it leaves the process's warning filters alone,
    which other threads share.

    Args:
        data: The bytes of a PNG, JPEG, BMP, GIF, TIFF, WebP or PPM file.
        name: What an error calls it.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: As `read_image`.
    """
    return np.asarray(_decode(BytesIO(data), name), np.uint8)


def fit_image(frame: ByteArray, spec: InputSpec) -> ByteArray:
    """Bring a camera frame to the encoder's size, as `read_image` brings a picture there, bit for bit.

    Args:
        frame: (H', W', 3) uint8 RGB of any size.
        spec: Size and resize rule.

    Returns:
        (H, W, 3) uint8 RGB, not to be written to: the frame itself where it has the right size already.

    Raises:
        DataError: The frame is of another type or shape, empty, or too long and narrow to crop.
    """
    found = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    if not found.startswith("uint8 ") or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise DataError(f"a camera frame is {found}", "pass uint8 RGB of shape (H, W, 3), both sizes at least 1")
    if frame.shape[:2] == (spec.height, spec.width):
        return frame
    from PIL import Image

    return np.asarray(_fit(Image.fromarray(frame), spec, "the camera frame"), np.uint8)


def check_image(image: object, spec: InputSpec) -> str:
    """Say whether an image can be classified.

    Args:
        image: Anything; valid are (H, W, 3) uint8 and (3, H, W) float32 in [0, 1], arrays of the specified size.
        spec: Size and value range.

    Returns:
        "" for a valid image, else what is wrong with it and how it should be.
    """
    if not isinstance(image, np.ndarray):
        return f"not a NumPy array but {type(image).__name__}"
    if image.dtype == np.uint8:
        expected = (spec.height, spec.width, 3)
        return "" if image.shape == expected else f"uint8 image of shape {image.shape}; expected {expected}"
    if image.dtype != np.float32:
        return f"dtype {image.dtype}; expected uint8 (H, W, 3) or float32 (3, H, W)"
    if image.shape != (3, spec.height, spec.width):
        return f"float32 image of shape {image.shape}; expected {(3, spec.height, spec.width)}"
    low, high = spec.value_range
    least, most = image.min(), image.max()
    if least >= low and most <= high:  # false for NaN, which min and max pass on
        return ""
    if not np.isfinite(image).all():
        return "contains NaN or infinity"
    return f"values from {least:.4g} to {most:.4g}; expected [{low:g}, {high:g}] (divide 8-bit values by 255)"


def to_nchw(images: ByteArray, out: FloatArray | None = None) -> FloatArray:
    """Convert 8-bit images to the encoder's input: x / 255 in float32, as torchvision's ToTensor does, bit for bit.

    Args:
        images: (B, H, W, 3) uint8.
        out: (B, 3, H, W) float32 to write to, if there is one to reuse.

    Returns:
        (B, 3, H, W) float32 in [0, 1]; `out` where it was given.
    """
    batch, height, width, channels = images.shape
    if out is None:
        out = np.empty((batch, channels, height, width), np.float32)
    # Copy, then divide: dividing bytes by a float32 directly would compute in float16 under NumPy 1.
    np.copyto(out, images.transpose(0, 3, 1, 2))
    np.divide(out, _SCALE, out=out)
    return out


def _spec_problem(spec: InputSpec) -> str:
    for name in ("height", "width"):
        size = getattr(spec, name)
        if type(size) is not int or not 1 <= size <= 4096:
            return f"{name} is {size!r}; expected 1 to 4096 pixels"
    if spec.layout != "NCHW" or spec.dtype != "float32" or spec.value_range != (0.0, 1.0):
        return f"{spec.layout!r} {spec.dtype!r} in {spec.value_range} is not supported"
    if spec.resize not in _RESIZES:
        return f"resize is {spec.resize!r}; expected one of {', '.join(_RESIZES)}"
    return ""


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a picture", "name a picture in it")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is a pipe or a device, not a file", "save the picture to a file first")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", "copy or record it again")


def _decode(source: Path | BytesIO, name: object) -> Image.Image:
    from PIL import Image, ImageOps

    # Damage in a file meant for Pillow surfaces as almost any exception (OSError, SyntaxError, struct.error, …).
    try:
        if isinstance(source, Path):
            _check_file(source)
        with Image.open(source, formats=_FORMATS) as picture:
            if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow itself only warns
                raise Image.DecompressionBombError
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture), picture.format, name)
    except DataError:
        raise
    except Exception as error:
        raise _as_data_error(name, error) from error


def _to_rgb(picture: Image.Image, kind: str | None, path: object) -> Image.Image:
    from PIL import Image

    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
        values = np.asarray(picture)
        if transparent is not None and (values == transparent).any():
            raise _transparent(path)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise DataError(f"{path} has 32-bit values", "convert it to 8 or 16 bits a channel first")
    if transparent is not None or picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise _transparent(path)
    return picture.convert("RGB")


def _transparent(path: object) -> DataError:
    return DataError(
        f"{path} is transparent in places, so what is behind it is undefined", "flatten it onto a background first"
    )


def _fit(picture: Image.Image, spec: InputSpec, name: object) -> Image.Image:
    from PIL import Image

    width, height = picture.size
    size = (spec.width, spec.height)
    if picture.size == size:
        return picture
    if spec.resize == "stretch":
        return picture.resize(size, Image.Resampling.BILINEAR)
    scale = max(spec.width / width, spec.height / height)
    scaled = (max(spec.width, round(width * scale)), max(spec.height, round(height * scale)))
    if scaled[0] * scaled[1] > _MAX_PIXELS:
        raise DataError(f"{name} is {width} x {height}, too long and narrow to crop", "cut the part of interest out")
    if scaled != picture.size:
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def _as_data_error(path: object, error: Exception) -> DataError:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(f"{path} has too many pixels to be decoded safely", "scale it down first")
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(_FORMATS)
        return DataError(f"{path} is not a picture that can be read ({kinds})", "convert it to PNG or JPEG")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"cannot read {path}: {error.strerror}", "correct the path or the file's permissions")
    return DataError(f"{path} is damaged or cut off ({error})", "copy or record it again")
