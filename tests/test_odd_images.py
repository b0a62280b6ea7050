"""Images and pictures that are odd: each is answered or declined, and the others with it are answered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flss_runtime.bundle import load_bundle
from flss_runtime.decision import SmoothingPolicy, Status
from flss_runtime.errors import UsageError
from flss_runtime.opening import open_classifier

from .mistakes.world import World

GOOD = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((3, 32, 32), np.nan, np.float32), "NaN"),
        (np.full((3, 32, 32), np.inf, np.float32), "infinity"),
        (np.full((3, 32, 32), 255, np.float32), "divide 8-bit values by 255"),
        (np.zeros((3, 32, 32), np.float64), "expected uint8"),
        (np.zeros((32, 32, 3), np.int16), "expected uint8"),
        (np.zeros((32, 32, 3), np.float32), r"expected \(3, 32, 32\)"),
        (np.zeros((16, 16, 3), np.uint8), r"expected \(32, 32, 3\)"),
        (np.zeros((32, 32, 4), np.uint8), r"expected \(32, 32, 3\)"),
        (np.zeros((32, 32), np.uint8), r"expected \(32, 32, 3\)"),
        ("frame.png", "not a NumPy array"),
        (None, "not a NumPy array"),
    ],
    ids=repr,
)
def test_a_bad_image_of_a_batch_costs_the_others_nothing(image: object, says: str, calibrated_bundle: Path) -> None:
    with open_classifier(load_bundle(calibrated_bundle)) as classifier:
        first, bad, last = classifier.classify([GOOD, image, GOOD])
    assert bad.status is Status.INVALID_INPUT and bad.label is None
    assert re.search(says, bad.reason), bad.reason
    assert first.votes > 0 and last.votes > 0


@pytest.mark.parametrize(
    "policy", [(0, 2.0, 0), (-1, 2.0, 0), (10, 2.0, 11), (10, 2.0, -1), (10, float("nan"), 0), (10, -1.0, 0)]
)
def test_an_impossible_policy_is_refused(policy: tuple[int, float, int]) -> None:
    with pytest.raises(UsageError, match="fix: pass"):
        SmoothingPolicy(*policy)


def grey16(path: Path) -> None:
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(path)


def rotated(path: Path) -> None:
    picture = Image.new("RGB", (32, 32))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: Image.new("L", (32, 32), 90).save(path),
        lambda path: Image.new("RGBA", (32, 32), (9, 9, 9, 255)).save(path),
        lambda path: Image.new("P", (40, 20)).save(path),
        lambda path: Image.new("1", (32, 32)).save(path),
        grey16,
        rotated,
    ],
    ids=["grey", "opaque alpha", "palette of another size", "black and white", "16-bit grey", "EXIF-rotated"],
)
def test_an_odd_picture_is_answered(save: Callable[[Path], None], world: World, run: Callable[..., Any]) -> None:
    save(world.here / "odd.png")
    result = run("predict", world.bundle, "odd.png", "--format", "json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["results"][0]["status"] in ("accepted", "low_vote")
