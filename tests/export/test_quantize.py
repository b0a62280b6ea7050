"""int8 graphs: 8-bit where they claim it, near the float32 ones, the same on every processor, and run as integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flss_edge.model import ModelConfig
from flss_export.activations import channel_means, observe, ranges
from flss_export.graphs import GraphSet, build_graphs
from flss_export.quantize import LARGEST_WEIGHT, Calibration, calibrate, covers, quantize
from flss_runtime.engines import open_engine
from flss_runtime.engines.libraries import engine_status
from flss_runtime.errors import CheckFailed

from .conftest import MakeModel

Pixels = npt.NDArray[np.float32]
PRESENT = [name for name, status in engine_status().items() if name != "trt" and not status.startswith("absent")]


def pixels(count: int, size: int, seed: int = 0) -> Pixels:
    """Blocks of colour under noise."""
    random = np.random.default_rng(seed)
    blocks = random.random((count, 3, 4, 4), np.float32).repeat(size // 4, axis=2).repeat(size // 4, axis=3)
    return np.asarray(0.7 * blocks + 0.3 * random.random((count, 3, size, size), np.float32), np.float32)


@pytest.fixture(scope="module")
def images() -> Pixels:
    return pixels(48, 16)


@pytest.fixture(scope="module")
def calibration(graphs: GraphSet, images: Pixels) -> Calibration:
    return calibrate(graphs.graphs["encoder"], images)


@pytest.fixture(scope="module")
def encoder(graphs: GraphSet, calibration: Calibration) -> bytes:
    return quantize("encoder", graphs.graphs["encoder"], calibration)


def run(content: bytes, images: Pixels, folder: Path, engine: str = "ort") -> dict[str, npt.NDArray[np.float32]]:
    path = folder / "graph.onnx"
    path.write_bytes(content)
    with open_engine(path, engine, threads=1) as opened:
        return opened.run({"images": images})


def error_of(content: bytes, exact: bytes, images: Pixels, folder: Path, engine: str = "ort") -> float:
    """Relative error of the latent mean."""
    expected, found = run(exact, images, folder)["mean"], run(content, images, folder, engine)["mean"]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def constants_of(proto: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_every_convolution_reads_and_gives_eight_bits(encoder: bytes) -> None:
    proto = onnx.load_from_string(encoder)
    onnx.checker.check_model(proto, full_check=True)
    constants = constants_of(proto)
    written = {node.output[0]: node for node in proto.graph.node}
    reads = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(reads) == 20
    for node in reads:
        activation, weight, bias = (written[name] for name in node.input)
        assert {activation.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert constants[activation.input[2]].dtype == np.uint8
        values, scale = constants[weight.input[0]], constants[weight.input[1]]
        assert values.dtype == np.int8 and scale.shape == (len(values),), "one scale an output channel"
        assert np.abs(values.astype(int)).max() == LARGEST_WEIGHT
        assert constants[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(constants[bias.input[1]], scale * constants[activation.input[1]], rtol=1e-6)
    heavy = [node for node in proto.graph.node if node.op_type == "Gemm"]
    assert all(constants[name].dtype == np.float32 for node in heavy for name in node.input if name in constants)


def test_pixels_stay_exact(encoder: bytes) -> None:
    constants = constants_of(onnx.load_from_string(encoder))
    assert constants["images_scale"] == np.float32(1 / 255) and constants["images_zero"] == 0


def test_nothing_else_is_in_the_file(graphs: GraphSet, encoder: bytes) -> None:
    proto, exact = onnx.load_from_string(encoder), onnx.load_from_string(graphs.graphs["encoder"])
    assert list(proto.graph.input) == list(exact.graph.input)
    assert list(proto.graph.output) == list(exact.graph.output)
    assert list(proto.opset_import) == list(exact.opset_import) and not proto.producer_name
    used = {name for node in proto.graph.node for name in node.input}
    assert {tensor.name for tensor in proto.graph.initializer} <= used
    assert len(encoder) < 0.5 * len(graphs.graphs["encoder"])


def test_the_same_images_give_the_same_bytes(graphs: GraphSet, images: Pixels, encoder: bytes) -> None:
    again = calibrate(graphs.graphs["encoder"], images)
    assert quantize("encoder", graphs.graphs["encoder"], again) == encoder


@pytest.mark.parametrize("engine", PRESENT)
def test_it_is_near_float32_on_other_images(graphs: GraphSet, encoder: bytes, tmp_path: Path, engine: str) -> None:
    other = pixels(64, 16, seed=1)
    assert error_of(encoder, graphs.graphs["encoder"], other, tmp_path, engine) < 0.05
    expected, found = (run(each, other, tmp_path)["std"] for each in (graphs.graphs["encoder"], encoder))
    np.testing.assert_allclose(found, expected, rtol=0.05)


@pytest.mark.parametrize("engine", PRESENT)
def test_engines_run_it_in_integers(encoder: bytes, tmp_path: Path, engine: str) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder)
    with open_engine(path, engine, threads=1) as opened:
        assert opened.precision() == "int8"


def test_corrected_biases_take_the_shift_out(
    graphs: GraphSet, images: Pixels, calibration: Calibration, encoder: bytes, tmp_path: Path
) -> None:
    exact = graphs.graphs["encoder"]
    constants = constants_of(onnx.load_from_string(exact))
    biases = {name: constants[name].astype(np.float64) for name in calibration.biases}
    plain = quantize("encoder", exact, Calibration(calibration.ranges, biases))
    other = pixels(64, 16, seed=2)
    expected = run(exact, other, tmp_path)["mean"]
    corrected, shifted = ((run(each, other, tmp_path)["mean"] - expected).mean(axis=0) for each in (encoder, plain))
    assert np.linalg.norm(corrected) < 0.5 * np.linalg.norm(shifted)
    assert error_of(encoder, exact, other, tmp_path) < error_of(plain, exact, other, tmp_path)


def two_convolutions(weight: Pixels, bias: Pixels) -> bytes:
    nodes = [
        helper.make_node("Conv", ["images", "weight", "bias"], ["inside"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["inside"], ["relu"]),
        helper.make_node("Conv", ["relu", "weight2", "bias2"], ["mean"]),  # so that the first gives 8 bits
    ]
    outputs = [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["B", len(weight), 8, 8])]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8])]
    arrays = {"weight": weight, "bias": bias, "weight2": np.eye(len(weight), dtype=np.float32)[..., None, None]}
    arrays["bias2"] = np.zeros(len(weight), np.float32)
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "two", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("engine", PRESENT)
def test_the_largest_products_do_not_saturate(tmp_path: Path, engine: str) -> None:
    """White pixels under the largest weights: without VNNI two such products meet in 16 bits."""
    assert 255 * LARGEST_WEIGHT * 2 <= np.iinfo(np.int16).max
    exact = two_convolutions(np.full((16, 3, 3, 3), 0.5, np.float32), np.zeros(16, np.float32))
    white = np.ones((2, 3, 8, 8), np.float32)
    content = quantize("encoder", exact, calibrate(exact, white))
    expected, found = run(exact, white, tmp_path)["mean"], run(content, white, tmp_path, engine)["mean"]
    np.testing.assert_allclose(found, expected, atol=13.5 / 255)
    assert expected.max() == 13.5


def test_channels_without_weights_keep_their_bias(tmp_path: Path) -> None:
    """A pruned channel: a scale made of its weights alone would be zero, and its bias no 32-bit integer."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0, 1e-12
    exact = two_convolutions(weight, np.array([0.1, 3, 2, -1], np.float32))
    images = pixels(16, 8)
    expected = run(exact, images, tmp_path)["mean"]
    found = run(quantize("encoder", exact, calibrate(exact, images)), images, tmp_path)["mean"]
    np.testing.assert_allclose(found[:, 1:3], expected[:, 1:3], atol=expected.max() / 255)
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())


@pytest.mark.parametrize("other", [{"stem": "imagenet", "image_size": 48}, {"activation": "silu", "image_size": 16}])
def test_other_backbones(make_model: MakeModel, tmp_path: Path, other: dict[str, object]) -> None:
    config = ModelConfig(num_classes=3, width=4, blocks=(1, 1), **other)  # type: ignore[arg-type]
    exact = build_graphs(make_model(config, 1)).graphs["encoder"]
    content = quantize("encoder", exact, calibrate(exact, pixels(32, config.image_size)))
    assert error_of(content, exact, pixels(32, config.image_size, seed=1), tmp_path) < 0.05
    path = tmp_path / "graph.onnx"
    with open_engine(path, threads=1) as opened:
        assert opened.precision() == "int8"


def test_the_baseline_shares_the_encoders_calibration(graphs: GraphSet, calibration: Calibration) -> None:
    assert covers(calibration, graphs.graphs["deterministic"])
    backbone = constants_of(onnx.load_from_string(quantize("d", graphs.graphs["deterministic"], calibration)))
    encoder = constants_of(onnx.load_from_string(quantize("e", graphs.graphs["encoder"], calibration)))
    shared = [name for name in backbone if name.endswith("_int8")]
    assert len(shared) == 40 and all((backbone[name] == encoder[name]).all() for name in shared)


def test_convolutions_without_a_bias_get_one(tmp_path: Path) -> None:
    """Torch's exporter leaves a bias out that is all zeros, as under a batch norm that was never trained."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    exact = onnx.load_from_string(two_convolutions(weight, np.zeros(4, np.float32)))
    for node in exact.graph.node:
        del node.input[2:]
    images = pixels(16, 8)
    content = quantize("encoder", exact.SerializeToString(), calibrate(exact.SerializeToString(), images))
    assert sum(node.op_type == "DequantizeLinear" for node in onnx.load_from_string(content).graph.node) == 6
    expected = run(exact.SerializeToString(), images, tmp_path)["mean"]
    np.testing.assert_allclose(run(content, images, tmp_path)["mean"], expected, atol=0.02 * expected.max())


def test_another_networks_calibration_does_not_cover(make_model: MakeModel, calibration: Calibration) -> None:
    deeper = build_graphs(make_model(ModelConfig(num_classes=3, width=4, blocks=(3, 2), image_size=16), 1))
    assert not covers(calibration, deeper.graphs["encoder"])


def test_a_network_without_convolutions_is_refused(graphs: GraphSet) -> None:
    with pytest.raises(CheckFailed, match="no convolutions"):
        calibrate(graphs.graphs["head"], pixels(2, 16))


def test_observed_values_are_the_networks(graphs: GraphSet) -> None:
    images = pixels(20, 16)
    proto = onnx.load_from_string(graphs.graphs["encoder"])
    first = proto.graph.node[0].output[0]
    seen = np.concatenate([values[first] for values in observe(proto, [first], images)])
    assert seen.shape == (20, 4, 16, 16)
    found = ranges(proto, [first, "images"], images)
    assert found[first] == (min(0.0, float(seen.min())), max(0.0, float(seen.max())))
    assert found["images"] == (0.0, float(images.max()))
    np.testing.assert_allclose(channel_means(proto, [first], images)[first], seen.mean(axis=(0, 2, 3)), atol=1e-6)
