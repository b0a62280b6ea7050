"""Write an untrained checkpoint of any size: latency depends on the network's shape, not on what it has learned.

usage: python benchmarks/untrained.py --width 64 --image-size 32 -o build/bench/w64.pt
       python benchmarks/untrained.py --width 64 --fit cifar10.npz -o build/bench/w64-fitted.pt

With --fit its decisions mean something too: random features under a linear head that is fitted to real images, for
comparisons of engines at widths whose trained weights are too large to ship.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from flss_edge.checkpoint import Checkpoint, save_checkpoint
from flss_edge.data import CIFAR10_CLASSES, ImageSet, load_images
from flss_edge.model import FLSS, ModelConfig
from flss_runtime.images import InputSpec, to_nchw

FITTED_IMAGES = 1000
SPREAD = 0.5  # standard deviation of a latent, in those of the features over images


def main() -> None:
    """Write the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--fit", type=Path, metavar="DATA", help="fit the head to training images of these data")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    config = ModelConfig(width=arguments.width, image_size=arguments.image_size, stem=arguments.stem)
    names, note = CIFAR10_CLASSES, "untrained: random weights, for measuring latency only"
    if arguments.fit is None:
        torch.manual_seed(0)
        network = FLSS(config).eval()
    else:
        data = load_images(arguments.fit, "train", spec=InputSpec(arguments.image_size, arguments.image_size))
        network, names = fitted(config, data), data.class_names
        note = f"untrained: random features under a head fitted to {FITTED_IMAGES} images of {data.source}"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(arguments.output, Checkpoint(network, names, training={"note": note}))


def fitted(config: ModelConfig, data: ImageSet) -> FLSS:
    """Return random features under a linear head that is fitted to the first training images, in eval mode.

    Batch statistics, head and the size of the standard deviation come from them, so that some winners are clear and
    some are not, as in a trained network.
    """
    torch.manual_seed(0)
    model = FLSS(config)
    images, labels = data.images[:FITTED_IMAGES], torch.from_numpy(data.labels[:FITTED_IMAGES])
    batches = [torch.from_numpy(to_nchw(images[start : start + 100])) for start in range(0, len(images), 100)]
    with torch.no_grad():
        for batch in batches[:5]:
            model.train().encoder(batch)
        mean = torch.cat([model.eval().encoder(batch)[0] for batch in batches])  # (M, D)
        centred = mean - mean.mean(dim=0)
        targets = nn.functional.one_hot(labels, config.num_classes).float() - 1 / config.num_classes
        ridge = centred.T @ centred + 0.1 * torch.eye(mean.shape[1])
        weight = torch.linalg.solve(ridge, centred.T @ targets).T
        model.head[0].weight.copy_(weight)
        model.head[0].bias.copy_(-weight @ mean.mean(dim=0))
        model.encoder.logvar.weight.mul_(0.1)
        model.encoder.logvar.bias.fill_(float(2 * torch.log(SPREAD * centred.std())))
    return model


if __name__ == "__main__":
    main()
