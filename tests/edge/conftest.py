"""Images to train on in a second or two, as a file, and a folder with a bundle to run commands in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from .small_runs import bars


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """75 training images of three classes, 15 of them set aside; the test runs in the folder."""
    fit, test = bars(75, 0), bars(30, 1)
    arrays = {"train_images": fit.images, "train_labels": fit.labels}
    np.savez(tmp_path / "bars.npz", test_images=test.images, test_labels=test.labels, **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bars.npz"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(here: Path, calibrated_bundle: Path) -> Path:
    return Path(shutil.copytree(calibrated_bundle, here / "tiny.bundle"))
