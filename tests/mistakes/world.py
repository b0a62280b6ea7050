"""The folder that a mistake is made in, and what several mistakes are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flss_runtime.manifest import policy_digest


@dataclass(frozen=True)
class World:
    """The folder a case runs in: a calibrated bundle, its checkpoint, labelled pictures, and whatever the case adds."""

    here: Path
    bundle: Path
    checkpoint: Path
    pictures: Path

    @property
    def picture(self) -> Path:
        return self.pictures / "cat" / "00.png"

    def write(self, name: str, content: bytes | str = b"") -> Path:
        path = self.here / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def folder(self, name: str) -> Path:
        (self.here / name).mkdir(parents=True)
        return self.here / name

    def image(self, name: str, mode: str = "RGB", size: tuple[int, int] = (32, 32), **options: Any) -> Path:
        shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels, mode=None).convert(mode).save(self.here / name, **options)
        return self.here / name

    def npz(self, **changes: Any) -> Path:
        arrays = {
            "test_images": np.zeros((30, 32, 32, 3), np.uint8),
            "test_labels": np.arange(30) % 3,
        }
        arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        np.savez(self.here / "set.npz", **arrays)
        return self.here / "set.npz"

    def edit(self, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """Change one JSON file of the bundle and make every digest agree again."""
        values = json.loads((self.bundle / file).read_text())
        change(values)
        (self.bundle / file).write_text(json.dumps(values))
        policy = json.loads((self.bundle / "policy.json").read_text())
        policy["manifest_sha256"] = hashlib.sha256((self.bundle / "manifest.json").read_bytes()).hexdigest()
        policy["sha256"] = policy_digest(policy)
        (self.bundle / "policy.json").write_text(json.dumps(policy))
        return self.bundle

    def replace(self, file: str, content: bytes) -> Path:
        """Replace a file of the bundle and its line in the manifest: only its content is wrong."""
        (self.bundle / file).write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return self.edit("manifest.json", lambda manifest: manifest["files"].update({file: entry}))


Arguments = Sequence[object]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: the test's id.
        code: the exit code of the command line.
        says: regular expression that the message, on stderr or in the picture's row, must match.
        make: prepares the world and returns the command.
    """

    name: str
    code: int
    says: str
    make: Callable[[World], Arguments]


def truncated(path: Path, keep: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def calibrate(make: Callable[[World], object], *more: str) -> Callable[[World], Arguments]:
    return lambda world: ["calibrate", world.bundle, "--data", make(world), "--split", "test", *more]


def train(*more: object) -> Callable[[World], Arguments]:
    common = ("--image-size", 32, "--width", 8, "--epochs", 1, "-o", "run")
    return lambda world: ["train", "--data", world.pictures, *common, *more]
