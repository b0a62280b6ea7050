"""Images that served before are recognised, one by one or by the record of their set."""

from __future__ import annotations

import numpy as np

from flss_edge.data import ImageSet
from flss_edge.robustness.overlap import calibrated_on, data_is_new, recorded_uses
from flss_runtime.errors import DataError

from .broken_models import image_set


def test_data_that_served_before_is_marked() -> None:
    evaluated = image_set(0, 20, "cifar10.npz:test")
    new = data_is_new(evaluated, {"calibration": image_set(20, 20, "x"), "training": "0" * 64})
    assert new.passed and new.values["seen"] == {"calibration": 0, "training": 0}
    overlapping = data_is_new(evaluated, {"calibration": image_set(17, 20, "x")})
    assert overlapping.passed is False and overlapping.values["seen"] == {"calibration": 3}
    assert "3 of 20 served for calibration" in overlapping.text and overlapping.advice
    whole = data_is_new(evaluated, {"calibration": image_set(30, 5, "x"), "training": evaluated.sha256})
    assert whole.passed is False and whole.values["seen"]["training"] == 20
    relabelled = ImageSet(evaluated.images, evaluated.labels + 1, evaluated.class_names, "y")
    assert data_is_new(evaluated, {"calibration": relabelled}).passed is False
    unknown = data_is_new(evaluated, {})
    assert unknown.passed is None and unknown.advice


PARTS = {
    "fit": image_set(0, 20, "x.npz:train:fit"),
    "selection": image_set(20, 5, "x.npz:train:selection"),
    "calibration": image_set(25, 5, "x.npz:train:calibration"),
    "test": image_set(40, 9, "x.npz:test"),
}
TRAINING = {"data_sha256": PARTS["fit"].sha256, "selection_sha256": PARTS["selection"].sha256}


def load(split: str) -> ImageSet:
    if split not in PARTS:
        raise DataError(f"there is no {split}", "none")
    return PARTS[split]


def test_the_records_name_parts_of_the_data() -> None:
    some = image_set(18, 5, "x.npz:train[5 evenly spaced]")
    check = data_is_new(some, recorded_uses(TRAINING, some, load))
    assert check.passed is False and check.values["seen"] == {"training": 2, "choosing the checkpoint": 3}
    gate = recorded_uses(TRAINING, some, load, "the gate")
    assert list(gate) == ["training the gate", "choosing the checkpoint the gate"]


def test_a_set_that_is_not_at_hand_gives_no_all_clear() -> None:
    some = image_set(30, 5, "x.npz:train")
    for training in ({**TRAINING, "data_sha256": "0" * 64}, {}):
        check = data_is_new(some, {"calibration": PARTS["calibration"], **recorded_uses(training, some, load)})
        assert check.passed is None and check.advice
        assert "nobody can tell which images served for training" in check.text
        assert check.text.startswith("none served for calibration")


def test_the_test_part_was_left_out_of_any_training_but_not_of_any_calibration() -> None:
    apart = PARTS["test"].take(np.arange(3), "x.npz:test[3 evenly spaced]")
    assert data_is_new(apart, recorded_uses(TRAINING, apart, load)).passed
    on_test = calibrated_on(PARTS["test"].sha256, load)
    assert data_is_new(apart, {"calibration": on_test}).values["seen"] == {"calibration": 3}
    assert calibrated_on("0" * 64, load) is None and calibrated_on(None, load) is None
