"""The command that made a result, as it is recorded in it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def command_of(script: str, options: argparse.Namespace) -> str:
    """Return the command with every option, files by their names only: where they lie is nobody's business."""
    words = ["python", f"benchmarks/{script}"]
    for name, value in vars(options).items():
        for item in value if isinstance(value, list) else [value]:
            if item is None or item is False:
                continue
            words.append(f"--{name.replace('_', '-')}")
            if item is not True:
                words.append(item.name if isinstance(item, Path) else str(item))
    return shlex.join(words)
