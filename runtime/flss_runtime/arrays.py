"""The arrays of golden.npz and reference.npz, read without trusting them (docs/bundle-format.md, section 8)."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from flss_runtime.bundle import Bundle
from flss_runtime.comparison import GateOutputs
from flss_runtime.errors import BundleError
from flss_runtime.manifest import GOLDEN_NAME, REFERENCE_NAME
from flss_runtime.strict_json import EXPORT_AGAIN

MAX_STORED_BYTES = 64 << 20
MAX_UNPACKED_BYTES = 512 << 20
MAX_MEMBERS = 32

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Golden:
    """A few images and noises with every tensor expected of them.

    Attributes:
        images: (G, H, W, 3) uint8.
        noise: (G, N, D) float32.
        noise_scale: Factor on the standard deviation.
        mean: (G, D) float32.
        std: (G, D) float32.
        logits: (G, N, K) float32.
        choices: (G, N) int64.
        gate_logits: (G, K) float32 of a cascade's gate; None without one.
    """

    images: npt.NDArray[np.uint8]
    noise: FloatArray
    noise_scale: float
    mean: FloatArray
    std: FloatArray
    logits: FloatArray
    choices: npt.NDArray[np.int64]
    gate_logits: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Reference:
    """Images with the votes that the trainer's framework counted under `SeededNoise(seed)`.

    Attributes:
        images: (M, H, W, 3) uint8.
        labels: (M,) int64, or None.
        seed: Of the noise; image i gets `SeededNoise(seed).at(i, N, D)`.
        num_samples: N.
        noise_scale: Factor on the standard deviation.
        votes: (M, K) int64; each row sums to N.
        real: False where the images are synthetic.
        gate: What a cascade's gate decides by; None without one.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    seed: int
    num_samples: int
    noise_scale: float
    votes: npt.NDArray[np.int64]
    real: bool
    gate: GateOutputs | None = None


def read_golden(bundle: Bundle) -> Golden:
    """Read golden.npz and check it against the manifest.

    Raises:
        BundleError: Unreadable, over the limits, or of shapes that do not fit.
    """
    found = _Members(bundle.path / GOLDEN_NAME)
    count, num_samples = found.size("choices", 0), found.size("choices", 1)
    latent, classes = bundle.latent_dim, bundle.num_classes
    return Golden(
        images=found.images(bundle, count),
        noise=found.floats("noise", (count, num_samples, latent)),
        noise_scale=found.scale(),
        mean=found.floats("mean", (count, latent)),
        std=found.floats("std", (count, latent)),
        logits=found.floats("logits", (count, num_samples, classes)),
        choices=found.classes("choices", (count, num_samples), classes),
        gate_logits=found.floats("gate_logits", (count, classes)) if bundle.has_gate else None,
    )


def read_reference(bundle: Bundle) -> Reference | None:
    """Read reference.npz and check it against the manifest; None where the bundle has none.

    Raises:
        BundleError: Unreadable, over the limits, or of shapes or counts that do not fit.
    """
    if bundle.file(REFERENCE_NAME) is None:
        return None
    found = _Members(bundle.path / REFERENCE_NAME)
    count = found.size("votes", 0)
    reference = Reference(
        images=found.images(bundle, count),
        labels=found.integers("labels", (count,)) if "labels" in found.arrays else None,
        seed=int(found.integers("seed", ())),
        num_samples=int(found.integers("num_samples", ())),
        noise_scale=found.scale(),
        votes=found.integers("votes", (count, bundle.num_classes)),
        real=bool(found.get("real", "b", ())),
        gate=_gate_outputs(found, count, bundle.num_classes) if bundle.has_gate else None,
    )
    votes, num_samples = reference.votes, reference.num_samples
    if num_samples < 1 or votes.min() < 0 or votes.max() > num_samples or (votes.sum(axis=1) != num_samples).any():
        problem = f"{REFERENCE_NAME}: the votes of an image do not add up to num_samples = {num_samples}"
        raise BundleError(problem, EXPORT_AGAIN)
    if reference.seed < 0:
        raise BundleError(f"{REFERENCE_NAME}: 'seed' is negative", EXPORT_AGAIN)
    return reference


def _gate_outputs(found: _Members, count: int, classes: int) -> GateOutputs:
    confidence = found.finite("gate_confidence", (count,)).astype(np.float64)
    return GateOutputs(confidence, found.classes("mean_choices", (count,), classes))


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a `.npz` archive of plain arrays within the format's limits.

    A header that promises more than the archive holds is found before anything is allocated for it.

    Raises:
        BundleError: Not such an archive, damaged, pickled, or over the limits.
    """
    try:
        if path.stat().st_size > MAX_STORED_BYTES:
            raise ValueError(f"larger than {MAX_STORED_BYTES >> 20} MiB")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS} arrays")
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise ValueError(f"larger than {MAX_UNPACKED_BYTES >> 20} MiB when unpacked")
            arrays: dict[str, Array] = {}
            for member in members:
                with archive.open(member) as stream:
                    arrays[member.filename.removesuffix(".npy")] = _read_array(stream, member.file_size)
            return arrays
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, SyntaxError) as error:
        problem = f"{path.name} is not a readable archive of plain arrays: {error or type(error).__name__}"
        raise BundleError(problem, EXPORT_AGAIN) from error


def _read_array(stream: IO[bytes], size: int) -> Array:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"array header version {version} is not supported")
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"dtype {dtype} is not a plain number (pickled objects are never read)")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or stream.tell() + expected != size:
        raise ValueError(
            f"an array states shape {shape}, {expected} bytes, but {size - stream.tell()} bytes are stored"
        )
    return np.ndarray(shape, dtype, buffer=stream.read(), order="F" if fortran else "C")


class _Members:
    """The arrays of one file; each is checked as it is asked for."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.arrays = read_arrays(path)

    def get(self, key: str, kinds: str, shape: tuple[int, ...]) -> Array:
        if key not in self.arrays:
            raise BundleError(f"{self.name}: the array {key!r} is missing", EXPORT_AGAIN)
        array = self.arrays[key]
        if array.dtype.kind not in kinds or array.shape != shape:
            found = f"{array.dtype} {array.shape}"
            raise BundleError(
                f"{self.name}: {key!r} is {found}; expected kind {kinds!r} and shape {shape}", EXPORT_AGAIN
            )
        return array

    def size(self, key: str, axis: int) -> int:
        if key not in self.arrays or self.arrays[key].ndim != 2 or self.arrays[key].size == 0:
            raise BundleError(f"{self.name}: the array {key!r} is missing, empty or not two-dimensional", EXPORT_AGAIN)
        return int(self.arrays[key].shape[axis])

    def images(self, bundle: Bundle, count: int) -> npt.NDArray[np.uint8]:
        images = self.get("images", "u", (count, bundle.input.height, bundle.input.width, 3))
        if images.dtype != np.uint8:
            raise BundleError(f"{self.name}: 'images' is {images.dtype}; expected uint8", EXPORT_AGAIN)
        return images

    def finite(self, key: str, shape: tuple[int, ...]) -> Array:
        array = self.get(key, "f", shape)
        if not np.isfinite(array).all():
            raise BundleError(f"{self.name}: {key!r} holds NaN or infinity", EXPORT_AGAIN)
        return array

    def floats(self, key: str, shape: tuple[int, ...]) -> FloatArray:
        return np.ascontiguousarray(self.finite(key, shape).astype(np.float32))

    def classes(self, key: str, shape: tuple[int, ...], count: int) -> npt.NDArray[np.int64]:
        array = self.integers(key, shape)
        if array.min() < 0 or array.max() >= count:
            raise BundleError(f"{self.name}: {key!r} leave the range 0 to {count - 1}", EXPORT_AGAIN)
        return array

    def integers(self, key: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        return self.get(key, "iu", shape).astype(np.int64)

    def scale(self) -> float:
        array = self.arrays.get("noise_scale")
        shape = (1,) if array is not None and array.shape == (1,) else ()
        value = float(self.floats("noise_scale", shape).reshape(()))
        if value < 0:
            raise BundleError(f"{self.name}: 'noise_scale' is negative", EXPORT_AGAIN)
        return value
