"""Write an untrained checkpoint of any size: latency depends on the network's shape, not on what it has learned.

usage: python benchmarks/untrained.py --width 64 --image-size 32 -o build/bench/w64.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flss_edge.checkpoint import Checkpoint, save_checkpoint
from flss_edge.data import CIFAR10_CLASSES
from flss_edge.model import FLSS, ModelConfig


def main() -> None:
    """Write the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = ModelConfig(width=arguments.width, image_size=arguments.image_size, stem=arguments.stem)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    training = {"note": "untrained: random weights, for measuring latency only"}
    save_checkpoint(arguments.output, Checkpoint(FLSS(config).eval(), CIFAR10_CLASSES, training=training))


if __name__ == "__main__":
    main()
