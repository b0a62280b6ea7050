"""The benchmark on real tiny graphs: what it measures, refuses and leaves behind."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flss_runtime import bench_report
from flss_runtime.benchmark import BenchResult, run_benchmark
from flss_runtime.bundle import Bundle, write_bundle
from flss_runtime.errors import BundleError, UsageError
from flss_runtime.image_pool import load_images
from flss_runtime.profiles import Profile

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
SHORT = Profile("quick", 2, 3, 0.02, (2, 0.0), (4, 0.0), 0.02, 0.005, (0.02, 0.1), 10, 10, (1, 3), 0.01, 0.01)


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def save_deterministic(path: Path, model: Any) -> None:
    weights = {"mean_weight": model.mean_weight, "weight": model.head_weight, "bias": model.head_bias}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mean_weight"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["choice"], axis=1, keepdims=0),
    ]
    shape = ["B", 3, model.spec.height, model.spec.width]
    graph = helper.make_graph(
        nodes,
        "deterministic",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["B", model.num_classes]),
            helper.make_tensor_value_info("choice", onnx.TensorProto.INT64, ["B"]),
        ],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def save_bundle(folder: Path, model: Any, *, roles: tuple[str, ...], reference: bool) -> Bundle:
    """Write an uncalibrated bundle of the tiny graphs; only the images in its archives matter here."""
    save_deterministic(folder / "deterministic.onnx", model)
    graphs = {"encoder": model.encoder, "head": model.head, "deterministic": folder / "deterministic.onnx"}
    size, latent, classes = model.spec.height, model.latent_dim, model.num_classes
    images = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    shared = {"noise_scale": np.float64(2), "images": images[:2]}
    files: dict[str, bytes | Path] = {f"{role}.onnx": graphs[role] for role in roles}
    files["golden.npz"] = archive(
        **shared,
        noise=np.zeros((2, 4, latent), np.float32),
        mean=np.zeros((2, latent), np.float32),
        std=np.ones((2, latent), np.float32),
        logits=np.zeros((2, 4, classes), np.float32),
        choices=np.zeros((2, 4), np.int64),
    )
    if reference:
        votes = np.zeros((6, classes), np.int64)
        votes[:, 0] = 4
        tail = {"seed": np.int64(0), "num_samples": np.int64(4), "votes": votes, "real": np.array(True)}
        files["reference.npz"] = archive(**{**shared, "images": images}, **tail)
    manifest = {
        "name": "tiny",
        "input": model.spec.to_json(),
        "class_names": [f"class {index}" for index in range(classes)],
        "latent_dim": latent,
        "num_classes": classes,
        "opset": 17,
        "graphs": {role: f"{role}.onnx" for role in roles},
        "precision": dict.fromkeys(roles, "fp32"),
        "checkpoint": {"sha256": "0" * 64, "origin": "flss-edge"},
        "data": {},
        "tools": {},
    }
    return write_bundle(folder / "tiny.bundle", manifest, {"num_samples": 4, "noise_scale": 2.0}, files)


@pytest.fixture(scope="module")
def bundle(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    roles = ("encoder", "head", "deterministic")
    return save_bundle(tmp_path_factory.mktemp("bench"), tiny, roles=roles, reference=True)


@pytest.fixture(scope="module")
def said() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def result(bundle: Bundle, said: list[tuple[str, float]]) -> BenchResult:
    return run_benchmark(
        bundle, arms=("n1", "n100"), threads=1, profile=SHORT, progress=lambda *call: said.append(call)
    )


def test_an_uncalibrated_bundle_is_measured_in_every_arm(result: BenchResult) -> None:
    arms = result.results["arms"]
    assert [arm["name"] for arm in arms] == ["deterministic", "n1", "n100"]
    for arm in arms:
        assert np.shape(arm["block_medians_ms"]) == (SHORT.processes, SHORT.blocks)
        assert arm["n"] == result.times_ms[arm["name"]].size >= 3 * SHORT.processes
        assert 0 < arm["latency_ms"]["p50"] <= arm["max_ms"]
        assert len(arm["settling"]) == 6 and min(arm["settling"]) > 0
        assert arm["interleaved_over_alone"] > 0
    assert arms[2]["latency_ms"]["p50"] > arms[0]["latency_ms"]["p50"]  # a linear encoder: sampling dominates


def test_overhead_is_the_ratio_of_block_medians(result: BenchResult) -> None:
    arms = {arm["name"]: np.array(arm["block_medians_ms"]) for arm in result.results["arms"]}
    row = result.overhead("n100")
    assert row["ratio"] == pytest.approx(float(np.median(arms["n100"] / arms["deterministic"])))
    assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
    assert row["half_width"] == pytest.approx((row["interval"][1] - row["interval"][0]) / 2)
    with pytest.raises(UsageError, match="the arm n7"):
        result.overhead("n7")


def test_throughput_is_of_whole_batches(result: BenchResult) -> None:
    rows = result.results["throughput"]
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert row["error"] is None and set(row["images_per_s"]) == {"deterministic", "n100"}
        assert row["overhead"]["ratio"] > 1 and row["overhead"]["processes"] == SHORT.processes
    # Three images in one call of this tiny network take hardly longer than one.
    assert rows[1]["images_per_s"]["deterministic"] > rows[0]["images_per_s"]["deterministic"]


def test_a_control_and_a_camera_frame(bundle: Bundle) -> None:
    once = replace(SHORT, processes=1, batches=())
    names = ("n3", "control")
    result = run_benchmark(bundle, arms=names, num_samples=3, threads=1, profile=once, camera=(64, 48))
    assert [row["arm"] for row in result.results["overhead"]] == list(names)
    assert result.config["primary"] == "n3" and "64x48" in result.config["boundary"]
    stages = result.results["stages_ms"]
    assert "control" not in stages and min(stages[name]["resize"] for name in ("deterministic", "n3")) > 0.005
    plain = run_benchmark(bundle, arms=("n3",), threads=1, profile=once)
    assert "resize" not in plain.results["stages_ms"]["n3"]
    assert result.results["arms"][0]["latency_ms"]["p50"] > plain.results["arms"][0]["latency_ms"]["p50"]


def test_stages_start_and_memory_are_reported(result: BenchResult) -> None:
    stages = result.results["stages_ms"]["n100"]
    assert set(stages) == {"preprocess", "encoder", "noise", "head", "decide", "between", "total"}
    assert all(value >= 0 for value in stages.values())
    start = result.results["start"]
    parts = start["load_bundle_ms"] + start["open_engines_ms"] + start["first_decision_ms"]
    assert parts == pytest.approx(start["load_to_first_decision_ms"], rel=0.5)
    assert start["process_start_to_first_decision_ms"] > start["load_to_first_decision_ms"]
    assert 0 < start["interpreter_and_imports_ms"] < start["process_start_to_first_decision_ms"]
    assert {row["arm"] for row in result.results["warm_up"]} == {"deterministic", "n1", "n100"}
    if sys.platform == "linux":
        resident = result.results["rss_mib"]["smoothed"]
        assert result.results["peak_rss_mib"]["smoothed"] + 1 >= resident > 10  # the high-water mark lags behind


def test_result_is_strict_json_without_paths_and_holds_times_on_request(result: BenchResult, bundle: Bundle) -> None:
    text = json.dumps(result.to_json(), allow_nan=False)
    assert str(bundle.path.parent) not in text
    assert "times_ms" not in result.to_json()
    assert set(result.to_json(include_times=True)["times_ms"]) == {"deterministic", "n1", "n100"}
    assert {"schema_version", "environment", "artifact", "config", "results", "validity"} <= set(result.to_json())
    assert result.artifact["bundle_sha256"] == bundle.digest
    assert result.config["images"] == {"source": "reference.npz", "real": True, "count": 6}


def test_quick_is_flagged_and_p999_of_few_frames_is_insufficient(result: BenchResult) -> None:
    assert not result.valid
    assert "quick_profile" in {flag["name"] for flag in result.flags}
    for arm in result.results["arms"]:
        if arm["n"] < 6636:
            assert arm["latency_ms"]["p99.9"] is None and "p99.9" in arm["insufficient"]


def test_progress_rises_to_one(result: BenchResult, said: list[tuple[str, float]]) -> None:
    shares = [share for _, share in said]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_rows_and_verdict(result: BenchResult) -> None:
    document = json.loads(json.dumps(result.to_json()))
    table = bench_report.rows(document)
    assert [row["arm"] for row in table] == ["deterministic", "n1", "n100"]
    assert table[0]["overhead_percent"] is None
    assert table[2]["overhead_percent"] == result.overhead("n100")["percent"]
    assert bench_report.verdict(document).startswith("BENCH INVALID: n100 costs +")
    document["validity"]["flags"] = []
    assert bench_report.verdict(document).startswith("BENCH VALID: n100 costs +")
    lines = bench_report.notes(document)
    assert any("batch 3, images/s: deterministic" in line for line in lines)
    assert any(line.startswith("stages of n100") for line in lines)


def test_a_benchmark_leaves_no_folder_behind(
    result: BenchResult, bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_benchmark(bundle, arms=["n2"], threads=1, profile=replace(SHORT, processes=1, blocks=1))
    assert list(tmp_path.glob("flss-bench-*")) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"profile": "slow"}, "no profile 'slow'"),
        ({"arms": ()}, "no classifier to compare"),
        ({"arms": ("control",)}, "no classifier to compare"),
        ({"arms": ("n0", "n100")}, "no arm 'n0'"),
        ({"arms": ("n100-wide",)}, "no arm 'n100-wide'"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"engine": "tensorflow"}, "no engine 'tensorflow'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_arguments_are_refused(bundle: Bundle, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        run_benchmark(bundle, **{"profile": SHORT, "arms": ("n1",), **arguments})


def test_a_bundle_without_baseline_is_refused(tiny: Any, tmp_path: Path) -> None:
    without = save_bundle(tmp_path, tiny, roles=("encoder", "head"), reference=False)
    with pytest.raises(BundleError, match="deterministic"):
        run_benchmark(without, profile=SHORT)
    assert load_images(without).real is None


def test_a_bundle_altered_meanwhile_is_refused_by_the_process_that_loads_it(tiny: Any, tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path, tiny, roles=("encoder", "head", "deterministic"), reference=False)
    with (bundle.path / "head.onnx").open("r+b") as graph:
        graph.write(b"altered")
    with pytest.raises(BundleError, match=r"head\.onnx"):
        run_benchmark(bundle, profile=SHORT)
