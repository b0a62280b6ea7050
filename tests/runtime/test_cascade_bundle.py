"""The cascade's bundle: its version, its thresholds, and the replay that verifies its gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flss_runtime.arrays import read_golden, read_reference
from flss_runtime.bundle import load_bundle, store_calibration
from flss_runtime.calibration import Provenance, calibrate, min_confidence_for_rate, min_votes_for_budget
from flss_runtime.comparison import GateOutputs, Outputs, compare
from flss_runtime.decision import SmoothingPolicy, tally
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import BundleError, DataError, UncalibratedError, UsageError
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

from .bundles import (
    NOISE_SCALE,
    NUM_SAMPLES,
    edit_manifest,
    entry,
    golden_arrays,
    npz,
    random_images,
    reference_arrays,
    seal_policy,
    write_tiny,
)
from .cascades import (
    MIN_VOTES,
    Gate,
    cascade_entry,
    choices_of,
    make_gate,
    mean_choices,
    open_parts,
    write_cascade,
)

if TYPE_CHECKING:
    from .conftest import TinyModel

PROVENANCE = Provenance(data="random pixels", data_sha256="ab" * 32, engine="ort", seed=1)


class TestBundle:
    def test_says_version_2_so_that_readers_of_version_1_refuse_it(self, cascade_path: Path) -> None:
        versions = [
            json.loads((cascade_path / f"{name}.json").read_text())["format_version"] for name in ("manifest", "policy")
        ]
        assert versions == [2, 2]
        store_calibration(load_bundle(cascade_path), cascade_entry(0.5))
        assert json.loads((cascade_path / "policy.json").read_text())["format_version"] == 2
        assert load_bundle(cascade_path).has_gate

    def test_without_gate_it_stays_version_1(self, tiny: TinyModel, tmp_path: Path) -> None:
        bundle = store_calibration(write_tiny(tmp_path / "b", tiny), entry())
        manifest, policy = (json.loads((bundle.path / f"{name}.json").read_text()) for name in ("manifest", "policy"))
        assert manifest["format_version"] == policy["format_version"] == 1
        assert "gate_checkpoint" not in manifest and not bundle.has_gate
        assert bundle.policy() == SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 17)
        with pytest.raises(BundleError, match="no 'gate' graph"):
            bundle.graph("gate")

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda m: m.update(format_version=1), "has a gate, which needs format version 2; found 1"),
            (lambda m: (m["graphs"].pop("gate"), m["precision"].pop("gate")), "has no gate, which is format version 1"),
            (lambda m: m.pop("gate_checkpoint"), "'gate_checkpoint' must be an object"),
            (lambda m: m["gate_checkpoint"].update(sha256="abc"), "SHA-256"),
            (lambda m: m["precision"].pop("gate"), "'gate' must be one of fp32"),
        ],
    )
    def test_a_manifest_that_contradicts_itself(
        self, cascade_path: Path, edit: Callable[..., Any], message: str
    ) -> None:
        edit_manifest(cascade_path, edit)
        with pytest.raises(BundleError, match=message):
            load_bundle(cascade_path)

    def test_a_policy_of_another_version(self, cascade_path: Path) -> None:
        seal_policy(cascade_path, lambda policy: policy.update(format_version=1))
        with pytest.raises(BundleError, match=r"policy\.json has format version 1, the manifest beside it 2"):
            load_bundle(cascade_path)

    def test_a_damaged_or_missing_gate(self, cascade_path: Path) -> None:
        graph = cascade_path / "gate.onnx"
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(bytes(content))
        with pytest.raises(BundleError, match=r"gate\.onnx"):
            load_bundle(cascade_path)
        graph.unlink()
        with pytest.raises(BundleError, match=r"gate\.onnx"):
            open_classifier(cascade_path)

    def test_without_the_gates_threshold_it_is_not_calibrated(self, cascade_path: Path) -> None:
        bundle = store_calibration(load_bundle(cascade_path), entry())
        assert bundle.calibration() is None
        for refused in (bundle.policy, lambda: open_classifier(bundle)):
            with pytest.raises(UncalibratedError, match=r"N = 40 at scale 2.0 without its gate\)"):
                refused()
        bundle = store_calibration(bundle, cascade_entry(0.75))
        assert len(bundle.calibrations) == 1
        assert bundle.policy() == SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, MIN_VOTES, 0.75)

    def test_the_threshold_survives_the_file_exactly(self, cascade_path: Path) -> None:
        exact = float(np.nextafter(1, 0))
        assert store_calibration(load_bundle(cascade_path), cascade_entry(exact)).policy().min_confidence == exact

    @pytest.mark.parametrize("value", [-0.1, 1.01, "0.5", True, None])
    def test_an_impossible_threshold(self, cascade_path: Path, value: Any) -> None:
        with pytest.raises(BundleError, match="'min_confidence' must be"):
            store_calibration(load_bundle(cascade_path), cascade_entry(value))
        assert load_bundle(cascade_path).calibrations == ()


class TestRate:
    def test_by_hand(self) -> None:
        confidence = np.linspace(0.001, 1, 1000)[::-1]
        correct = np.ones(1000, bool)
        correct[500:] = False  # the 500 lowest are wrong and do not count
        found = min_confidence_for_rate(confidence, correct)
        assert found == pytest.approx(0.506)  # of 500 correct ones, the 5 lowest are lost
        assert (confidence[correct] >= found).mean() == 0.99

    def test_few_images_are_all_kept(self) -> None:
        assert min_confidence_for_rate(np.array([0.5, 0.2, 0.9]), np.array([True, False, True])) == 0.5
        assert min_confidence_for_rate(np.array([0.5, 0.2]), np.ones(2, bool), 1) == 0.2

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300), st.integers(1, 100))
    def test_keeps_the_rate_and_is_strictest(self, pairs: list[tuple[float, bool]], percent: int) -> None:
        confidence, correct = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        if not correct.any():
            with pytest.raises(DataError, match="none of"):
                min_confidence_for_rate(confidence, correct, percent / 100)
            return
        found = min_confidence_for_rate(confidence, correct, percent / 100)
        kept = np.sort(confidence[correct])
        assert (kept >= found).sum() * 100 >= percent * len(kept)
        assert (kept > found).sum() * 100 < percent * len(kept)

    @pytest.mark.parametrize("rate", [0, 1.1, -1, float("nan")])
    def test_no_rate(self, rate: float) -> None:
        with pytest.raises(UsageError, match="rate must lie"):
            min_confidence_for_rate(np.ones(3), np.ones(3, bool), rate)


class TestCalibrate:
    def test_measures_the_cascade_and_chooses_each_threshold_alone(
        self, tiny: TinyModel, gate: Gate, cascade_path: Path
    ) -> None:
        images = random_images(tiny, 200)
        labels = mean_choices(tiny, images)
        labels[::2] = gate.logits(images[::2]).argmax(axis=1)  # each is right where the other often is not
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, min_confidence=0.0)
        with open_classifier(cascade_path, policy=policy, noise=SeededNoise(1), threads=1) as classifier:
            found = calibrate(classifier, images, labels, 0.1, PROVENANCE)

        confidence, gate_correct = gate.confidence(images), gate.logits(images).argmax(axis=1) == labels
        threshold = np.sort(confidence[gate_correct])[gate_correct.sum() // 100]
        assert found["gate"]["min_confidence"] == pytest.approx(threshold, abs=1e-6)
        assert (found["gate"]["rule"], found["gate"]["rate"]) == ("true_positive_rate", 0.99)
        assert found["gate"]["correct"] == gate_correct.sum()
        assert found["gate"]["kept"] == gate_correct.sum() - gate_correct.sum() // 100
        gated = confidence >= threshold - 1e-9
        assert found["gate"]["confident"] == gated.sum() and 0 < gated.sum() < 200

        winners, votes = tally(choices_of(tiny, images, 1))
        assert found["min_votes"] == min_votes_for_budget(votes, winners == labels, NUM_SAMPLES, 0.1)
        answers = np.where(gated, mean_choices(tiny, images), winners)
        accepted = gated | (votes >= found["min_votes"])
        assert found["correct"] == (answers == labels).sum()
        assert found["false_rejects"] == ((answers == labels) & ~accepted).sum()
        assert found["coverage"] == pytest.approx(accepted.mean())
        assert found["accuracy_no_sampling"] == pytest.approx((mean_choices(tiny, images) == labels).mean())
        assert found["accuracy_accepted"] == pytest.approx((answers == labels)[accepted].mean())

        wrong = gated.mean() - found["gate"]["kept"] / 200
        assert wrong > 0.1 and any(f"confident about {wrong:.1%} of the images" in note for note in found["notes"])

        stored = store_calibration(load_bundle(cascade_path), found)
        assert stored.policy().min_confidence == found["gate"]["min_confidence"]

    def test_a_gate_that_knows_what_it_knows_needs_no_note(
        self, tiny: TinyModel, gate: Gate, cascade_path: Path
    ) -> None:
        images = random_images(tiny, 500)
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, min_confidence=0.0)
        with open_classifier(cascade_path, policy=policy, noise=SeededNoise(1), threads=1) as classifier:
            found = calibrate(classifier, images, gate.logits(images).argmax(axis=1), 0.1, PROVENANCE)
        assert found["gate"]["correct"] == 500 and found["gate"]["confident"] == found["gate"]["kept"] == 495
        assert not any("gate" in note for note in found["notes"])

    def test_a_gate_that_is_never_right(self, tiny: TinyModel, gate: Gate, cascade_path: Path) -> None:
        images = random_images(tiny, 20)
        wrong = (gate.logits(images).argmax(axis=1) + 1) % 5
        policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, min_confidence=0.0)
        with (
            open_classifier(cascade_path, policy=policy, noise=SeededNoise(1), threads=1) as classifier,
            pytest.raises(DataError, match="none of 20 images"),
        ):
            calibrate(classifier, images, wrong, 0.1, PROVENANCE)

    def test_without_a_gate_nothing_is_said_about_one(self, tiny: TinyModel) -> None:
        with open_parts(tiny, None, SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE)) as classifier:
            images = random_images(tiny, 20)
            assert "gate" not in calibrate(classifier, images, mean_choices(tiny, images), 0.1, PROVENANCE)


class TestEquivalence:
    def test_passes_on_real_graphs(self, cascade_path: Path, middle: float) -> None:
        report = verify_bundle(cascade_path, threads=1, budget=0.05)  # 60 images cannot show less
        assert report.passed and report.reference is not None
        assert set(report.golden.tensor_differences) == {"mean", "std", "logits", "gate_logits"}
        assert set(report.reference.tensor_differences) == {"gate_confidence"}
        assert report.reference.gate_flips is None and "gate_flips" not in report.reference.to_json()

        store_calibration(load_bundle(cascade_path), cascade_entry(middle))
        report = verify_bundle(cascade_path, threads=1, budget=0.05)  # 60 images cannot show less
        assert report.passed and report.reference is not None
        assert (report.reference.gate_flips, report.reference.rejection_flips) == (0, 0)
        assert json.loads(json.dumps(report.to_json(), allow_nan=False))["reference"]["gate_flips"] == 0

    def test_another_gate_fails_and_its_crossings_are_counted(
        self, tiny: TinyModel, gate: Gate, middle: float, tmp_path: Path
    ) -> None:
        other = make_gate(tmp_path / "other.onnx", tiny, seed=22)
        bundle = write_cascade(tmp_path / "b", tiny, gate, files={"gate.onnx": other.path})
        bundle = store_calibration(bundle, cascade_entry(middle))
        report = verify_bundle(bundle, threads=1)
        assert not report.golden.passed and report.reference is not None and not report.reference.passed
        assert [failure.split(" differs")[0] for failure in report.failures[:2]] == [
            "golden: gate_logits",
            "reference: gate_confidence",
        ]
        assert [test.kind for test in report.flips if str(test) in report.failures] == ["rejection", "gate"]
        images = reference_arrays(tiny)["images"]
        crossed = (gate.confidence(images) >= middle) != (other.confidence(images) >= middle)
        assert report.reference.gate_flips == crossed.sum() > 0
        assert report.reference.class_flips == 0  # of the vote

    def test_flips_are_of_decisions(self) -> None:
        votes = np.array([[9, 1], [5, 5], [9, 1]])
        before = Outputs(votes, gate=GateOutputs(np.array([0.9, 0.9, 0.1]), np.array([0, 1, 0])))
        after = Outputs(votes, gate=GateOutputs(np.array([0.9, 0.1, 0.1]), np.array([1, 1, 1])))
        found = compare(before, after, min_votes=7, min_confidence=0.5)
        assert found.gate_flips == 2  # image 0 has another class, image 1 is no longer let through
        assert found.rejection_flips == 1  # which the vote rejects
        assert found.class_flips == 0 and found.passed
        assert compare(before, after, min_votes=7).gate_flips is None
        assert compare(before, Outputs(votes), min_votes=7, min_confidence=0.5).gate_flips is None

    @pytest.mark.parametrize(
        ("file", "name", "value", "message"),
        [
            ("golden.npz", "gate_logits", None, "'gate_logits' is missing"),
            ("golden.npz", "gate_logits", np.full((4, 5), np.nan, np.float32), "'gate_logits' holds NaN"),
            ("reference.npz", "gate_confidence", None, "'gate_confidence' is missing"),
            ("reference.npz", "gate_confidence", np.full(60, np.inf), "'gate_confidence' holds NaN or infinity"),
            ("reference.npz", "mean_choices", np.zeros(59, np.int64), "'mean_choices' is"),
            ("reference.npz", "mean_choices", np.full(60, 5), "'mean_choices' leave the range 0 to 4"),
        ],
    )
    def test_arrays(
        self, tiny: TinyModel, gate: Gate, tmp_path: Path, file: str, name: str, value: Any, message: str
    ) -> None:
        whole = write_cascade(tmp_path / "whole", tiny, gate).path
        arrays = {**np.load(whole / file), name: value}
        files = {file: npz({key: array for key, array in arrays.items() if array is not None})}
        bundle = write_cascade(tmp_path / "b", tiny, gate, files=files)
        with pytest.raises(BundleError, match=message):
            (read_golden if file == "golden.npz" else read_reference)(bundle)

    def test_without_gate_the_arrays_are_not_asked_for(self, tiny: TinyModel, tmp_path: Path) -> None:
        files = {"golden.npz": npz(golden_arrays(tiny)), "reference.npz": npz(reference_arrays(tiny))}
        bundle = write_tiny(tmp_path / "b", tiny, files=files)
        reference = read_reference(bundle)
        assert read_golden(bundle).gate_logits is None and reference is not None and reference.gate is None
