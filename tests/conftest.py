"""A tiny real model, exported once a session.

What needs torch is imported inside the fixtures: tests/runtime also runs where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from .mistakes.world import World

CLASS_NAMES = ("cat", "dog", "fox")
SIZE = 32
PICTURES_PER_CLASS = 20


PACKED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Built engines and measurements of the tests' graphs are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FLSS_EDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real CIFAR-10 as .npz: from the folder that FLSS_DATA names, or unpacked from ../shared/data."""
    if folder := os.environ.get("FLSS_DATA"):
        return Path(folder) / "cifar10.npz"
    if not (PACKED / "unpack.py").is_file():
        pytest.skip("no CIFAR-10 here: set FLSS_DATA to a folder with cifar10.npz")
    target = tmp_path_factory.mktemp("cifar10")
    command = [sys.executable, str(PACKED / "unpack.py"), "cifar10", "--out", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target / "cifar10.npz"


@dataclass(frozen=True)
class Run:
    """What one command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run one command of the command line in this process."""

    def call(*arguments: object) -> Run:
        from flss_edge.cli import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def labelled_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures a class: noise around a colour of the class's own."""
    from PIL import Image

    root = tmp_path_factory.mktemp("labelled") / "pictures"
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASS_NAMES):
        (root / name).mkdir(parents=True)
        for index in range(PICTURES_PER_CLASS):
            pixels = random.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of width 4 with random weights."""
    import torch

    from flss_edge.checkpoint import Checkpoint, save_checkpoint
    from flss_edge.model import FLSS, ModelConfig

    torch.manual_seed(0)
    model = FLSS(ModelConfig(num_classes=len(CLASS_NAMES), width=4, image_size=SIZE)).eval()
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, Checkpoint(model, CLASS_NAMES))
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """The checkpoint's bundle, not calibrated; tests that write take a copy."""
    from flss_edge.checkpoint import load_checkpoint
    from flss_export.exporter import export_bundle

    return export_bundle(load_checkpoint(tiny_checkpoint), tiny_checkpoint.with_suffix(".bundle")).path


@pytest.fixture(scope="session")
def calibrated_bundle(tiny_bundle: Path, labelled_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a threshold for N = 100; tests that write take a copy."""
    from flss_edge.cli import main

    path = tmp_path_factory.mktemp("calibrated") / "tiny.bundle"
    shutil.copytree(tiny_bundle, path)
    assert main(["calibrate", str(path), "--data", str(labelled_pictures), "--split", "test"]) == 0
    return path


@pytest.fixture
def world(
    tmp_path: Path,
    calibrated_bundle: Path,
    tiny_checkpoint: Path,
    labelled_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A folder with a calibrated bundle and its checkpoint, which the test runs in."""
    from .mistakes.world import World

    monkeypatch.chdir(tmp_path)
    shutil.copytree(calibrated_bundle, tmp_path / "m.bundle")
    shutil.copy(tiny_checkpoint, tmp_path / "ckpt.pt")
    return World(tmp_path, tmp_path / "m.bundle", tmp_path / "ckpt.pt", labelled_pictures)
