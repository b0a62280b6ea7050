"""Mistakes about pictures and data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .world import Arguments, Case, World, calibrate, truncated


def picture(make: Callable[[World], object]) -> Callable[[World], Arguments]:
    """Predict one picture; JSON rows are never folded, so the reason can be searched."""

    def arguments(world: World) -> Arguments:
        make(world)
        (made,) = [path for path in world.here.iterdir() if path not in (world.bundle, world.checkpoint)] or [
            "none.png"
        ]
        return ["predict", world.bundle, made, "--format", "json"]

    return arguments


def png_of_declared_size(width: int, height: int) -> bytes:
    """The head of a picture that claims more pixels than it has."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def train_npz(world: World) -> Path:
    return world.npz(train_images=np.zeros((90, 32, 32, 3), np.uint8), train_labels=np.arange(90) % 3)


def nan_images() -> Any:
    return np.full((30, 32, 32, 3), np.nan, np.float32)


PICTURES = [
    Case("missing picture", 7, "correct the path", picture(lambda w: None)),
    Case("zero-byte picture", 7, "copy or record it again", picture(lambda w: w.write("a.png"))),
    Case(
        "corrupt picture",
        7,
        "copy or record it again",
        picture(lambda w: w.write("a.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99)),
    ),
    Case("truncated png", 7, "copy or record it again", picture(lambda w: truncated(w.image("a.png")))),
    Case("truncated jpeg", 7, "copy or record it again", picture(lambda w: truncated(w.image("a.jpg", size=(90, 90))))),
    Case("pipe as picture", 7, "save the picture to a file", picture(lambda w: os.mkfifo(w.here / "a.png"))),
    Case("text as picture", 7, "convert it to PNG or JPEG", picture(lambda w: w.write("a.png", "hello"))),
    Case("transparent picture", 7, "flatten it onto a background", picture(lambda w: w.image("a.png", "RGBA"))),
    Case("grey with transparency", 7, "flatten it onto a background", picture(lambda w: w.image("a.png", "LA"))),
    Case("32-bit picture", 7, "convert it to 8 or 16 bits", picture(lambda w: w.image("a.tif", "F"))),
    Case(
        "decompression bomb",
        7,
        "scale it down first",
        picture(lambda w: w.write("a.png", png_of_declared_size(60000, 60000))),
    ),
    Case("empty folder", 7, "holds no picture.*name the files", lambda w: ["predict", w.bundle, w.folder("none")]),
]
DATA = [
    Case(
        "image size other than the npz has",
        2,
        "drop --image-size",
        lambda w: ["train", "--data", train_npz(w), "--image-size", 64, "--width", 8, "-o", "run"],
    ),
    Case("missing data", 7, "does not exist", calibrate(lambda w: "nowhere")),
    Case("data folder without classes", 7, "folder of its name", calibrate(lambda w: w.folder("flat"))),
    Case("class without pictures", 7, "Add pictures", calibrate(lambda w: w.folder("flat/cat").parent)),
    Case("class the bundle does not know", 7, "cat, dog, fox", calibrate(lambda w: other_class(w))),
    Case("rubbish as npz", 7, "numpy.savez", calibrate(lambda w: w.write("set.npz", "hello"))),
    Case("npz without labels", 7, "test_labels", calibrate(lambda w: w.npz(test_labels=None))),
    Case("images with NaN", 7, "8-bit", calibrate(lambda w: w.npz(test_images=nan_images()))),
    Case(
        "grey images in npz", 7, "channels last", calibrate(lambda w: w.npz(test_images=np.zeros((30, 32, 32), "u1")))
    ),
    Case("fractional labels", 7, "whole-number label", calibrate(lambda w: w.npz(test_labels=np.zeros(30)))),
    Case("too few labels", 7, "whole-number label", calibrate(lambda w: w.npz(test_labels=np.zeros(3, int)))),
    Case("negative label", 7, "from 0", calibrate(lambda w: w.npz(test_labels=np.arange(30) - 1))),
    Case("label above the classes", 7, "cat, dog, fox", calibrate(lambda w: w.npz(test_labels=np.arange(30)))),
    Case("images of another size", 7, "resize", calibrate(lambda w: w.npz(test_images=np.zeros((30, 8, 8, 3), "u1")))),
    Case(
        "no images",
        7,
        "at least one image",
        calibrate(lambda w: w.npz(test_images=np.zeros((0, 32, 32, 3), "u1"), test_labels=np.zeros(0, int))),
    ),
    Case("too few images for the budget", 7, "at least 200", calibrate(lambda w: w.pictures, "--budget", "0.005")),
    Case("folder without a size", 2, "--image-size", lambda w: ["train", "--data", w.pictures, "-o", "run"]),
]


def other_class(world: World) -> Path:
    shutil.copytree(world.pictures / "cat", world.folder("set") / "wolf")
    return world.here / "set"
