"""Graphs beside encoder and head have to say the same as these, or the bundle does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from flss_runtime.bundle import Bundle, store_calibration
from flss_runtime.comparison import relative
from flss_runtime.contract import check_fused, check_logit
from flss_runtime.engines import open_engine
from flss_runtime.equivalence import verify_bundle
from flss_runtime.errors import BundleError
from flss_runtime.flips import Verdict
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise

from .bundles import (
    NOISE_SCALE,
    entry,
    further,
    golden_arrays,
    logits_of,
    npz,
    random_images,
    reference_arrays,
    write_tiny,
)
from .cascades import Gate, cascade_entry, cascade_manifest, write_cascade
from .conftest import TinyModel, save_fused, save_logit

WIDE = 0.05  # a budget that 60 images without a changed decision can show
BOTH = "fused", "logit"


def written(folder: Path, model: TinyModel, *roles: str, **graphs: Path) -> Bundle:
    """The tiny bundle with further graphs and reference images; `graphs` replaces the model's own."""
    listed = further(model, *roles)
    files = {"reference.npz": npz(reference_arrays(model)), **listed["files"]}
    files.update({f"{role}.onnx": path for role, path in graphs.items()})
    policy = {"calibrations": [entry()]}
    return write_tiny(folder / "tiny.bundle", model, manifest=listed["manifest"], files=files, policy=policy)


def parts(model: TinyModel, **changed: npt.NDArray[np.float32]) -> tuple[Any, ...]:
    names = ("mean_weight", "std_weight", "head_weight", "head_bias")
    return model.spec, *(changed.get(name, getattr(model, name)) for name in names)


def save_right_on_golden(path: Path, model: TinyModel) -> None:
    """A logit graph that turns the mean logits round for every image but the golden ones."""
    save_logit(path, *parts(model))
    graph = onnx.load(path)
    (last,) = (node for node in graph.graph.node if "mean_logits" in node.output)
    last.output[0] = "right"
    golden = to_nchw(golden_arrays(model)["images"]).reshape(4, -1).astype(np.float64)
    means = golden.sum(axis=1).astype(np.float32)
    constants = {"means": means[None], "near": np.float32(1e-2), "all_but_batch": np.array([1, 2, 3], np.int64)}
    constants["one"] = np.array([1], np.int64)
    graph.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    graph.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["images", "all_but_batch"], ["summed"], keepdims=0),
            helper.make_node("Unsqueeze", ["summed", "one"], ["sums"]),
            helper.make_node("Sub", ["sums", "means"], ["apart"]),
            helper.make_node("Abs", ["apart"], ["distances"]),
            helper.make_node("ReduceMin", ["distances"], ["distance"], axes=[1], keepdims=1),
            helper.make_node("Less", ["distance", "near"], ["is_golden"]),
            helper.make_node("Neg", ["right"], ["wrong"]),
            helper.make_node("Where", ["is_golden", "right", "wrong"], ["mean_logits"]),
        ]
    )
    onnx.save(graph, path)


@pytest.fixture
def shifted(tiny: TinyModel) -> npt.NDArray[np.float32]:
    """Another bias: class 1 gains."""
    return tiny.head_bias + np.array([0, 0.5, 0, 0, 0], np.float32)


class TestTinyGraphs:
    def test_fused(self, tiny: TinyModel) -> None:
        images, noise = random_images(tiny, 3), SeededNoise(0).take(3, 9, tiny.latent_dim)
        with open_engine(tiny.fused, threads=1) as fused:
            check_fused(fused, tiny.latent_dim, tiny.num_classes)
            scale = np.array([NOISE_SCALE], np.float32)
            found = fused.run({"images": to_nchw(images), "noise": noise, "noise_scale": scale})
        expected = logits_of(tiny, images, noise)
        np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
        np.testing.assert_array_equal(found["choices"], expected.argmax(axis=2))
        still = logits_of(tiny, images, np.zeros((1, 1, tiny.latent_dim), np.float32))[:, 0]
        np.testing.assert_allclose(found["mean_logits"], still, atol=1e-4)

    def test_logit(self, tiny: TinyModel) -> None:
        images = random_images(tiny, 3)
        with open_engine(tiny.logit, threads=1) as logit:
            check_logit(logit, tiny.num_classes)
            found = logit.run({"images": to_nchw(images)})
        mean, std = tiny.encode(to_nchw(images))
        np.testing.assert_allclose(found["mean_logits"], mean @ tiny.head_weight + tiny.head_bias, atol=1e-4)
        for covariance, each in zip(found["covariance"], std.astype(np.float64), strict=True):
            expected = tiny.head_weight.T @ np.diag(each**2) @ tiny.head_weight
            np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-5)

    def test_a_graph_of_other_types_is_refused(self, tiny: TinyModel, tmp_path: Path) -> None:
        graph = onnx.load(tiny.fused)
        (vote,) = (node for node in graph.graph.node if "choices" in node.output)
        vote.output[0] = "wide"
        graph.graph.node.append(helper.make_node("Cast", ["wide"], ["choices"], to=onnx.TensorProto.INT32))
        (output,) = (each for each in graph.graph.output if each.name == "choices")
        output.type.tensor_type.elem_type = onnx.TensorProto.INT32
        onnx.save(graph, tmp_path / "narrow.onnx")
        with open_engine(tmp_path / "narrow.onnx", threads=1) as fused:
            with pytest.raises(BundleError, match="the fused graph gives choices in int32; expected int64"):
                check_fused(fused, tiny.latent_dim, tiny.num_classes)

    def test_other_graphs_are_refused(self, tiny: TinyModel, make_model: Any) -> None:
        with open_engine(tiny.encoder, threads=1) as encoder:
            with pytest.raises(BundleError, match="the fused graph maps"):
                check_fused(encoder, tiny.latent_dim, tiny.num_classes)
            with pytest.raises(BundleError, match="the logit graph maps"):
                check_logit(encoder, tiny.num_classes)
        with open_engine(tiny.fused, threads=1) as fused, open_engine(tiny.logit, threads=1) as logit:
            with pytest.raises(BundleError, match="latent dimensions: 16 and 8"):
                check_fused(fused, 8, tiny.num_classes)
            with pytest.raises(BundleError, match="classes: 5 and 6"):
                check_fused(fused, tiny.latent_dim, 6)
            with pytest.raises(BundleError, match="classes: 5 and 6"):
                check_logit(logit, 6)


def test_covariances_are_compared_in_units_of_their_own_size() -> None:
    small = np.array([[[2e-8, 1e-8], [1e-8, 4e-8]], [[2.0, 1.0], [1.0, 4.0]]])
    expected, found = relative(small, small * 1.01)
    np.testing.assert_allclose(expected[0], expected[1])
    np.testing.assert_allclose(found - expected, 0.01 * expected)
    assert np.trace(expected[0]) == pytest.approx(2)
    assert not np.isnan(relative(np.zeros((1, 2, 2)), np.ones((1, 2, 2)))[1]).any()


class TestVerification:
    def test_all_of_them_pass(self, tiny: TinyModel, tmp_path: Path) -> None:
        report = verify_bundle(written(tmp_path, tiny, *BOTH), budget=WIDE, threads=1)
        assert report.passed, (report.failures, report.doubts)
        assert report.facts["precision"] == dict.fromkeys(("encoder", "head", *BOTH), "fp32")
        assert report.facts["graphs"] == dict.fromkeys(("encoder", "head", *BOTH), "fp32")
        assert report.fused_golden is not None and report.fused is not None and report.logit is not None
        assert report.fused.images == 60 and report.fused.name == "fused"
        assert report.fused_golden.tensor_differences.keys() == {"logits", "mean_logits"}
        assert report.logit.tensor_differences.keys() == {"mean_logits", "covariance"}
        kinds = [test.kind for test in report.flips]
        assert kinds == ["class", "rejection", "fused class", "fused rejection", "logit class"]
        found = report.to_json()
        assert found["fused"]["images"] == 60 and found["logit"]["passed"] and found["fused_golden"]["passed"]

    def test_a_bundle_without_them_says_nothing_of_them(self, tiny: TinyModel, tmp_path: Path) -> None:
        report = verify_bundle(written(tmp_path, tiny), budget=WIDE, threads=1)
        assert report.passed and (report.fused_golden, report.fused, report.logit) == (None, None, None)
        assert set(report.facts["precision"]) == {"encoder", "head"}

    def test_another_fused_graph_fails(self, tiny: TinyModel, shifted: Any, tmp_path: Path) -> None:
        save_fused(tmp_path / "other.onnx", *parts(tiny, head_bias=shifted))
        report = verify_bundle(written(tmp_path, tiny, *BOTH, fused=tmp_path / "other.onnx"), budget=WIDE, threads=1)
        assert not report.passed and report.golden.passed and report.reference is not None and report.reference.passed
        text = "; ".join(report.failures)
        assert "fused golden: logits differs by 0.5" in text and "fused golden: mean_logits differs by 0.5" in text
        assert "fused: a vote count changed" in text and "fused class flips" in text

    @pytest.mark.parametrize("name", ["std_weight", "head_weight", "head_bias"])
    def test_another_logit_graph_fails(self, tiny: TinyModel, tmp_path: Path, name: str) -> None:
        save_logit(tmp_path / "other.onnx", *parts(tiny, **{name: getattr(tiny, name) * np.float32(1.01)}))
        report = verify_bundle(written(tmp_path, tiny, *BOTH, logit=tmp_path / "other.onnx"), budget=WIDE, threads=1)
        tensor = "mean_logits" if name == "head_bias" else "covariance"
        assert any(failure.startswith(f"logit: {tensor} differs by") for failure in report.failures)
        assert report.fused is not None and report.fused.passed

    @pytest.mark.parametrize("own", [False, True])
    def test_a_logit_graph_is_judged_by_what_it_decides(self, tiny: TinyModel, tmp_path: Path, own: bool) -> None:
        """Right on the golden images, another network on all others: no number of the golden images shows that."""
        save_right_on_golden(tmp_path / "other.onnx", tiny)
        images = random_images(tiny, 70, seed=4) if own else None
        engine = "openvino" if own else "ort"
        pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine))
        bundle = written(tmp_path, tiny, "logit", logit=tmp_path / "other.onnx")
        report = verify_bundle(bundle, engine, images=images, budget=WIDE, threads=1)
        assert report.golden.passed and report.logit is not None and report.logit.passed
        assert report.logit_votes is not None and report.logit_votes.images == (70 if own else 60)
        text = "; ".join(report.failures)
        assert report.verdict is Verdict.FAILED and "logit class flips" in text
        assert report.to_json()["logit_votes"]["class_flips"] == report.logit_votes.class_flips > 30

    def test_another_covariance_changes_votes(self, tiny: TinyModel, tmp_path: Path) -> None:
        wide = tiny.std_weight * np.float32(1.2)
        save_logit(tmp_path / "other.onnx", *parts(tiny, std_weight=wide))
        report = verify_bundle(written(tmp_path, tiny, "logit", logit=tmp_path / "other.onnx"), budget=WIDE, threads=1)
        assert report.logit_votes is not None and report.logit_votes.largest_vote_change > 1

    def test_rejections_under_its_own_threshold(self, tiny: TinyModel, tmp_path: Path) -> None:
        bundle = written(tmp_path, tiny, "logit")
        report = verify_bundle(bundle, budget=WIDE, threads=1)
        assert report.logit_min_votes is None and report.logit_votes is not None
        assert report.logit_votes.rejection_flips is None
        (note,) = report.notes
        assert note.startswith("not calibrated for logit or deterministic sampling with N = 40")
        for mode, min_votes in (("logit", 18), ("deterministic", 19)):  # whose points are those that are compared
            bundle = store_calibration(bundle, entry(mode=mode, min_votes=min_votes))
            report = verify_bundle(bundle, budget=WIDE, threads=1)
            assert report.passed and report.to_json()["logit_min_votes"] == min_votes and report.notes == ()
            assert [test.kind for test in report.flips][-2:] == ["logit class", "logit rejection"]

    def test_a_bundle_calibrated_for_deterministic_sampling_alone(self, tiny: TinyModel, tmp_path: Path) -> None:
        listed = further(tiny, "logit")
        files = {"reference.npz": npz(reference_arrays(tiny)), **listed["files"]}
        policy = {"calibrations": [entry(mode="deterministic")]}
        bundle = write_tiny(tmp_path / "d", tiny, manifest=listed["manifest"], files=files, policy=policy)
        report = verify_bundle(bundle, budget=WIDE, threads=1)
        assert report.passed and [note.split(":")[0] for note in report.notes] == [
            "not calibrated for latent sampling with N = 40"
        ]
        assert [test.kind for test in report.flips] == ["class", "logit class", "logit rejection"]

    def test_only_what_runs_here_is_verified(self, tiny: TinyModel, tmp_path: Path) -> None:
        bundle = written(tmp_path, tiny, "logit")
        report = verify_bundle(bundle, budget=WIDE, threads=1)
        assert report.fused is None and report.logit is not None and report.passed

    def test_own_images_are_judged_through_it(self, tiny: TinyModel, tmp_path: Path) -> None:
        pytest.importorskip("openvino")
        images = random_images(tiny, 70, seed=4)
        report = verify_bundle(written(tmp_path, tiny, *BOTH), "openvino", images=images, budget=WIDE, threads=1)
        assert report.passed, (report.failures, report.doubts)
        assert report.data is not None and report.fused is not None and report.fused.images == 70
        assert report.facts["precision"]["fused"] == report.facts["precision"]["logit"] == "fp32"

    def test_votes_of_no_class_are_refused(self, tiny: TinyModel, make_model: Any, tmp_path: Path) -> None:
        many = make_model(num_classes=6)
        bundle = written(tmp_path, tiny, *BOTH, fused=many.fused)
        with pytest.raises(BundleError, match="classes: 6 and 5"):
            verify_bundle(bundle, budget=WIDE, threads=1)

    def test_a_cascade(self, tiny: TinyModel, gate: Gate, middle: float, tmp_path: Path) -> None:
        listed, fields = further(tiny, "fused"), cascade_manifest(tiny)
        manifest = {key: {**listed["manifest"][key], **fields[key]} for key in ("graphs", "precision")}
        policy = {"calibrations": [cascade_entry(middle)]}
        bundle = write_cascade(tmp_path / "c", tiny, gate, manifest=manifest, files=listed["files"], policy=policy)
        report = verify_bundle(bundle, budget=WIDE, threads=1)
        assert report.passed, (report.failures, report.doubts)
        assert "fused gate" in [test.kind for test in report.flips]


def test_a_graph_that_is_not_there_says_how_to_get_it(tiny: TinyModel, tmp_path: Path) -> None:
    bundle = written(tmp_path, tiny)
    for role, option in (("fused", "--fused"), ("logit", "--sampling logit"), ("gate", "--gate GATE")):
        with pytest.raises(BundleError, match=f"has no '{role}' graph") as caught:
            bundle.graph(role)
        assert caught.value.fix == f"export it too: flss-edge export CHECKPOINT {option}"
    (tmp_path / "more").mkdir()
    assert written(tmp_path / "more", tiny, *BOTH).graph("logit").name == "logit.onnx"
