"""Several precisions in one bundle: fp16 graphs, the manifest, what a classifier opens, and the command."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from flss_edge.checkpoint import Checkpoint
from flss_edge.data import ImageSet
from flss_edge.model import FLSS, ModelConfig
from flss_export import exporter
from flss_export.graphs import GraphSet
from flss_export.half import half_head, half_network
from flss_export.parity import parity
from flss_export.precision import check_precisions, parse_precisions, precision_of, role_of, variants
from flss_export.protos import HEAVY_OPERATORS
from flss_export.sampling_graphs import head_graph
from flss_runtime import bundle_engines
from flss_runtime.bundle import Bundle
from flss_runtime.bundle_engines import open_bundle_engines
from flss_runtime.decision import SmoothingPolicy
from flss_runtime.engines import Engine, open_engine
from flss_runtime.errors import CheckFailed, DataError, EngineUnavailable, GraphNotSupported, UsageError
from flss_runtime.images import to_nchw
from flss_runtime.noise import SeededNoise
from flss_runtime.opening import open_classifier

NAMES = ("ant", "bee", "cow", "dog", "eel")
POLICY = SmoothingPolicy(20, 2.0, 0)
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def pictures(count: int, seed: int = 0) -> ImageSet:
    """Blocks of colour under noise."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 200, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = (blocks + random.integers(0, 56, (count, 16, 16, 3))).astype(np.uint8)
    return ImageSet(images, np.arange(count) % 5, NAMES, f"blocks:{seed}")


@pytest.fixture(scope="module")
def reduced(checkpoint: Checkpoint, graphs: GraphSet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("out") / "reduced.bundle"
    with pytest.MonkeyPatch.context() as patch:  # the float32 graphs are made already
        patch.setattr(exporter, "build_graphs", lambda model: graphs)
        return exporter.export_bundle(
            checkpoint,
            target,
            data=pictures(60),
            precisions=("fp32", "fp16", "int8"),
            quantization=pictures(40, seed=1),
            num_samples=20,
            seed=3,
        )


def types_of(proto: ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = {each.name: each.type.tensor_type.elem_type for each in [*graph.value_info, *graph.input, *graph.output]}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_the_manifest_lists_them(reduced: Bundle) -> None:
    assert dict(reduced.manifest["precision"]) == {
        "encoder": "fp32",
        "head": "fp32",
        "deterministic": "fp32",
        "encoder.fp16": "fp16",
        "deterministic.fp16": "fp16",
        "head.fp16": "fp16",
        "encoder.int8": "int8",
        "deterministic.int8": "int8",
    }
    assert reduced.graph("encoder", "int8").name == "encoder.int8.onnx"
    assert reduced.precisions() == ("fp32", "fp16", "int8") and reduced.precisions("head") == ("fp32", "fp16")
    size = {name: entry["size"] for name, entry in reduced.manifest["files"].items()}
    assert size["encoder.fp16.onnx"] < 0.6 * size["encoder.onnx"]
    data = reduced.manifest["data"]
    assert (data["quantization"], data["quantization_sha256"]) == ("blocks:1", pictures(40, seed=1).sha256)


def test_the_manifest_says_what_each_changes(reduced: Bundle) -> None:
    found = reduced.manifest["parity"]
    assert set(found["reduced"]) == {"fp16", "fp16 with its head", "int8"}
    assert found["passed"] and found["images"] == 60 and found["class_flips"] == 0
    for comparison in found["reduced"].values():
        assert comparison["images"] == 60 and comparison["class_flips"] <= 3
        assert 0 < comparison["tensor_differences"]["mean"] < 0.1


def test_only_float32_is_as_before(bundle: Bundle) -> None:
    assert set(bundle.manifest["graphs"]) == {"encoder", "head", "deterministic"}
    assert "reduced" not in bundle.manifest["parity"] and "quantization" not in bundle.manifest["data"]


@pytest.mark.parametrize("role", ["encoder", "deterministic", "head"])
def test_heavy_layers_are_half_and_the_rest_is_not(reduced: Bundle, role: str) -> None:
    proto = onnx.load(reduced.graph(role, "fp16"))
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.producer_name and not proto.doc_string and not proto.metadata_props
    types, exact = types_of(proto), onnx.load(reduced.graph(role))
    assert list(proto.graph.input) == list(exact.graph.input)
    assert list(proto.graph.output) == list(exact.graph.output)
    heavy = [node for node in proto.graph.node if node.op_type in HEAVY_OPERATORS]
    assert {types[name] for node in heavy for name in (*node.input, *node.output)} == {HALF}
    precise = [node for node in proto.graph.node if node.op_type in {"Exp", "ArgMax"}]
    assert precise and {types[node.input[0]] for node in precise} == {FLOAT}
    if role == "head":
        sums = [node for node in proto.graph.node if node.op_type in {"Add", "Mul"}]
        assert {types[name] for node in sums for name in node.input} == {FLOAT}


def test_no_cast_is_there_twice(reduced: Bundle) -> None:
    for role in ("encoder", "deterministic", "head"):
        casts = [node for node in onnx.load(reduced.graph(role, "fp16")).graph.node if node.op_type == "Cast"]
        assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
    encoder = onnx.load(reduced.graph("encoder", "fp16"))
    assert sum(node.op_type == "Cast" for node in encoder.graph.node) == 3, "images in, mean and log-variance out"


def test_half_is_near_float32(reduced: Bundle) -> None:
    pixels = to_nchw(pictures(30, seed=2).images)
    with open_engine(reduced.graph("encoder")) as exact, open_engine(reduced.graph("encoder", "fp16")) as half:
        expected, found = exact.run({"images": pixels}), half.run({"images": pixels})
    np.testing.assert_allclose(found["mean"], expected["mean"], atol=0.005 * np.abs(expected["mean"]).max())
    np.testing.assert_allclose(found["std"], expected["std"], rtol=0.005)
    assert np.abs(found["mean"] - expected["mean"]).max() > 0
    noise, scale = SeededNoise(0).take(30, 20, 16), np.array([2], np.float32)
    inputs = {"mean": expected["mean"], "std": expected["std"], "noise": noise, "noise_scale": scale}
    with open_engine(reduced.graph("head")) as exact, open_engine(reduced.graph("head", "fp16")) as half:
        logits, near = exact.run(inputs)["logits"], half.run(inputs)
    np.testing.assert_allclose(near["logits"], logits, atol=0.005 * np.abs(logits).max())
    np.testing.assert_array_equal(near["choices"], near["logits"].argmax(axis=2))


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_heads_with_hidden_layers(hidden: tuple[int, ...]) -> None:
    head = FLSS(ModelConfig(num_classes=4, width=2, hidden=hidden)).head
    proto = onnx.load_from_string(half_head(head_graph(head).SerializeToString()))
    types = types_of(proto)
    assert {types[node.input[0]] for node in proto.graph.node if node.op_type in HEAVY_OPERATORS} == {HALF}


def scaled(weight: float) -> bytes:
    """images -> 1x1 convolution -> convolution, with one weight of that size."""
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["inside"], name="Conv_0"),
        helper.make_node("Conv", ["inside", "v", "b"], ["mean"], name="Conv_1"),
    ]
    first = np.full((1, 3, 1, 1), weight, np.float32)
    arrays = {"w": first, "v": np.full((1, 1, 1, 1), 1e-3, np.float32), "b": np.zeros(1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("images", FLOAT, ["B", 3, 4, 4])],
        [helper.make_tensor_value_info("mean", FLOAT, ["B", 1, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("weight", "what"), [(1e5, "the weight w"), (3e4, "the value inside")])
def test_what_float16_cannot_hold_is_refused(weight: float, what: str) -> None:
    white = np.ones((2, 3, 4, 4), np.float32)
    assert half_network("encoder", scaled(2e4), white)
    with pytest.raises(CheckFailed, match=what) as caught:
        half_network("encoder", scaled(weight), white)
    assert "65504" in caught.value.problem


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_classifier_takes_the_float32_head(reduced: Bundle, precision: str) -> None:
    with open_classifier(reduced, precision=precision, policy=POLICY, noise=SeededNoise(1), threads=1) as classifier:
        facts = classifier.engine_facts()["precision"]
        found = classifier.encode(pictures(20, seed=3).images)
    with open_classifier(reduced, policy=POLICY, noise=SeededNoise(1), threads=1) as classifier:
        exact = classifier.encode(pictures(20, seed=3).images)
    # ONNX Runtime's CPU provider has no float16 convolutions, and says so
    assert facts == {"encoder": "fp32" if precision == "fp16" else "int8", "head": "fp32"}
    assert 0 < np.abs(found.mean - exact.mean).max() < 0.05 * np.abs(exact.mean).max()


def test_an_engine_without_float32_products_gets_the_fp16_head(
    reduced: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As TensorRT on Turing, which is not here: ONNX Runtime, but for one graph."""
    kind: type[EngineUnavailable] = GraphNotSupported

    def without_float32(graph: Path, *arguments: object, **options: object) -> Engine:
        if graph.name == "head.onnx":
            raise kind("no FP32 GEMM", "take fp16")
        return open_engine(graph, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_engines, "open_engine", without_float32)
    with caplog.at_level(logging.WARNING, "flss_runtime"):
        opened = open_bundle_engines(reduced, precision="fp16", threads=1)
    assert opened.engines["head"].outputs["logits"].dtype == "float32"
    assert opened.graphs == {"encoder": "fp16", "head": "fp16"}
    opened.close()
    assert "no FP32 GEMM" in caplog.text
    for precision in ("fp32", "int8"):
        with pytest.raises(EngineUnavailable, match="no FP32 GEMM"):
            open_bundle_engines(reduced, precision=precision, threads=1)
    kind = EngineUnavailable  # a GPU that is gone, or full, says nothing about the graph
    with pytest.raises(EngineUnavailable, match="no FP32 GEMM"):
        open_bundle_engines(reduced, precision="fp16", threads=1)


def test_a_precision_that_is_not_there(bundle: Bundle, reduced: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match="in fp32, not in int8") as caught:
        open_classifier(bundle, precision="int8", policy=POLICY)
    assert "--precision int8" in caught.value.fix and caught.value.exit_code == 6
    with pytest.raises(UsageError, match="fp8"):
        open_classifier(reduced, precision="fp8", policy=POLICY)


def test_parity_takes_a_precision(reduced: Bundle, checkpoint: Checkpoint) -> None:
    images: npt.NDArray[np.uint8] = pictures(40, seed=4).images
    found = parity(checkpoint, reduced, images, precision="int8")
    assert found.passed and 1e-4 < found.tensor_differences["mean"] and "deterministic" in found.tensor_differences


@pytest.mark.usefixtures("bundle")
def test_int8_needs_fitting_images(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "build_graphs", lambda model: pytest.fail("the export went on"))
    with pytest.raises(UsageError, match="int8 needs real images"):
        exporter.export_bundle(checkpoint, tmp_path / "a.bundle", precisions=("fp32", "int8"))
    larger = ImageSet(np.zeros((5, 32, 32, 3), np.uint8), np.arange(5), NAMES, "larger")
    with pytest.raises(DataError, match="larger"):
        exporter.export_bundle(checkpoint, tmp_path / "a.bundle", precisions=("fp32", "int8"), quantization=larger)
    assert list(tmp_path.iterdir()) == []


def test_lists_of_precisions() -> None:
    assert parse_precisions("int8, fp16") == ("fp32", "fp16", "int8")
    assert parse_precisions("") == parse_precisions("fp32,fp32") == ("fp32",)
    with pytest.raises(UsageError, match="'half'"):
        parse_precisions("fp32,half")
    with pytest.raises(UsageError, match="every bundle"):
        check_precisions(["fp16"])
    assert (precision_of("encoder"), precision_of("gate.int8")) == ("fp32", "int8")
    assert (role_of("encoder"), role_of("gate.int8")) == ("encoder", "gate")


def test_networks_of_a_cascade() -> None:
    keys = ["encoder", "head", "gate", "encoder.int8", "gate.int8", "encoder.fp16", "gate.fp16", "head.fp16"]
    found = variants(keys)
    assert found["int8"] == {"encoder": "encoder.int8", "head": "head", "gate": "gate.int8"}
    assert found["fp16 with its head"] == {"encoder": "encoder.fp16", "head": "head.fp16", "gate": "gate.fp16"}
    assert set(variants(keys[:3])) == {"fp32"}
