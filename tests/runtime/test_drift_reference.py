from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flss_runtime.bundle import load_bundle, store_calibration
from flss_runtime.calibration import calibrate
from flss_runtime.decision import SmoothingPolicy, decide, tally
from flss_runtime.drift import DriftReference, drift_reference
from flss_runtime.drift.reference import MAX_RECORDED_SAMPLES, record_votes
from flss_runtime.errors import BundleError
from flss_runtime.manifest import MAX_REFERENCE_IMAGES
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.statistics import clopper_pearson

from .bundles import NOISE_SCALE, NUM_SAMPLES, entry, random_images, write_tiny
from .cascades import Gate
from .conftest import TinyModel
from .drift_streams import decision
from .test_calibration import PROVENANCE, labelled


class TestCalibrationKeepsIt:
    def test_votes_and_rejections_are_those_of_the_images(self, tiny: TinyModel, tmp_path: Path) -> None:
        bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
        images, labels = labelled(tiny, 100)
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE)
        with open_classifier(bundle, policy=policy, noise=SeededNoise(1), threads=1) as classifier:
            found = calibrate(classifier, images, labels, 0.2, PROVENANCE)
            classifier.noise = SeededNoise(1)
            choices = classifier.vote(images)
        stored = store_calibration(bundle, found)
        reference = drift_reference(stored)
        assert reference is not None
        assert reference.votes == tuple(np.bincount(tally(choices)[1], minlength=NUM_SAMPLES + 1))
        decisions = decide(choices, stored.policy())
        rejected = sum(not each.accepted for each in decisions)
        assert reference.below(stored.policy().min_votes) == rejected > 0
        assert (reference.gated, reference.images, reference.num_samples) == (0, 100, NUM_SAMPLES)
        assert 1 - rejected / 100 == pytest.approx(found["coverage"])
        assert drift_reference(stored, 10) is None and drift_reference(stored, sampling="logit") is None

    def test_what_the_gate_answers_is_apart(self, tiny: TinyModel, gate: Gate, cascade_path: Path) -> None:
        images = random_images(tiny, 200)
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, min_confidence=0.0)
        with open_classifier(cascade_path, policy=policy, noise=SeededNoise(1), threads=1) as classifier:
            found = calibrate(classifier, images, gate.logits(images).argmax(axis=1), 0.1, PROVENANCE)
        reference = drift_reference(store_calibration(load_bundle(cascade_path), found))
        assert reference is not None
        assert reference.gated == found["gate"]["confident"] > 0
        assert reference.images == 200 and reference.below(NUM_SAMPLES + 1) == 200 - reference.gated
        assert 1 - reference.below(found["min_votes"]) / 200 == pytest.approx(found["coverage"])

    def test_so_many_samples_or_images_are_not_kept(self) -> None:
        most = [decision(5, 3, num_samples=MAX_RECORDED_SAMPLES)]
        assert sum(record_votes(most, MAX_RECORDED_SAMPLES)["reference"]["votes"]) == 1
        assert record_votes([decision(5, 3, num_samples=MAX_RECORDED_SAMPLES + 1)], MAX_RECORDED_SAMPLES + 1) == {}
        assert record_votes([decision(5, 3)] * (MAX_REFERENCE_IMAGES + 1), 100) == {}

    def test_an_older_bundle_has_none(self, pristine: Path) -> None:
        bundle = load_bundle(pristine)
        assert bundle.policy().min_votes == 17 and drift_reference(bundle) is None


def reference(**changed: Any) -> dict[str, Any]:
    return {"votes": [0] * NUM_SAMPLES + [60], "gated": 0, **changed}


class TestChecks:
    def test_a_reference_goes_to_disk_and_back(self, tiny: TinyModel, tmp_path: Path) -> None:
        bundle = write_tiny(tmp_path / "a", tiny, policy={"calibrations": [entry(reference=reference(gated=3))]})
        assert drift_reference(load_bundle(bundle.path)) == DriftReference((*[0] * NUM_SAMPLES, 60), 3, 17)
        assert json.loads((bundle.path / "policy.json").read_text())["calibrations"][0]["reference"]["gated"] == 3

    @pytest.mark.parametrize(
        "value",
        [
            3,
            {},
            reference(votes=[1] * NUM_SAMPLES),
            reference(votes=[1] * (NUM_SAMPLES + 2)),
            reference(votes=[1.0] * (NUM_SAMPLES + 1)),
            reference(votes=[True] * (NUM_SAMPLES + 1)),
            reference(votes=[2] * NUM_SAMPLES + [-1]),
            reference(votes=[0] * (NUM_SAMPLES + 1)),
            reference(votes=[MAX_REFERENCE_IMAGES] * (NUM_SAMPLES + 1)),
            reference(gated=-1),
            reference(gated=None),
            {"votes": reference()["votes"]},
        ],
    )
    def test_one_that_cannot_be_is_refused(self, value: object, tiny: TinyModel, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="reference"):
            write_tiny(tmp_path / "a", tiny, policy={"calibrations": [entry(reference=value)]})
        bundle = write_tiny(tmp_path / "b", tiny)
        with pytest.raises(BundleError, match="reference"):
            store_calibration(bundle, entry(reference=value))


class TestLevels:
    def test_are_the_threshold_and_the_quartiles(self) -> None:
        votes = np.full(101, 1)  # one image for each number of votes
        assert DriftReference(tuple(votes), 0, 11).levels() == (11, 25, 51, 76)
        assert DriftReference(tuple(votes), 7, 11).levels() == (11, 27, 54, 81, 101)

    def test_among_equals_it_is_the_highest(self) -> None:
        votes = [0] * 101
        votes[20], votes[100] = 60, 40
        assert DriftReference(tuple(votes), 0, 15).levels() == (15, 20, 100)

    def test_where_all_images_have_all_votes_any_lost_vote_is_seen(self) -> None:
        assert DriftReference((*[0] * 100, 60), 0, 100).levels() == (100,)

    @given(st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(any), st.integers(0, 5), st.data())
    def test_rise_and_stay_in_range(self, votes: list[int], gated: int, data: st.DataObject) -> None:
        samples = len(votes) - 1
        found = DriftReference(tuple(votes), gated, data.draw(st.integers(0, samples)))
        levels = found.levels()
        assert list(levels) == sorted(set(levels)) and found.min_votes in levels
        assert levels[0] >= 0 and levels[-1] <= samples + (gated > 0)
        for level in levels:
            low, high = found.bounds(level, 0.01)
            assert 0 <= low <= found.below(level) / found.images <= high <= 1 and low < 1 and high > 0


def test_bounds_are_clopper_and_pearsons_at_their_part_of_the_rate() -> None:
    found = DriftReference((*[1] * 100, 400), 0, 30)
    assert found.bounds(30, 0.01) == clopper_pearson(30, 500, 1 - 0.01 / 101)
