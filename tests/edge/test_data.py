"""Data sources, the released validation split."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flss_edge.augment import to_float
from flss_edge.data import CIFAR10_CLASSES, load_images, validation_index
from flss_runtime.errors import DataError, UsageError
from flss_runtime.images import InputSpec


def save_npz(path: Path, per_class: int = 20, classes: int = 3, size: int = 8) -> Path:
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(classes, dtype=np.uint8), per_class)
    images = random.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    return path


def test_splits_share_no_image_and_cover_the_training_set(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "toy.npz")
    parts = {split: load_images(path, split) for split in ("train", "fit", "selection", "calibration", "validation")}
    assert len(parts["fit"]) + len(parts["selection"]) + len(parts["calibration"]) == len(parts["train"]) == 60
    assert len(parts["validation"]) == 12  # a fifth, as classes are small
    pixels = [{image.tobytes() for image in parts[split].images} for split in ("fit", "selection", "calibration")]
    assert not (pixels[0] & pixels[1] or pixels[0] & pixels[2] or pixels[1] & pixels[2])


def test_validation_is_the_first_images_of_each_class_in_file_order() -> None:
    labels = np.repeat(np.arange(10), 5000)[np.random.default_rng(1).permutation(50_000)]
    index = validation_index(labels, 10)
    assert index.shape == (10, 100)
    for k in range(10):
        assert index[k].tolist() == np.flatnonzero(labels == k)[:100].tolist()
    assert validation_index(np.repeat(np.arange(100), 500), 100).shape == (100, 25)


def test_folder_of_pictures_per_class(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40, 30), (index * 20, 0, 0)).save(folder / f"{index:02}.png")
    spec = InputSpec(height=16, width=16)
    test = load_images(tmp_path, "test", spec=spec)
    assert test.class_names == ("cat", "dog")
    assert test.images.shape == (4, 16, 16, 3)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert len(load_images(tmp_path, "fit", spec=spec)) == 20


def test_class_names_of_an_npz(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "toy.npz")
    assert load_images(path).class_names == ("class_0", "class_1", "class_2")
    with np.load(path) as arrays:
        np.savez(path, **arrays, class_names=np.array(["x", "y", "z"]))
    assert load_images(path).class_names == ("x", "y", "z")


def test_bad_sources_are_named(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "toy.npz")
    with pytest.raises(UsageError, match="no split 'trian'"):
        load_images(path, "trian")
    with pytest.raises(DataError, match="does not exist"):
        load_images(tmp_path / "nowhere")
    np.savez(tmp_path / "grey.npz", test_images=np.zeros((2, 8, 8), np.uint8), test_labels=np.zeros(2, int))
    with pytest.raises(DataError, match=r"expected \(n, H, W, 3\) uint8"):
        load_images(tmp_path / "grey.npz")
    np.savez(tmp_path / "float.npz", test_images=np.zeros((2, 8, 8, 3)), test_labels=np.zeros(2, int))
    with pytest.raises(DataError, match="float64"):
        load_images(tmp_path / "float.npz")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        load_images(tmp_path / "cut.npz")
    with pytest.raises(DataError, match="too few for a validation split"):
        load_images(save_npz(tmp_path / "few.npz", per_class=3), "fit")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no pictures"):
        load_images(tmp_path / "empty", spec=InputSpec(height=8, width=8))


def test_torchvisions_cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small batches under torchvision's own file names; its published checksums are replaced by theirs."""
    from torchvision.datasets import CIFAR10

    root = tmp_path / CIFAR10.base_folder
    root.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> list[str]:
        (root / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((root / name).read_bytes()).hexdigest()]

    images = random.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    labels = [index % 10 for index in range(60)]
    batches = [{"data": images[part].reshape(-1, 3072), "labels": labels[part]} for part in (slice(50), slice(50, 60))]
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", batches[0])])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batches[1])])
    _, digest = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digest})
    for path in (tmp_path, root):
        test = load_images(path, "test")
        np.testing.assert_array_equal(test.images, images[50:].transpose(0, 2, 3, 1))
        assert test.labels.tolist() == labels[50:] and test.class_names == CIFAR10_CLASSES
    parts = [load_images(root, split, validation_per_class=2) for split in ("fit", "selection", "calibration")]
    assert [len(part) for part in parts] == [30, 10, 10]
    np.testing.assert_array_equal(parts[1].images, images[:10].transpose(0, 2, 3, 1))  # the first of each class
    np.testing.assert_array_equal(parts[2].images, images[10:20].transpose(0, 2, 3, 1))
    (root / "test_batch").write_bytes(b"altered")
    with pytest.raises(DataError, match="missing files or altered"):
        load_images(tmp_path, "test")


def test_a_pickled_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", test_images=np.array([{}], dtype=object), test_labels=np.zeros(1, int))
    with pytest.raises(DataError, match="cannot be read"):
        load_images(tmp_path / "p.npz")


def test_to_float_equals_torchvisions_to_tensor() -> None:
    from torchvision.transforms.functional import to_tensor

    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    ours = to_float(torch.from_numpy(image)[None].permute(0, 3, 1, 2))[0]
    assert torch.equal(ours, to_tensor(image))
