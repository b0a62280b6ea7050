"""Attacked images in a file: found once in torch, sent again to an exported bundle and any engine; NumPy only.

An .npz with `labels` (n,), `description` (JSON: attacks in order with their groups and radius, and where the images are
from) and one array `images K` (n, 3, H, W) float32 in [0, 1] for attack number K. The arrays are not compressed:
adversarial perturbations hardly are.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flss_runtime.atomic import atomic_write
from flss_runtime.errors import DataError

FORMAT_VERSION = 1
_FIX = "pass a file that `flss-edge evaluate --save-adversarial` wrote"


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """Attacked images, read one attack at a time.

    Attributes:
        path: of the file.
        labels: (n,) int64, the true classes.
        description: what is known of the attacks and the images; "attacks" is a list of {"name", "groups", "epsilon"}.
    """

    path: Path
    labels: npt.NDArray[np.int64]
    description: Mapping[str, Any]

    @property
    def attacks(self) -> Sequence[Mapping[str, Any]]:
        """The attacks in the order of their noise counters."""
        found: Sequence[Mapping[str, Any]] = self.description["attacks"]
        return found

    def images(self, number: int) -> npt.NDArray[np.float32]:
        """Return the images (n, 3, H, W) of one attack.

        Raises:
            DataError: they are missing, damaged, or no images.
        """
        found = _read(self.path, f"images {number}")
        if found.ndim != 4 or found.dtype != np.float32 or len(found) != len(self.labels) or found.shape[1] != 3:
            raise DataError(
                f"{self.path} holds {found.dtype} {found.shape} for {self.attacks[number]['name']}; "
                f"expected float32 ({len(self.labels)}, 3, H, W)",
                _FIX,
            )
        if not np.isfinite(found).all() or found.min() < 0 or found.max() > 1:
            raise DataError(f"{self.path} holds pixels outside [0, 1] for {self.attacks[number]['name']}", _FIX)
        return np.asarray(found, np.float32)


def write_adversarial_set(
    path: Path,
    labels: npt.NDArray[np.int64],
    description: Mapping[str, Any],
    images: Iterator[npt.NDArray[np.float32]],
    *,
    overwrite: bool,
) -> None:
    """Write attacked images, one attack after the other, so that they need not be in memory together.

    Args:
        path: of the .npz.
        labels: (n,) int64.
        description: as `AdversarialSet`.
        images: of each attack in order, (n, 3, H, W) float32.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **description})
    with atomic_write(path, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, "labels", labels)
        _add(archive, "description", np.array(text))
        for number, array in enumerate(images):
            _add(archive, f"images {number}", array)


def read_adversarial_set(path: Path) -> AdversarialSet:
    """Read labels and description; the images stay in the file until they are asked for.

    Raises:
        DataError: missing, unreadable, or not such a file.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", _FIX)
    labels = _read(path, "labels")
    try:
        description = json.loads(str(_read(path, "description")))
        fits = description["format_version"] == FORMAT_VERSION and _described(description)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no readable description ({error})", _FIX) from error
    if not fits or labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise DataError(f"{path} holds no attacked images of format {FORMAT_VERSION}", _FIX)
    return AdversarialSet(path, labels.astype(np.int64), description)


def _described(description: Mapping[str, Any]) -> bool:
    """Return whether attacks and classes are described as they are written; the clean images come first."""
    attacks, classes = description["attacks"], description.get("classes", [])
    names = [attack["name"] for attack in attacks]
    kinds = all(isinstance(name, str) for name in [*names, *classes]) and isinstance(classes, list)
    groups = all(isinstance(attack["groups"], list) and float(attack["epsilon"]) >= 0 for attack in attacks)
    return kinds and groups and names[:1] == ["clean"] and len(set(names)) == len(names)


def _add(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def _read(path: Path, name: str) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error})", _FIX) from error
