"""The gate: changed decisions of real graphs in reduced precision, counted beside NumPy's own count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_runtime.attacked import Attack, AttackedImages
from flss_runtime.bundle import store_calibration
from flss_runtime.decision import SmoothingPolicy, decide
from flss_runtime.equivalence import JUDGE, verify_bundle
from flss_runtime.errors import CheckFailed, EngineUnavailable, UsageError
from flss_runtime.flips import Verdict
from flss_runtime.images import to_nchw
from flss_runtime.noise import KeyedNoise
from flss_runtime.opening import open_classifier
from flss_runtime.precision_check import PrecisionCheck, check_precision

from .bundles import NOISE_SCALE, NUM_SAMPLES, entry, npz, random_images, reference_arrays, write_tiny
from .conftest import TinyModel
from .reduced import save_fp16, save_int8, save_unknown, write_reduced

MIN_VOTES = 17


@pytest.fixture(scope="module")
def many(tiny: TinyModel) -> dict[str, Any]:
    """Reference images enough for the default budget."""
    return {"reference.npz": npz(reference_arrays(tiny, 600))}


@pytest.fixture(scope="module")
def int8(tiny: TinyModel, many: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    bundle = write_reduced(folder / "b", tiny, save_int8(folder / "e.onnx", tiny, 7), "int8", files=many)
    return store_calibration(bundle, entry(min_votes=MIN_VOTES)).path


def decisions(bundle: Path, precision: str, images: Any, seed: int, start: int = 0) -> list[Any]:
    policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, MIN_VOTES)
    options: dict[str, Any] = {"policy": policy, "noise": KeyedNoise(seed, start), "threads": 1}
    with open_classifier(bundle, precision=precision, **options) as classifier:
        return decide(classifier.vote(images), policy)


def changed(before: list[Any], after: list[Any]) -> tuple[int, int]:
    pairs = list(zip(before, after, strict=True))
    return sum(a.top_label != b.top_label for a, b in pairs), sum(a.accepted != b.accepted for a, b in pairs)


def test_six_hundred_images_without_a_flip_pass(tiny: TinyModel, many: dict[str, Any], tmp_path: Path) -> None:
    bundle = store_calibration(write_tiny(tmp_path / "b", tiny, files=many), entry(min_votes=MIN_VOTES))
    report = verify_bundle(bundle, threads=1)
    assert report.verdict is Verdict.PASSED and report.passed and report.notes == report.doubts == ()
    assert [(test.kind, test.flips, test.images) for test in report.flips] == [
        ("class", 0, 600),
        ("rejection", 0, 600),
    ]
    assert report.facts["precision"] == {"encoder": "fp32", "head": "fp32"}
    assert report.facts["library"].startswith("onnxruntime ") and report.facts["device"] == "CPUExecutionProvider"


def test_few_images_are_inconclusive(tiny: TinyModel, tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "b", tiny, files={"reference.npz": npz(reference_arrays(tiny))})
    report = verify_bundle(bundle, threads=1)
    assert report.verdict is Verdict.INCONCLUSIVE and not report.passed and report.failures == ()
    assert "takes 598 images" in report.doubts[0]
    assert report.to_json()["verdict"] == "inconclusive" and report.to_json()["passed"] is False
    assert verify_bundle(bundle, threads=1, budget=0.05).passed


def test_reduced_precision_is_judged_by_its_decisions_alone(tiny: TinyModel, int8: Path) -> None:
    report = verify_bundle(int8, precision="int8", threads=1)
    arrays = reference_arrays(tiny, 600)
    after = decisions(int8, "int8", arrays["images"], int(arrays["seed"]))
    before = decisions(int8, "fp32", arrays["images"], int(arrays["seed"]))
    counted = changed(before, after)
    assert min(counted) > 3, "so coarse a graph has to change decisions, or this test shows nothing"
    assert tuple(test.flips for test in report.flips) == counted
    assert report.verdict is Verdict.FAILED and report.golden.failures == ()
    assert report.golden.tensor_differences["mean"] > 1e-3 and report.golden.tensor_limits == {}
    assert all("exceed the budget" in failure for failure in report.failures)
    assert report.facts["precision"] == {"encoder": "int8", "head": "fp32"}

    judged = verify_bundle(int8, precision="int8", threads=1, budget=0.9)
    assert judged.verdict is Verdict.PASSED
    assert verify_bundle(int8, threads=1).passed, "the float32 graphs of the same bundle"


def test_images_of_ones_own_are_judged_against_the_float32_graphs(tiny: TinyModel, int8: Path) -> None:
    images = random_images(tiny, 300, seed=77)
    said: list[str] = []
    options: dict[str, Any] = {"precision": "int8", "threads": 1, "progress": lambda phase, share: said.append(phase)}
    report = verify_bundle(int8, images=images, **options)
    assert report.data is report.judged is not None and report.reference is not None
    expected = changed(decisions(int8, "fp32", images, 0), decisions(int8, "int8", images, 0))
    assert (report.data.class_flips, report.data.rejection_flips) == expected and sum(expected) > 0
    assert [test.images for test in report.flips] == [300, 300]
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["against"] == found["data"]["reference"] == JUDGE
    assert found["reference"]["images"] == 600
    assert {"ort: images", "ort: reference images", "ort: other noise"} == set(said)


def test_other_noise_gives_the_scale(tiny: TinyModel, int8: Path) -> None:
    images = random_images(tiny, 450, seed=77)
    report = verify_bundle(int8, precision="int8", images=images, threads=1)
    index = np.arange(300) * 450 // 300
    before = decisions(int8, "int8", images, 0)
    expected = changed([before[each] for each in index], decisions(int8, "int8", images[index], 1))
    found = report.other_noise
    assert found is not None and found.images == 300 and min(expected) > 0
    assert (found.class_flips, found.rejection_flips) == expected and found.failures == ()
    again = verify_bundle(int8, threads=1)
    assert again.passed and again.other_noise is not None and again.other_noise.class_flips > 0


def test_nothing_is_compared_with_itself(int8: Path, tiny: TinyModel) -> None:
    for engine in ("ort", "ort:cpu"):
        with pytest.raises(UsageError, match="these are what is to be examined"):
            verify_bundle(int8, engine, images=random_images(tiny, 3), threads=1)


def test_a_judge_that_is_wrong_itself_is_refused(tiny: TinyModel, make_model: Any, tmp_path: Path) -> None:
    other = make_model(seed=9)
    graph = save_int8(tmp_path / "e.onnx", tiny)
    bundle = write_reduced(tmp_path / "b", tiny, graph, "int8", files={"encoder.onnx": other.encoder})
    with pytest.raises(CheckFailed, match=r"cannot judge.*golden: mean differs"):
        verify_bundle(bundle, precision="int8", images=random_images(tiny, 5), threads=1)


def test_the_precision_that_really_runs_has_to_be_the_graphs(
    tiny: TinyModel, many: dict[str, Any], tmp_path: Path
) -> None:
    graph = save_fp16(tmp_path / "e.onnx", tiny)
    bundle = write_reduced(tmp_path / "b", tiny, graph, "fp16", files=many)
    with pytest.raises(EngineUnavailable, match="runs the fp16 graph of the encoder in fp32: no gain here") as refused:
        verify_bundle(bundle, precision="fp16", threads=1)
    assert refused.value.exit_code == 6 and "--no-strict" in refused.value.fix
    report = verify_bundle(bundle, precision="fp16", threads=1, strict=False)
    assert "in fp32: no gain here" in report.notes[0] and report.facts["precision"]["encoder"] == "fp32"
    assert report.golden.failures == () and report.golden.tensor_limits == {}
    assert 0 < report.golden.tensor_differences["mean"] < 0.01


def test_a_precision_that_is_not_told_cannot_pass(tiny: TinyModel, many: dict[str, Any], tmp_path: Path) -> None:
    """As with a provider that fuses the whole graph; these graphs decide exactly as they should."""
    files = {**many, "encoder.onnx": save_unknown(tmp_path / "e.onnx", tiny)}
    bundle = write_tiny(tmp_path / "b", tiny, files=files)
    with pytest.raises(EngineUnavailable, match="does not say in which precision it runs the encoder") as refused:
        verify_bundle(bundle, threads=1)
    assert "--no-strict" in refused.value.fix
    report = verify_bundle(bundle, threads=1, strict=False)
    assert report.facts["precision"] == {"encoder": "unknown", "head": "fp32"}
    assert [test.verdict for test in report.flips] == [Verdict.PASSED] and report.failures == ()
    assert report.verdict is Verdict.INCONCLUSIVE and not report.passed
    assert any("does not say in which precision" in doubt for doubt in report.to_json()["doubts"])
    assert report.golden.tensor_limits, "the limits of float32 hold, because that was asked for"


def test_the_head_that_was_opened_is_what_counts() -> None:
    """A bundle may contain head.fp16: a float32 head that computes in less is another precision all the same."""
    facts = {"library": "onnxruntime 1", "device": "CUDA", "precision": {"encoder": "fp16", "head": "fp16"}}
    fp32, fp16 = ({**facts, "graphs": {"encoder": "fp16", "head": head}} for head in ("fp32", "fp16"))
    assert check_precision(fp16, "fp16") == PrecisionCheck()
    for told in (fp32, facts):
        with pytest.raises(EngineUnavailable, match="runs the fp32 graph of the head in fp16"):
            check_precision(told, "fp16")
        assert len(check_precision(told, "fp16", strict=False).notes) == 1


def test_a_precision_that_is_not_there(int8: Path) -> None:
    with pytest.raises(EngineUnavailable, match="not in fp16"):
        verify_bundle(int8, precision="fp16", threads=1)
    with pytest.raises(UsageError, match="rate from 1e-05"):
        verify_bundle(int8, budget=0, threads=1)


class Attacks:
    """Two attacks that are made again each time they are read, as from a file."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Attack]:
        random = np.random.default_rng(8)
        clean = to_nchw(self.images)
        yield Attack("clean", clean)
        yield Attack("jitter", np.clip(clean + random.normal(0, 0.1, clean.shape), 0, 1).astype(np.float32))
        yield Attack("blur-3", np.zeros_like(clean), adversarial=False)


def test_robust_accuracy_of_both(tiny: TinyModel, int8: Path) -> None:
    images = random_images(tiny, 120, seed=5)
    labels = np.array([each.top_label for each in decisions(int8, "fp32", images, 3)])
    labels[:20] = (labels[:20] + 1) % tiny.num_classes
    report = verify_bundle(int8, precision="int8", threads=1, attacked=AttackedImages(labels, Attacks(images), 3))
    found = report.adversarial
    assert found is not None and [attack.name for attack in found.attacks] == ["clean", "jitter", "blur-3"]
    for precision, counts in (("fp32", found.reference), ("int8", found.candidate)):
        right, wrong = np.ones(120, bool), np.zeros(120, bool)
        for number, attack in enumerate(list(Attacks(images))[:2]):
            made = decisions(int8, precision, attack.images, 3, 120 * number)
            top = np.array([each.top_label for each in made])
            right &= top == labels
            wrong |= np.array([each.accepted for each in made]) & (top != labels)
        assert (counts.correct, counts.wrongly_accepted) == (right.sum(), wrong.sum())
    assert found.lost > 0 and found.reference.correct - found.candidate.correct == found.lost - found.gained
    assert found.failures == () and len(report.failures) == 2, "so few lost images may be chance"
    assert report.data is None and report.judged is report.reference
    assert "attacked images were made against torch" in report.notes[-1]


def test_the_judge_has_robust_accuracy_too(tiny: TinyModel, int8: Path) -> None:
    images = random_images(tiny, 30, seed=5)
    attacked = AttackedImages(np.zeros(30, np.int64), Attacks(images))
    report = verify_bundle(int8, threads=1, attacked=attacked)
    assert report.adversarial is not None and report.adversarial.reference == report.adversarial.candidate
    assert "only itself to be compared with" in report.notes[-1] and report.verdict is Verdict.PASSED
