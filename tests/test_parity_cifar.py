"""Parity of torch and ONNX Runtime on 1,000 real CIFAR-10 test images, for the paper's full-width network.

Needs the data that the fixture `cifar10` looks for. Trained weights of this width are too large to ship: the network
is that of benchmarks/untrained.py, random features under a head fitted to real images.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.data import CIFAR10_CLASSES, load_images
from flss_edge.model import ModelConfig
from flss_export.exporter import export_bundle
from flss_export.parity import parity
from flss_runtime.bundle import store_calibration
from flss_runtime.equivalence import verify_bundle

ROOT = Path(__file__).parents[1]
NOT_OURS = ("build", "dist")
FOUND = [path for suffix in ("pt", "safetensors") for path in ROOT.glob(f"[!.]*/**/*.{suffix}")]
SHIPPED = sorted(path for path in FOUND if path.relative_to(ROOT).parts[0] not in NOT_OURS)
IMAGES = 1000
MIN_VOTES = 40

pytestmark = pytest.mark.slow


def _untrained() -> ModuleType:
    spec = importlib.util.spec_from_file_location("untrained", ROOT / "benchmarks" / "untrained.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check(checkpoint: Checkpoint, images: np.ndarray, folder: Path) -> None:
    bundle = export_bundle(checkpoint, folder / "parity.bundle", num_samples=100)
    assert verify_bundle(bundle, budget=0.05).passed  # 64 synthetic images: exported without data
    entry = {"num_samples": 100, "noise_scale": 2.0, "mode": "latent", "min_votes": MIN_VOTES}
    report = parity(checkpoint, store_calibration(bundle, entry), images, seed=1)
    print(report.to_json())
    assert report.passed and report.images == len(images)
    assert all(difference <= 1e-4 for difference in report.tensor_differences.values())
    assert report.class_flips == 0
    assert report.rejection_flips == 0


def test_full_width_network(cifar10: Path, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "full.pt",
        Checkpoint(_untrained().fitted(ModelConfig(), load_images(cifar10, "train")), CIFAR10_CLASSES),
    )
    _check(load_checkpoint(tmp_path / "full.pt"), load_images(cifar10, "test").images[:IMAGES], tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_checkpoint(path: Path, cifar10: Path, tmp_path: Path) -> None:
    _check(load_checkpoint(path), load_images(cifar10, "test").images[:IMAGES], tmp_path)
