"""What every engine has to do, over real graphs that NumPy can compute; `test_is_present` lists the absent ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from flss_runtime.engines import Engine, import_library, open_engine
from flss_runtime.engines.ort import OrtEngine
from flss_runtime.engines.ort_binding import DeviceRuns
from flss_runtime.errors import BundleError, EngineUnavailable, InferenceError
from flss_runtime.images import to_nchw

from .bundles import golden_arrays
from .conftest import TinyModel, save_encoder, save_head
from .graphs import save_bytes_encoder, save_convolution
from .reduced import save_fp16, save_int8

BATCHES = (1, 2, 7, 128)
SAMPLES = (1, 100, 256)
BOUND = "ort, bound"  # the runs of the GPU providers, whose tensors stay in buffers: the same code on the CPU
ENGINES = ("ort", BOUND, "ort:cuda", "ort:tensorrt", "ort:tensorrt-rtx", "openvino", "openvino:gpu", "trt")
ON_CPU = ("ort", BOUND, "openvino")

Open = Callable[[Path], Engine]


def open_bound(graph: Path) -> Engine:
    engine = OrtEngine(import_library("ort"), graph, threads=1)
    engine._bound = DeviceRuns(engine._onnxruntime, engine._session, "cpu")
    return engine


def open_named(name: str, graph: Path) -> Engine:
    return open_bound(graph) if name == BOUND else open_engine(graph, name, threads=1)


def find_absent() -> dict[str, str]:
    """Engine -> why it cannot be used here."""
    absent = {}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLSS_EDGE_CACHE", folder)
        graph = Path(folder) / "head.onnx"
        save_head(graph, np.ones((16, 5), np.float32), np.ones(5, np.float32))
        for name in ENGINES:
            try:
                open_named(name, graph).close()
            except EngineUnavailable as error:
                absent[name] = error.problem
    return absent


ABSENT = find_absent()


@pytest.fixture(params=[name for name in ENGINES if name not in ABSENT])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(name: str) -> Iterator[Open]:
    opened = []

    def load(graph: Path) -> Engine:
        opened.append(open_named(name, graph))
        return opened[-1]

    yield load
    for engine in opened:
        engine.close()


def images_of(tiny: TinyModel, batch: int, seed: int = 0) -> dict[str, Any]:
    return {"images": np.random.default_rng(seed).random((batch, 3, tiny.spec.height, tiny.spec.width), np.float32)}


def latents_of(tiny: TinyModel, batch: int, num_samples: int, noise_batch: int | None = None) -> dict[str, Any]:
    random = np.random.default_rng(batch * 1000 + num_samples)
    return {
        "mean": random.normal(size=(batch, tiny.latent_dim)).astype(np.float32),
        "std": random.random((batch, tiny.latent_dim), np.float32) + np.float32(0.1),
        "noise": random.normal(size=(noise_batch or batch, num_samples, tiny.latent_dim)).astype(np.float32),
        "noise_scale": np.array([2.0], np.float32),
    }


def logits_of(tiny: TinyModel, tensors: dict[str, Any]) -> Any:
    spread = 2.0 * tensors["std"][:, None].astype(np.float64) * tensors["noise"]
    return (tensors["mean"][:, None] + spread) @ tiny.head_weight + tiny.head_bias


@pytest.mark.parametrize("engine", ENGINES)
def test_is_present(engine: str) -> None:
    if engine in ABSENT:
        pytest.skip(f"{engine} is absent: {ABSENT[engine]}")


def test_it_says_what_it_is(load: Open, name: str, tiny: TinyModel) -> None:
    encoder = load(tiny.encoder)
    assert encoder.name == name.partition(",")[0]
    library, version = encoder.library.split()
    assert library.isidentifier() and version[0].isdigit()
    assert encoder.device
    (images,) = encoder.inputs.values()
    assert images.dtype == "float32"
    assert isinstance(images.shape[0], str) and images.shape[1:] == (3, 8, 8)
    assert list(encoder.outputs) == ["mean", "std"]
    assert encoder.outputs["mean"].shape[1:] == (16,)
    assert load(tiny.head).outputs["choices"].dtype == "int64"


def test_encoder_gives_what_the_graph_says_at_every_batch(load: Open, tiny: TinyModel) -> None:
    encoder = load(tiny.encoder)
    for batch in (*BATCHES, *BATCHES[::-1]):
        tensors = images_of(tiny, batch, seed=batch)
        out = encoder.run(tensors)
        mean, std = tiny.encode(tensors["images"])
        assert {key: value.dtype.name for key, value in out.items()} == {"mean": "float32", "std": "float32"}
        np.testing.assert_allclose(out["mean"], mean, atol=1e-4)
        np.testing.assert_allclose(out["std"], std, rtol=1e-4)


def test_head_gives_what_the_graph_says_at_every_batch_and_number_of_samples(load: Open, tiny: TinyModel) -> None:
    head = load(tiny.head)
    for num_samples in SAMPLES:
        for batch in BATCHES:
            tensors = latents_of(tiny, batch, num_samples)
            out = head.run(tensors)
            np.testing.assert_allclose(out["logits"], logits_of(tiny, tensors), atol=1e-3)
            assert out["choices"].dtype == np.int64
            np.testing.assert_array_equal(out["choices"], out["logits"].argmax(axis=2))


@pytest.mark.parametrize("batch", BATCHES)
def test_one_noise_serves_the_whole_batch(load: Open, tiny: TinyModel, batch: int) -> None:
    tensors = latents_of(tiny, batch, 100, noise_batch=1)
    np.testing.assert_allclose(load(tiny.head).run(tensors)["logits"], logits_of(tiny, tensors), atol=1e-3)


def test_among_equals_the_lowest_class_is_chosen(load: Open, tiny: TinyModel, tmp_path: Path) -> None:
    bias = np.array([0, 3, 1, 3, 3], np.float32)  # with no weight every logit is its bias
    save_head(tmp_path / "head.onnx", np.zeros((tiny.latent_dim, 5), np.float32), bias)
    head = load(tmp_path / "head.onnx")
    for batch in BATCHES:
        assert (head.run(latents_of(tiny, batch, 100))["choices"] == 1).all()


def test_golden_vectors(load: Open, tiny: TinyModel) -> None:
    golden = golden_arrays(tiny)
    latent = load(tiny.encoder).run({"images": to_nchw(golden["images"])})
    scale = np.array([golden["noise_scale"]], np.float32)
    found = load(tiny.head).run({**latent, "noise": golden["noise"], "noise_scale": scale})
    for key, values in {**latent, **found}.items():
        if key != "choices":
            np.testing.assert_allclose(values, golden[key], atol=1e-4 * max(1, np.abs(golden[key]).max()))
    np.testing.assert_array_equal(found["choices"], golden["choices"])


def test_bytes_are_taken_as_they_come_from_a_camera(load: Open, tiny: TinyModel, tmp_path: Path) -> None:
    save_bytes_encoder(tmp_path / "encoder.onnx", tiny)
    encoder = load(tmp_path / "encoder.onnx")
    assert encoder.inputs["images"].dtype == "uint8"
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.run({"images": images})["mean"], tiny.encode(to_nchw(images))[0], atol=1e-4)


def test_the_same_input_gives_the_same_bits(load: Open, tiny: TinyModel) -> None:
    encoder, tensors = load(tiny.encoder), images_of(tiny, 7)
    first = encoder.run(tensors)["mean"]
    encoder.run(images_of(tiny, 2))
    for _ in range(5):
        np.testing.assert_array_equal(encoder.run(tensors)["mean"], first)


def test_outputs_belong_to_the_caller(load: Open, tiny: TinyModel) -> None:
    encoder = load(tiny.encoder)
    for _ in range(3):  # buffers and captured graphs come into play after the first run
        first = encoder.run(images_of(tiny, 2))["mean"]
        kept = first.copy()
        second = encoder.run(images_of(tiny, 2, seed=1))["mean"]
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable, and nobody else's
        np.testing.assert_array_equal(encoder.run(images_of(tiny, 2, seed=1))["mean"], second)
    kept = second.copy()
    encoder.close()
    np.testing.assert_array_equal(second, kept)


def test_inputs_are_read_and_left_alone(load: Open, tiny: TinyModel) -> None:
    encoder, images = load(tiny.encoder), images_of(tiny, 2)["images"]
    expected = encoder.run({"images": images.copy()})["mean"]
    frozen = images.copy()
    frozen.flags.writeable = False
    strided = np.repeat(images, 2, axis=3)[..., ::2]
    for given in (frozen, strided, strided, frozen):
        np.testing.assert_array_equal(encoder.run({"images": given})["mean"], expected)
        np.testing.assert_array_equal(given, images)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"image": np.zeros((1, 3, 8, 8), np.float32)},
        {"images": np.zeros((1, 3, 8, 8), np.float32), "more": np.zeros(1, np.float32)},
        {"images": np.zeros((1, 3, 8, 9), np.float32)},
        {"images": np.zeros((1, 8, 8, 3), np.float32)},
        {"images": np.zeros((1, 3, 8, 8), np.float64)},
        {"images": np.zeros((1, 3, 8, 8), np.uint8)},
        {"images": np.zeros((3, 8, 8), np.float32)},
        {"images": np.zeros((1, 3, 8, 8), ">f4")},
    ],
    ids=["none", "other name", "one more", "too wide", "layout", "float64", "uint8", "no batch", "byte order"],
)
def test_wrong_tensors_are_refused_and_it_lives_on(
    load: Open, tiny: TinyModel, tensors: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = load(tiny.encoder)
    expected = encoder.run(images_of(tiny, 1))["mean"]
    with pytest.raises(InferenceError) as caught:
        encoder.run(tensors)
    assert "images float32 [" in caught.value.fix
    assert "\n" not in caught.value.problem
    np.testing.assert_array_equal(encoder.run(images_of(tiny, 1))["mean"], expected)
    assert capfd.readouterr() == ("", "")


def test_a_closed_engine_says_so(load: Open, tiny: TinyModel) -> None:
    encoder = load(tiny.encoder)
    encoder.close()
    encoder.close()
    with pytest.raises(InferenceError, match="closed"):
        encoder.run(images_of(tiny, 1))


def test_bad_graphs_are_bundle_errors(
    load: Open, tiny: TinyModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = tiny.encoder.read_bytes()
    for name, damaged in {"empty": b"", "text": b"hello", "half": content[: len(content) // 2]}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            load(path)
        assert str(path) in caught.value.problem and "\n" not in caught.value.problem
    for absent in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(BundleError, match="does not exist"):
            load(absent)
    assert capfd.readouterr().out == ""


def test_several_engines_do_not_disturb_each_other(load: Open, tiny: TinyModel, tmp_path: Path) -> None:
    save_encoder(tmp_path / "other.onnx", tiny.spec, -tiny.mean_weight, tiny.std_weight)
    one, other, tensors = load(tiny.encoder), load(tmp_path / "other.onnx"), images_of(tiny, 2)
    for _ in range(3):
        np.testing.assert_allclose(one.run(tensors)["mean"], -other.run(tensors)["mean"], atol=1e-5)


def test_float32_is_computed_in_float32(load: Open, tiny: TinyModel, tmp_path: Path) -> None:
    save_convolution(tmp_path / "convolution.onnx")
    for graph in (tiny.encoder, tiny.head, tmp_path / "convolution.onnx"):
        engine = load(graph)
        assert engine.precision() in (("fp32", "unknown") if engine.name.startswith("ort:tensorrt") else ("fp32",))
    images = images_of(tiny, 2)["images"]
    found = engine.run({"images": images})["sums"]
    # 3 x 8 x 8 products a sum: half precision is off by 1e-2, TF32 by 1e-3.
    np.testing.assert_allclose(found, images.astype(np.float64).sum(axis=(1, 2, 3)) * 1.0001, rtol=1e-5)


def test_int8_is_read_back(load: Open, tiny: TinyModel, tmp_path: Path, name: str) -> None:
    graph = save_int8(tmp_path / "encoder.onnx", tiny)
    if name == "trt":  # the graph is unsigned, as processors want it
        with pytest.raises(EngineUnavailable, match="unsigned 8 bits"):
            load(graph)
        return
    engine = load(graph)
    assert engine.precision() == "int8" or name not in ON_CPU
    tensors = images_of(tiny, 7)
    np.testing.assert_allclose(engine.run(tensors)["mean"], tiny.encode(tensors["images"])[0], atol=0.2)


def test_fp16_is_read_back(load: Open, tiny: TinyModel, tmp_path: Path, name: str) -> None:
    engine = load(save_fp16(tmp_path / "encoder.onnx", tiny))
    # A processor without half-precision arithmetic computes such a graph in float32, and has to say so.
    assert engine.precision() in (("fp16", "fp32") if name in ON_CPU else ("fp16", "unknown"))
    tensors = images_of(tiny, 7)
    np.testing.assert_allclose(engine.run(tensors)["mean"], tiny.encode(tensors["images"])[0], atol=0.1)


def test_reading_back_leaves_the_engine_as_it_was(load: Open, tiny: TinyModel, tmp_path: Path) -> None:
    encoder, tensors = load(tiny.encoder), images_of(tiny, 2)
    before = encoder.run(tensors)["mean"]
    encoder.precision()
    np.testing.assert_array_equal(encoder.run(tensors)["mean"], before)
