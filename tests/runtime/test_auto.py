"""`auto`: measures once, remembers, and explains."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import auto, open_engine
from flss_runtime.engines.auto import choose_engine
from flss_runtime.errors import BundleError, EngineUnavailable, FLSSError
from flss_runtime.opening import open_classifier

from .bundles import NOISE_SCALE, NUM_SAMPLES, write_tiny
from .reduced import save_fp16, save_int8
from .test_conformance import ABSENT

if TYPE_CHECKING:
    from .conftest import TinyModel

both = pytest.mark.skipif("ort" in ABSENT or "openvino" in ABSENT, reason=f"needs ort and openvino; absent: {ABSENT}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    monkeypatch.setattr(auto, "_VISIT_SECONDS", 0.005)
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "flss_runtime")
    return tmp_path / "cache" / "auto"


def measured(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) if cache.exists() else []


def rewrite(place: Path, times: Any) -> None:
    place.write_text(json.dumps({"ms": times, "precision": dict.fromkeys(times, "fp32")}))


@both
def test_the_fastest_is_taken_and_the_choice_explained(
    tiny: TinyModel, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose_engine(tiny.encoder, threads=1)
    (place,) = measured(cache)
    times = json.loads(place.read_text())["ms"]
    assert set(times) >= {"ort", "openvino"}
    assert chosen == min(times, key=times.get)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"auto: {chosen} ")
    for engine, spent in times.items():
        assert f"{engine} {spent:.3g} ms" in record.getMessage()
    assert record.getMessage().endswith("a run, 1 thread")


@both
@pytest.mark.parametrize("fastest", ["ort", "openvino"])
def test_it_is_remembered(
    tiny: TinyModel, cache: Path, caplog: pytest.LogCaptureFixture, fastest: str, tmp_path: Path
) -> None:
    choose_engine(tiny.encoder, threads=1)
    (place,) = measured(cache)
    rewrite(place, {"ort": 5.0, "openvino": 5.0, fastest: 4.25})
    caplog.clear()
    assert choose_engine(tiny.encoder, threads=1) == fastest
    assert caplog.records[-1].getMessage().endswith("(measured earlier)")
    with open_engine(tiny.encoder, "auto", threads=1) as engine:
        assert engine.name == fastest
    policy = SmoothingPolicy(NUM_SAMPLES, NOISE_SCALE, 0)
    with open_classifier(write_tiny(tmp_path / "a.bundle", tiny), "auto", policy=policy, threads=1) as classifier:
        assert [each.name for each in classifier.sampler.engines.values()] == [
            fastest,
            fastest,
        ]  # the head is not asked
    assert measured(cache) == [place]


@both
def test_another_question_is_measured_anew(tiny: TinyModel, cache: Path) -> None:
    choose_engine(tiny.encoder, threads=1)
    choose_engine(tiny.encoder, threads=2)
    choose_engine(tiny.head, threads=1)
    assert len(measured(cache)) == 3


@both
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"ms": {}}', '{"ms": 3}', '{"ms": {"ort": "fast"}}', '{"ms": {"ort": -1}}',
     '{"ms": {"nonsense": 1.0}}', '{"ms": {"ort": NaN}}', "\x00\xff"],
)  # fmt: skip
def test_what_makes_no_sense_is_measured_anew(
    tiny: TinyModel, cache: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    choose_engine(tiny.encoder, threads=1)
    (place,) = measured(cache)
    place.write_bytes(content.encode("latin-1"))
    caplog.clear()
    assert choose_engine(tiny.encoder, threads=1) in ("ort", "openvino")
    assert "measured earlier" not in caplog.text
    assert set(json.loads(place.read_text())["ms"]) >= {"ort", "openvino"}


@both
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert choose_engine(tiny.encoder, threads=1) in ("ort", "openvino")


@pytest.mark.parametrize(("absent", "left"), [("openvino", "ort"), ("onnxruntime", "openvino")])
def test_the_only_one_is_taken_unmeasured(
    tiny: TinyModel, cache: Path, absent: str, left: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if left in ABSENT:
        pytest.skip(f"{left} is absent: {ABSENT[left]}")
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setattr(auto, "_CANDIDATES", ("ort", "openvino"))  # whatever GPU there is
    assert choose_engine(tiny.encoder) == left
    assert caplog.records[-1].getMessage() == f"auto: {left} is the only engine here"
    assert measured(cache) == []


def test_nothing_at_all_is_an_error(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(EngineUnavailable, match="no inference engine") as caught:
        choose_engine(tiny.encoder)
    assert "flss-edge[cpu]" in caught.value.fix


def distances(path: Path, domain: str) -> Path:
    """A graph of one operator that is none of ONNX's own."""
    node = helper.make_node("CDist", ["a", "b"], ["distance"], domain=domain, metric="euclidean")
    shapes = {"a": [2, 3], "b": [4, 3], "distance": [2, 4]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "distances", values[:2], values[2:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def fails_in_a_run(path: Path) -> Path:
    """A free dimension that has to be 3, so that the 1 it is measured at does not do."""
    node = helper.make_node("MatMul", ["rows", "weight"], ["product"])
    rows, product = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("rows", [2, "K"]), ("product", [2, 2]))
    )
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [3, 2], [1.0] * 6)
    graph = helper.make_graph([node], "product", [rows], [product], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@both
def test_a_candidate_that_cannot_load_the_graph_is_left_out(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = distances(tmp_path / "distances.onnx", "com.microsoft")  # which OpenVINO does not know
    with pytest.raises(FLSSError):
        open_engine(graph, "openvino")
    assert choose_engine(graph, threads=1) == "ort"
    assert "auto: without openvino: " in caplog.text
    (place,) = measured(cache)
    assert "openvino" not in json.loads(place.read_text())["ms"]


@both
def test_a_graph_that_no_candidate_runs_is_an_error_that_says_why(cache: Path, tmp_path: Path) -> None:
    graph = distances(tmp_path / "distances.onnx", "nobody.knows")
    with pytest.raises(BundleError, match=r"no engine here runs distances.onnx: ort: onnx.*openvino: openvino"):
        choose_engine(graph, threads=1)
    assert measured(cache) == []


@both
def test_a_candidate_that_fails_in_a_run_is_left_out(tmp_path: Path) -> None:
    graph = fails_in_a_run(tmp_path / "product.onnx")
    with open_engine(graph, "ort", threads=1):  # loads: it is the run that fails
        pass
    with pytest.raises(EngineUnavailable, match=r"no engine here runs product.onnx: ort: onnxruntime failed: "):
        auto._measure(graph, 1, ["ort"])


def test_another_gpu_or_driver_is_measured_anew(tiny: TinyModel) -> None:
    present = {"ort": "1", "ort:cuda": "1"}
    facts: list[list[list[str | None]]] = [
        [],
        [["580"], ["RTX", "8.6"]],
        [["570"], ["RTX", "8.6"]],
        [["580"], ["A2", None]],
    ]
    assert len({auto._place(tiny.encoder, 1, present, gpus) for gpus in facts}) == len(facts)
    assert auto._gpu_facts({"ort": "1", "openvino": "1"}) == []
    assert len(auto._gpu_facts(present)) >= 1


@both
def test_a_missing_graph_is_what_is_complained_about(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        choose_engine(tmp_path / "absent.onnx")


@both
def test_a_graph_that_every_candidate_finds_damaged_is_a_damaged_bundle(tiny: TinyModel, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    half.write_bytes(tiny.encoder.read_bytes()[:500])
    with pytest.raises(BundleError, match=r"no engine here runs half.onnx: ort: .*; openvino: ") as caught:
        choose_engine(half, threads=1)
    assert caught.value.exit_code == 3


@both
def test_who_computes_in_another_precision_is_left_out_and_named(
    tiny: TinyModel, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = save_fp16(tmp_path / "half.onnx", tiny)
    choose_engine(graph, threads=1, precision="fp16")
    (place,) = measured(cache)
    found = json.loads(place.read_text())
    assert found["precision"]["ort"] == "fp32", "ONNX Runtime has no float16 on the CPU"
    for computes, chosen, said in (
        ("fp16", "openvino", "openvino 5 ms a run, 1 thread; left out, because not in fp16: ort in fp32"),
        ("fp32", "ort", "none computes in fp16 (ort in fp32, openvino in fp32): ort 4 ms against openvino 5 ms"),
        ("none", "openvino", "openvino 5 ms a run, 1 thread; left out, because not in fp16: ort in fp32"),
    ):
        times = {"ort": 4.0, "openvino": 5.0}
        place.write_text(json.dumps({"ms": times, "precision": {"ort": "fp32", "openvino": computes}}))
        caplog.clear()
        assert choose_engine(graph, threads=1, precision="fp16") == chosen
        assert said in caplog.records[-1].getMessage()
        assert choose_engine(graph, threads=1) == "ort", "nobody asked for a precision"


@both
def test_what_was_measured_without_asking_for_the_precision_is_measured_anew(
    tiny: TinyModel, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = save_int8(tmp_path / "int8.onnx", tiny)
    choose_engine(graph, threads=1)
    (place,) = measured(cache)
    assert json.loads(place.read_text())["precision"] == {}
    caplog.clear()
    choose_engine(graph, threads=1, precision="int8")
    assert "measured earlier" not in caplog.text
    assert json.loads(place.read_text())["precision"].items() >= {"ort": "int8", "openvino": "int8"}.items()
    choose_engine(graph, threads=1, precision="int8")
    assert "measured earlier" in caplog.text
