"""Images that served before are recognised, one by one or by the record of their set."""

from __future__ import annotations

from flss_edge.data import ImageSet
from flss_edge.robustness.overlap import data_is_new

from .broken_models import image_set


def test_data_that_served_before_is_marked() -> None:
    evaluated = image_set(0, 20, "cifar10.npz:test")
    new = data_is_new(evaluated, {"calibration": image_set(20, 20, "x"), "training": "0" * 64})
    assert new.passed and new.values["seen"] == {"calibration": 0, "training": 0}
    overlapping = data_is_new(evaluated, {"calibration": image_set(17, 20, "x")})
    assert overlapping.passed is False and overlapping.values["seen"] == {"calibration": 3}
    assert "3 of 20 served for calibration" in overlapping.text and overlapping.advice
    for record in (evaluated.sha256, "cifar10.npz:test"):
        whole = data_is_new(evaluated, {"calibration": image_set(30, 5, "x"), "training": record})
        assert whole.passed is False and whole.values["seen"]["training"] == 20
    relabelled = ImageSet(evaluated.images, evaluated.labels + 1, evaluated.class_names, "y")
    assert data_is_new(evaluated, {"calibration": relabelled}).passed is False
    unknown = data_is_new(evaluated, {})
    assert unknown.passed is None and unknown.advice
