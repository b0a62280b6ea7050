from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flss_runtime.bundle import store_calibration
from flss_runtime.calibration import Provenance, calibrate, min_votes_for_budget
from flss_runtime.classifier import SmoothedClassifier
from flss_runtime.decision import SmoothingPolicy, decide, tally
from flss_runtime.engines import open_engine
from flss_runtime.errors import DataError, UncalibratedError, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier
from flss_runtime.samplers import TwoGraphSampler
from flss_runtime.sampling import DETERMINISTIC, LOGIT

from .bundles import NOISE_SCALE, NUM_SAMPLES, further, random_images, write_tiny
from .bundles import entry as policy_entry

PROVENANCE = Provenance(data="random pixels", data_sha256="ab" * 32, engine="ort", seed=1)


def golden_choices() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The clean rows of docs/method.md, section 4, as ten votes an image: the rest of the votes are split evenly."""
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 2])
    clean = [(0, 10), (0, 9), (1, 7), (1, 5), (2, 6), (2, 4), (1, 5), (1, 8), (0, 4), (2, 9)]
    rows = []
    for winner, votes in clean:
        others = [label for label in range(3) if label != winner]
        rest = 10 - votes
        rows.append([winner] * votes + [others[0]] * (rest // 2) + [others[1]] * (rest - rest // 2))
    return np.array(rows), labels


class TestRule:
    def test_golden_example(self) -> None:
        choices, labels = golden_choices()
        winners, votes = tally(choices)
        correct = winners == labels
        assert correct.mean() == 0.8  # Acc_nat, nothing rejected
        assert [int((correct & (votes <= t)).sum()) for t in (3, 4, 5, 6)] == [0, 1, 2, 3]  # C(3) to C(6)
        min_votes = min_votes_for_budget(votes, correct, 10, 0.1)
        assert min_votes == 5  # t* = 4

        accepted = np.array([each.accepted for each in decide(choices, SmoothingPolicy(10, 2.0, min_votes))])
        assert set(np.flatnonzero(accepted & correct)) == {0, 1, 2, 3, 4, 7, 9}  # FC
        assert set(np.flatnonzero(accepted & ~correct)) == {6}  # FW
        assert set(np.flatnonzero(~accepted)) == {5, 8}  # R
        assert correct[accepted].mean() == 0.875  # Acc_nat at the budget

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_keeps_the_budget_and_is_strictest(self, data: st.DataObject) -> None:
        num_samples = data.draw(st.integers(1, 12))
        n = data.draw(st.integers(2, 60))
        allowed = data.draw(st.integers(1, n - 1))
        votes = np.array(data.draw(st.lists(st.integers(1, num_samples), min_size=n, max_size=n)))
        correct = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        min_votes = min_votes_for_budget(votes, correct, num_samples, (allowed + 0.5) / n)
        assert 1 <= min_votes <= num_samples
        assert (correct & (votes < min_votes)).sum() <= allowed
        if min_votes < num_samples:
            assert (correct & (votes < min_votes + 1)).sum() > allowed

    def test_never_asks_for_more_votes_than_there_are(self) -> None:
        assert min_votes_for_budget(np.full(20, 8), np.zeros(20, bool), 8, 0.1) == 8

    def test_the_budget_is_the_decimal_that_was_written(self) -> None:
        # 0.29 * 100 is 28.999999999999996 in binary; 29 correct images may be rejected, not 28.
        votes = np.where(np.arange(100) < 29, 3, 9)
        assert min_votes_for_budget(votes, np.ones(100, bool), 10, 0.29) == 9
        assert min_votes_for_budget(votes, np.ones(100, bool), 10, 0.28) == 3

    @pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
    def test_budget_out_of_range(self, budget: float) -> None:
        with pytest.raises(UsageError, match="between 0 and 1"):
            min_votes_for_budget(np.full(20, 8), np.ones(20, bool), 10, budget)

    def test_too_few_images_names_how_many(self) -> None:
        with pytest.raises(DataError, match="at least 10 images"):
            min_votes_for_budget(np.full(9, 8), np.ones(9, bool), 10, 0.1)
        assert min_votes_for_budget(np.full(10, 8), np.ones(10, bool), 10, 0.1) == 8


@pytest.fixture(scope="module")
def classifier(tiny: Any) -> Any:
    encoder, head = open_engine(tiny.encoder, threads=1), open_engine(tiny.head, threads=1)
    names = [f"class {index}" for index in range(tiny.num_classes)]
    sampler = TwoGraphSampler(encoder, head, tiny.num_classes)
    with SmoothedClassifier(sampler, SeededNoise(1), SmoothingPolicy(40, 2.0), tiny.spec, names) as opened:
        yield opened


def labelled(model: Any, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random images, labelled by the mean path; every tenth label is wrong."""
    images = random_images(model, count)
    mean, _ = model.encode(to_nchw(images))
    labels = (mean @ model.head_weight + model.head_bias).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % model.num_classes
    return images, labels


class TestCalibrate:
    def test_entry(self, classifier: SmoothedClassifier, tiny: Any) -> None:
        images, labels = labelled(tiny, 200)
        classifier.noise = SeededNoise(1)
        entry = calibrate(classifier, images, labels, 0.1, PROVENANCE)
        classifier.noise = SeededNoise(1)
        choices = classifier.vote(images)
        winners, votes = tally(choices)
        correct, accepted = winners == labels, votes >= entry["min_votes"]

        assert (entry["num_samples"], entry["noise_scale"], entry["mode"]) == (40, 2.0, "latent")
        assert entry["n"] == 200 and entry["correct"] == correct.sum()
        assert entry["false_rejects"] == (correct & ~accepted).sum() <= 20
        assert (correct & (votes <= entry["min_votes"])).sum() > 20
        assert entry["coverage"] == pytest.approx(accepted.mean())
        assert entry["accuracy_no_sampling"] == pytest.approx(0.9)
        assert entry["accuracy_no_rejection"] == pytest.approx(correct.mean())
        assert entry["accuracy_accepted"] == pytest.approx(correct[accepted].mean())
        low, high = entry["interval"]
        assert low < entry["false_rejects"] / 200 < high
        assert entry["rule"] == "strict" and entry["budget"] == 0.1
        assert (entry["data"], entry["data_sha256"], entry["seed"]) == ("random pixels", "ab" * 32, 1)
        assert len(entry["notes"]) == 1 and "only 200 images" in entry["notes"][0]

    def test_enough_images_need_no_note(self, classifier: SmoothedClassifier, tiny: Any) -> None:
        assert calibrate(classifier, *labelled(tiny, 500), 0.1, PROVENANCE)["notes"] == []

    def test_a_useless_model_is_said_to_be_one(self, classifier: SmoothedClassifier, tiny: Any) -> None:
        images = random_images(tiny, 60)
        labels = (tally(classifier.vote(images))[0] + 1) % tiny.num_classes
        entry = calibrate(classifier, images, labels, 0.5, PROVENANCE)
        assert entry["min_votes"] == 40
        assert any("binds nothing" in note for note in entry["notes"])

    def test_is_stored_and_used(self, tiny: Any, tmp_path: Path) -> None:
        bundle = write_tiny(tmp_path / "tiny.bundle", tiny)
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE)
        with open_classifier(bundle, policy=policy, noise=SeededNoise(1), threads=1) as opened:
            found = calibrate(opened, *labelled(tiny, 100), 0.2, PROVENANCE)
        stored = store_calibration(bundle, found)
        assert stored.policy() == SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, found["min_votes"])
        assert stored.calibration() == found

    @pytest.mark.parametrize("sampling", [LOGIT, DETERMINISTIC])
    def test_each_sampling_has_a_threshold_of_its_own(self, sampling: str, tiny: Any, tmp_path: Path) -> None:
        latent = {"calibrations": [policy_entry(min_votes=3)]}
        bundle = write_tiny(tmp_path / "tiny.bundle", tiny, policy=latent, **further(tiny, "logit"))
        images, labels = labelled(tiny, 100)
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE)
        with pytest.raises(UncalibratedError) as caught:
            open_classifier(bundle, sampling=sampling, threads=1)
        assert f"not calibrated for {sampling} sampling with N = 40" in caught.value.problem
        assert caught.value.fix.endswith(f"--budget 0.10 --sampling {sampling}")
        with open_classifier(bundle, policy=policy, sampling=sampling, noise=SeededNoise(1), threads=1) as opened:
            found = calibrate(opened, images, labels, 0.2, PROVENANCE)
        assert found["mode"] == sampling
        stored = store_calibration(bundle, found)
        assert stored.policy(sampling=sampling).min_votes == found["min_votes"] > 3
        assert stored.policy().min_votes == 3
        with open_classifier(stored, sampling=sampling, noise=SeededNoise(1), threads=1) as opened:
            decisions = opened.classify(images)
        accepted = np.array([decision.accepted for decision in decisions])
        assert accepted.mean() == pytest.approx(found["coverage"]) and 0 < accepted.mean() < 1
        with pytest.raises(UncalibratedError, match=f"it has .*{sampling} N = 40 at scale 2.0"):
            stored.policy(10, sampling)

    def test_a_sampling_that_does_not_exist(self, tiny: Any, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no sampling 'sobol'"):
            write_tiny(tmp_path / "tiny.bundle", tiny).policy(sampling="sobol")

    def test_refuses_what_does_not_fit(self, classifier: SmoothedClassifier, tiny: Any) -> None:
        images, labels = labelled(tiny, 20)
        bad = [
            (images[:0], labels[:0], "no images"),
            (images[:, :4], labels, "expected uint8"),
            (images.astype(np.float32), labels, "expected uint8"),
            (images, labels[:-1], "one integer for each"),
            (images, labels.astype(np.float64), "one integer for each"),
            (images, np.where(labels == 0, -1, labels), "run from -1"),
            (images, np.full(20, tiny.num_classes), "from 0 to 4"),
            (images[:5], labels[:5], "at least 10 images"),
        ]
        for some_images, some_labels, message in bad:
            with pytest.raises(DataError, match=message):
                calibrate(classifier, some_images, some_labels, 0.1, PROVENANCE)
        with pytest.raises(UsageError, match="between 0 and 1"):
            calibrate(classifier, images, labels, 10, PROVENANCE)
