"""Images that served before are recognised, one by one or by the record of their set."""

from __future__ import annotations

from flss_edge.data import ImageSet
from flss_edge.robustness.overlap import data_is_new, recorded_uses

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


def test_the_records_name_parts_of_the_data() -> None:
    parts = {"fit": image_set(0, 20, "x.npz:train:fit"), "selection": image_set(20, 5, "x.npz:train:selection")}
    training = {"data_sha256": parts["fit"].sha256, "selection_sha256": parts["selection"].sha256}
    some = image_set(18, 5, "x.npz:train[5 evenly spaced]")
    seen = data_is_new(some, recorded_uses(training, some, parts.__getitem__)).values["seen"]
    assert seen == {"training": 2, "choosing the checkpoint": 3}
    other = {**training, "selection_sha256": "0" * 64}
    seen = data_is_new(some, recorded_uses(other, some, parts.__getitem__)).values["seen"]
    assert seen == {"training": 2, "choosing the checkpoint": 0}, "not the set that was used"


def test_images_of_a_part_of_their_own_load_nothing_more() -> None:
    def load(split: str) -> ImageSet:
        raise AssertionError(split)

    apart = image_set(0, 3, "x.npz:test[3 evenly spaced]")
    assert recorded_uses({"data_sha256": "a" * 64}, apart, load, "b" * 64) == {
        "training": "a" * 64,
        "calibration": "b" * 64,
    }
    assert recorded_uses({}, image_set(0, 3, "x.npz:train"), load) == {}
