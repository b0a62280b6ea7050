"""Write a checkpoint with its weights in half precision, for the model zoo: half the size, the same network otherwise.

usage: python models/halve.py runs/official/best.pt -o models/cifar10-w64.pt

Everything computes in float32 again once it is loaded; what is lost is the weights' rounding. Whether accuracy allows
that is for `flss-edge evaluate` of both to say; here, only the largest change of a logit on synthetic images is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_runtime.errors import CheckpointError, FLSSError

IMAGES = 64


def main(arguments: list[str] | None = None) -> int:
    """Halve the checkpoint that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    try:
        print(halve(options.checkpoint, options.output, overwrite=options.overwrite))
    except FLSSError as error:
        print(f"error: {error.problem}\n  fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    return 0


def halve(source: Path, target: Path, *, overwrite: bool = False) -> str:
    """Write `source` in half precision to `target`, and return what came of it in a sentence.

    Raises:
        CheckpointError: it cannot be read, or a weight is too large for half precision.
        OutputError: the target cannot be written, or exists and `overwrite` is false.
    """
    whole = load_checkpoint(source)
    half = load_checkpoint(source).model.half()
    large = [name for name, tensor in half.state_dict().items() if not torch.isfinite(tensor).all()]
    if large:
        limit = torch.finfo(torch.float16).max
        raise CheckpointError(f"{source.name}: {large[0]} exceeds {limit:g}", "Publish it in float32.")
    save_checkpoint(target, Checkpoint(half, whole.class_names, training=whole.training), overwrite=overwrite)
    size, random = whole.model.config.image_size, torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, size, size, generator=random)
    with torch.no_grad():
        change = (whole.model(images) - load_checkpoint(target).model(images)).abs().max().item()
    sizes = " to ".join(f"{path.stat().st_size / 1e6:.1f} MB" for path in (source, target))
    return f"wrote {target}: {sizes}, the largest change of a logit on {IMAGES} synthetic images is {change:.2g}"


if __name__ == "__main__":
    sys.exit(main())
