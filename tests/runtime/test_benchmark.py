"""The benchmark on real tiny graphs: what it measures, refuses and leaves behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flss_runtime import bench_report
from flss_runtime.arms import StageClock, load_images
from flss_runtime.bench_worker import PROFILES, Profile, is_stable, palindrome
from flss_runtime.benchmark import BenchResult, block_medians, run_benchmark
from flss_runtime.bundle import Bundle, write_bundle
from flss_runtime.errors import BundleError, InferenceError, UsageError

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
SHORT = Profile("quick", 2, 3, 0.005, 3, 0.005, (0.02, 0.1), 10, 0.02, 10)


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
        bundle, num_samples=(1, 100), threads=1, profile=SHORT, progress=lambda *call: said.append(call)
    )


def test_an_uncalibrated_bundle_is_measured_in_every_arm(result: BenchResult) -> None:
    arms = result.results["arms"]
    assert [arm["name"] for arm in arms] == ["deterministic", "n1", "n100"]
    for arm in arms:
        assert np.shape(arm["block_medians_ms"]) == (SHORT.processes, SHORT.blocks)
        assert arm["n"] == result.times_ms[arm["name"]].size >= 2 * SHORT.blocks * SHORT.processes * SHORT.visit_frames
        assert 0 < arm["latency_ms"]["p50"] <= arm["max_ms"]
    assert arms[0]["alone"]["n"] > 0
    assert arms[2]["latency_ms"]["p50"] > arms[0]["latency_ms"]["p50"]  # a linear encoder: sampling dominates


def test_overhead_is_the_ratio_of_block_medians(result: BenchResult) -> None:
    arms = {arm["name"]: np.array(arm["block_medians_ms"]) for arm in result.results["arms"]}
    row = result.overhead(100)
    assert row["ratio"] == pytest.approx(float(np.median(arms["n100"] / arms["deterministic"])))
    assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
    assert row["half_width"] == pytest.approx((row["interval"][1] - row["interval"][0]) / 2)
    with pytest.raises(UsageError, match="N = 7"):
        result.overhead(7)


def test_stages_start_and_memory_are_reported(result: BenchResult) -> None:
    stages = result.results["stages_ms"]["n100"]
    assert set(stages) == {"preprocess", "encoder", "noise", "head", "decide", "between", "total"}
    assert all(value >= 0 for value in stages.values())
    start = result.results["start"]
    parts = start["load_bundle_ms"] + start["open_engines_ms"] + start["first_decision_ms"]
    assert parts == pytest.approx(start["load_to_first_decision_ms"], rel=0.5)
    assert start["process_start_to_first_decision_ms"] > start["load_to_first_decision_ms"]
    assert {row["arm"] for row in result.results["warm_up"]} == {"deterministic", "n1", "n100"}
    if sys.platform == "linux":
        assert result.results["peak_rss_mib"]["smoothed"] > 10


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
    assert table[2]["overhead_percent"] == result.overhead(100)["percent"]
    assert bench_report.verdict(document).startswith("BENCH INVALID: n100 costs +")
    document["validity"]["flags"] = []
    assert bench_report.verdict(document).startswith("BENCH VALID: n100 costs +")


def test_a_benchmark_leaves_no_folder_behind(
    result: BenchResult, bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_benchmark(bundle, num_samples=[2], threads=1, profile=replace(SHORT, processes=1, blocks=1))
    assert list(tmp_path.glob("flss-bench-*")) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"profile": "slow"}, "no profile 'slow'"),
        ({"num_samples": ()}, r"numbers of samples are \[\]"),
        ({"num_samples": (0, 100)}, r"numbers of samples are \[0, 100\]"),
        ({"engine": "tensorflow"}, "no engine 'tensorflow'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_arguments_are_refused(bundle: Bundle, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        run_benchmark(bundle, **{"profile": SHORT, **arguments})


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


SCRIPT = """
import os, sys
from pathlib import Path
from flss_runtime.benchmark import run_benchmark
run_benchmark(Path(sys.argv[1]), profile="standard", progress=lambda *said: print(*said, flush=True))
"""


def heed_sigint() -> None:
    """A shell's background jobs inherit an ignored SIGINT, and the commands respect that; these tests send one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_long_benchmark(bundle: Bundle, scratch: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME), "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", SCRIPT, str(bundle.path)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint, env=environment
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("warm-up"):
            return child
    raise AssertionError(child.communicate()[1])


def workers(scratch: Path) -> list[int]:
    """Process numbers of the benchmark processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:  # ended in between
            continue
        if b"bench_worker" in words and str(scratch).encode() in words:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_benchmark_ends_its_process_and_removes_its_folder(bundle: Bundle, tmp_path: Path) -> None:
    child = start_long_benchmark(bundle, tmp_path)
    assert len(workers(tmp_path)) == 1
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert workers(tmp_path) == [] and list(tmp_path.glob("flss-bench-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_whose_benchmark_was_killed_ends_by_itself(bundle: Bundle, tmp_path: Path) -> None:
    child = start_long_benchmark(bundle, tmp_path)
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 20
    while workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_is_an_inference_error(bundle: Bundle, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def kill(phase: str, share: float) -> None:
        for number in workers(tmp_path):
            os.kill(number, signal.SIGKILL)

    with pytest.raises(InferenceError, match="ended with status -9"):
        run_benchmark(bundle, profile="standard", progress=kill)
    assert list(tmp_path.glob("flss-bench-*")) == []


def test_blocks_are_palindromes_that_give_every_arm_every_place() -> None:
    names = ["D", "1", "100"]
    assert palindrome(names, 0) == ["D", "1", "100", "100", "1", "D"]
    blocks = [palindrome(names, block) for block in range(3)]
    assert all(block == block[::-1] for block in blocks)
    assert all({block[place] for block in blocks} == set(names) for place in range(6))


def test_block_medians_cancel_a_linear_drift() -> None:
    visits = palindrome(["D", "1", "100"], 0)
    frames = [
        (["D", "1", "100"].index(name), place // 3, 10_000_000 + 1_000_000 * place) for place, name in enumerate(visits)
    ]
    arm, visit, latency = (np.array(column) for column in zip(*frames, strict=True))
    times = {"arm": arm, "visit": visit, "latency_ns": latency, "block": np.zeros(6, np.int64)}
    assert block_medians(times, 0) == block_medians(times, 1) == block_medians(times, 2) == [12.5]


def test_warm_up_is_over_when_three_windows_agree() -> None:
    assert not is_stable([1.0, 1.0])
    assert is_stable([9.0, 1.0, 1.09, 1.05])
    assert not is_stable([1.0, 1.0, 1.2])


def test_standard_profile_keeps_the_rules() -> None:
    standard = PROFILES["standard"]
    assert standard.processes >= 3 and standard.processes * standard.blocks >= 30 and standard.visit_s >= 1


def test_stage_clock_accounts_for_the_whole_frame() -> None:
    clock = StageClock()

    def frame() -> None:
        for stage in ("encoder", "head"):
            time.sleep(0.001)
            clock.timed(stage, lambda: time.sleep(0.002))

    stages = clock.frame(frame)
    assert list(stages) == ["preprocess", "encoder", "head", "between", "decide", "total"]
    assert stages["encoder"] >= 2 and stages["preprocess"] >= 1 and stages["between"] >= 1
    assert sum(value for stage, value in stages.items() if stage != "total") == pytest.approx(stages["total"])
