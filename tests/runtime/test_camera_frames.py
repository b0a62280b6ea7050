"""A camera frame is brought to the encoder's size as a picture file of it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_runtime.errors import DataError
from flss_runtime.images import InputSpec, check_image, fit_image, read_image

from .test_images import SPEC, picture, save


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(6, 8), (48, 64), (50, 31), (3, 4), (7, 200)])
def test_a_camera_frame_becomes_what_its_picture_becomes(tmp_path: Path, resize: str, size: tuple[int, int]) -> None:
    spec, frame = InputSpec(6, 8, resize=resize), picture(*size)
    fitted = fit_image(frame, spec)
    np.testing.assert_array_equal(fitted, read_image(save(tmp_path / "frame.png", frame), spec), strict=True)
    assert check_image(fitted, spec) == ""


def test_a_camera_frame_of_the_right_size_is_not_copied() -> None:
    frame = picture()
    assert fit_image(frame, SPEC) is frame
    part = picture(20, 30)[3:15, 5:21]  # a view, as a region of interest is
    np.testing.assert_array_equal(fit_image(part, SPEC), fit_image(part.copy(), SPEC), strict=True)


@pytest.mark.parametrize(
    "frame",
    [
        picture().astype(np.float32),
        picture(channels=1),
        np.zeros((6, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 6, 8, 3), np.uint8),
        [[0, 0, 0]],
    ],
)
def test_what_is_no_camera_frame_is_refused(frame: Any) -> None:
    with pytest.raises(DataError, match="a camera frame is"):
        fit_image(frame, SPEC)


def test_a_camera_frame_too_long_to_crop_is_refused() -> None:
    with pytest.raises(DataError, match="the camera frame is 60000 x 1"):
        fit_image(np.zeros((1, 60000, 3), np.uint8), InputSpec(64, 64, resize="crop"))
