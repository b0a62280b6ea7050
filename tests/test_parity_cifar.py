"""Parity of torch and ONNX Runtime on 1,000 real CIFAR-10 test images, for the paper's full-width network.

Needs the data that the fixture `cifar10` looks for.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.data import CIFAR10_CLASSES, ImageSet, load_images
from flss_edge.model import FLSS, ModelConfig
from flss_export.exporter import export_bundle
from flss_export.parity import parity
from flss_runtime.bundle import store_calibration
from flss_runtime.equivalence import verify_bundle
from flss_runtime.images import to_nchw

ROOT = Path(__file__).parents[1]
NOT_OURS = ("build", "dist")
FOUND = [path for suffix in ("pt", "safetensors") for path in ROOT.glob(f"[!.]*/**/*.{suffix}")]
SHIPPED = sorted(path for path in FOUND if path.relative_to(ROOT).parts[0] not in NOT_OURS)
IMAGES = 1000
MIN_VOTES = 40
SPREAD = 0.5  # standard deviation of a latent, in those of the features over images

pytestmark = pytest.mark.slow


def _network_of_random_features(data: ImageSet) -> FLSS:
    """A full-width network that decides something: random features, a linear head fitted to real images.

    Trained weights of this width are too large to ship. Batch statistics, head and the size of the standard deviation
    come from 1,000 training images, so that some winners are clear and some are not, as in a trained network.
    """
    torch.manual_seed(0)
    model = FLSS(ModelConfig())
    images, labels = data.images[:IMAGES], torch.from_numpy(data.labels[:IMAGES])
    batches = [torch.from_numpy(to_nchw(images[start : start + 100])) for start in range(0, IMAGES, 100)]
    with torch.no_grad():
        for batch in batches[:5]:
            model.train().encoder(batch)
        mean = torch.cat([model.eval().encoder(batch)[0] for batch in batches])  # (M, D)
        centred = mean - mean.mean(dim=0)
        targets = nn.functional.one_hot(labels, 10).float() - 0.1
        ridge = centred.T @ centred + 0.1 * torch.eye(mean.shape[1])
        weight = torch.linalg.solve(ridge, centred.T @ targets).T
        model.head[0].weight.copy_(weight)
        model.head[0].bias.copy_(-weight @ mean.mean(dim=0))
        model.encoder.logvar.weight.mul_(0.1)
        model.encoder.logvar.bias.fill_(float(2 * torch.log(SPREAD * centred.std())))
    return model


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
        tmp_path / "full.pt", Checkpoint(_network_of_random_features(load_images(cifar10, "train")), CIFAR10_CLASSES)
    )
    _check(load_checkpoint(tmp_path / "full.pt"), load_images(cifar10, "test").images[:IMAGES], tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_checkpoint(path: Path, cifar10: Path, tmp_path: Path) -> None:
    _check(load_checkpoint(path), load_images(cifar10, "test").images[:IMAGES], tmp_path)
