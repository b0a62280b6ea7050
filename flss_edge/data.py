"""Labelled images for training, calibration and verification, as numpy arrays; torch only for torchvision's files.

Three sources: an .npz (arrays `train_images`, `train_labels`, `test_images`, `test_labels`), torchvision's own CIFAR
folders, and a folder of pictures per class. The validation split is the released code's: the first n training images of
each class in file order; its first half chooses the checkpoint ("selection"), its second half calibrates
("calibration").
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flss_runtime.errors import DataError, UsageError
from flss_runtime.images import PICTURE_SUFFIXES, InputSpec, read_image

SPLITS = ("train", "test", "fit", "validation", "selection", "calibration")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (n, H, W, 3) uint8 with labels (n,) int64 in [0, K), the K class names, and where they came from."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """Digest of pixels and labels, in order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def take(self, index: npt.NDArray[np.int64], source: str) -> ImageSet:
        """Return the images at `index`, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index], source=source)


def load_images(
    path: Path, split: str = "test", *, spec: InputSpec | None = None, validation_per_class: int | None = None
) -> ImageSet:
    """Load one split of a data set.

    Args:
        path: an .npz, torchvision's CIFAR folder (or its parent), or a folder of pictures per class, with or without
            `train/` and `test/` above the classes.
        split: "train" and "test" as stored; "fit" is train without validation; "selection" and "calibration" are
            the two halves of "validation".
        spec: the network's input; pictures of a folder are resized to it. Needed for folders only.
        validation_per_class: images a class for validation; `None` chooses 100 (up to 10 classes) or 25, at most
            a fifth.

    Raises:
        DataError: missing, unreadable, empty, or of another form.
        UsageError: an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", f"Use one of: {', '.join(SPLITS)}.")
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", "Give an .npz, a CIFAR folder or a folder of images per class.")
    stored = "test" if split == "test" else "train"
    if path.is_file():
        images = _from_npz(path, stored)
    elif (layout := _torchvision_layout(path)) is not None:
        images = _from_torchvision(*layout, stored)
    else:
        images = _from_folder(path, stored, spec)
    if split in ("train", "test"):
        return images
    return _part(images, split, validation_per_class)


def validation_index(
    labels: npt.NDArray[np.int64], num_classes: int, per_class: int | None = None
) -> npt.NDArray[np.int64]:
    """Return (K, n) indices of the first n images of each class, n as `load_images` describes.

    Raises:
        DataError: a class has too few images to give any away.
    """
    counts = np.bincount(labels, minlength=num_classes)
    wanted = per_class if per_class is not None else (100 if num_classes <= 10 else 25)
    size = min(wanted, int(counts.min()) // 5) if per_class is None else wanted
    if size < 2 or size >= counts.min():
        raise DataError(
            f"class {int(counts.argmin())} has only {int(counts.min())} images, too few for a validation split",
            "Give every class at least 10 training images, or set --validation-per-class between 2 and its size.",
        )
    return np.stack([np.flatnonzero(labels == k)[:size] for k in range(num_classes)])


def _part(images: ImageSet, split: str, per_class: int | None) -> ImageSet:
    validation = validation_index(images.labels, len(images.class_names), per_class)  # (K, n)
    half = validation.shape[1] // 2
    parts = {
        "validation": validation,
        "selection": validation[:, :half],
        "calibration": validation[:, half:],
    }
    if split == "fit":
        index = np.setdiff1d(np.arange(len(images)), validation.ravel())
    else:
        index = np.sort(parts[split].ravel())
    return images.take(index, f"{images.source}:{split}")


def _from_npz(path: Path, split: str) -> ImageSet:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = set(arrays.files)
            wanted = {f"{split}_images", f"{split}_labels"}
            if missing := sorted(wanted - names):
                raise DataError(
                    f"{path.name} has no array {missing[0]!r}; it has {', '.join(sorted(names)[:8])}",
                    "Save uint8 images (n, H, W, 3) and integer labels (n,) under train_images, train_labels, "
                    "test_images, test_labels.",
                )
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            stored = [str(name) for name in arrays["class_names"]] if "class_names" in names else None
            every_label = [arrays[name] for name in ("train_labels", "test_labels") if name in names]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} cannot be read as .npz ({error})", "Save it again with numpy.savez.") from error
    _check_arrays(path.name, images, labels)
    count = max((int(found.max()) + 1 for found in every_label if found.size), default=0)
    names_of = tuple(stored) if stored else _default_names(path.stem, count)
    return ImageSet(images, labels.astype(np.int64), names_of, f"{path.name}:{split}")


def _check_arrays(name: str, images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{name} holds images of shape {images.shape}, {images.dtype}; expected (n, H, W, 3) uint8",
            "Store colour images with the channels last, as 8-bit values.",
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name} holds labels of shape {labels.shape}, {labels.dtype}; expected ({len(images)},) integers",
            "Store one whole-number label an image.",
        )
    if len(labels) == 0:
        raise DataError(f"{name} holds no images", "Give at least one image a class.")
    if int(labels.min()) < 0:
        raise DataError(f"{name} holds the label {int(labels.min())}", "Number the classes from 0.")


def _default_names(stem: str, count: int) -> tuple[str, ...]:
    if stem.startswith("cifar10") and count == len(CIFAR10_CLASSES):
        return CIFAR10_CLASSES
    return tuple(f"class_{index}" for index in range(count))


def _torchvision_layout(path: Path) -> tuple[str, Path] | None:
    for name, folder in (("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python")):
        if path.name == folder:
            return name, path.parent
        if (path / folder).is_dir():
            return name, path
    return None


def _from_torchvision(name: str, root: Path, split: str) -> ImageSet:
    try:
        import torchvision
    except ImportError as error:
        raise DataError(
            f"{root.name} is torchvision's {name} folder, and torchvision is not installed",
            "pip install 'flss-edge[train]', or convert the data to .npz.",
        ) from error
    try:
        # verifies the published checksums before it unpickles anything
        source = getattr(torchvision.datasets, name)(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(f"{name} in {root.name} is missing files or altered ({error})", "Download it again.") from error
    labels = np.asarray(source.targets, dtype=np.int64)
    return ImageSet(source.data, labels, tuple(source.classes), f"{name.lower()}:{split}")


def _from_folder(path: Path, split: str, spec: InputSpec | None) -> ImageSet:
    root = path / split if (path / split).is_dir() else path
    if split == "test" and root is path and (path / "train").is_dir():
        raise DataError(f"{path.name} has train/ but no test/", "Add test/<class>/, or name another split.")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root.name} has no sub-folders", "Put the images of each class in a folder of its name.")
    if spec is None:
        raise UsageError("a folder of images needs the size to resize to", "Set the image size, e.g. --image-size 224.")
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise DataError(f"class folder {folder.name} holds no pictures", "Add pictures or remove the folder.")
        images += [read_image(file, spec) for file in files]
        labels += [label] * len(files)
    names = tuple(folder.name for folder in folders)
    stored = "all" if root == path else split  # without train/ and test/ above the classes both are the whole
    return ImageSet(np.stack(images), np.asarray(labels, dtype=np.int64), names, f"{path.name}:{stored}")
