"""TensorRT-RTX builds for GPUs that are not there, so the builds are real; only running needs a GPU (tests/gpu)."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from flss_runtime.engine_cache import CacheKey, EngineCache
from flss_runtime.engines import cuda
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_build import (
    MAX_SAMPLES,
    Target,
    _build_error,
    build_engine,
    cache_key,
    parse_target,
)
from flss_runtime.engines.trt_library import is_rtx, label, logger
from flss_runtime.errors import (
    BundleError,
    EngineUnavailable,
    FLSSError,
    GraphNotSupported,
    UsageError,
)

from .conftest import INT64, save, tensor

if TYPE_CHECKING:
    from .conftest import TinyModel

HALF, FLOAT = int(TensorProto.FLOAT16), int(TensorProto.FLOAT)
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
SIZE, LATENT, CLASSES = 16, 32, 10

if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
    pytest.skip("TensorRT-RTX is not installed: pip install 'flss-edge[tensorrt-rtx]'", allow_module_level=True)
RTX = import_tensorrt(rtx=True)


def random(*shape: int, half: bool) -> Any:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float16 if half else np.float32)


def save_encoder(path: Path, half: bool) -> Path:
    """A convolution, a residual block, pooling and both layers of the latent; the exponential in float32."""
    weights = {"w0": random(8, 3, 3, 3, half=half), "w1": random(8, 8, 3, 3, half=half)}
    weights |= {"mean_w": random(8, LATENT, half=half), "logvar_w": random(8, LATENT, half=half)}
    weights |= {"axes": np.array([2, 3]), "bias": random(LATENT, half=half)}
    node, kernel = helper.make_node, {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Cast", ["images"], ["x"], to=HALF if half else FLOAT),
        node("Conv", ["x", "w0"], ["c0"], **kernel),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], **kernel),
        node("Add", ["c1", "r0"], ["sum"]),
        node("Relu", ["sum"], ["r1"]),
        node("ReduceMean", ["r1", "axes"], ["pooled"], keepdims=0),
        node("Gemm", ["pooled", "mean_w", "bias"], ["mean_x"]),
        node("Gemm", ["pooled", "logvar_w", "bias"], ["half_logvar_x"]),
        node("Cast", ["mean_x"], ["mean"], to=FLOAT),
        node("Cast", ["half_logvar_x"], ["half_logvar"], to=FLOAT),
        node("Exp", ["half_logvar"], ["std"]),
    ]
    outputs = [tensor("mean", ["B", LATENT]), tensor("std", ["B", LATENT])]
    save(path, "encoder", nodes, [tensor("images", ["B", 3, SIZE, SIZE])], outputs, weights, opset=18)
    return path


def save_head(path: Path, half: bool) -> Path:
    """The exporter's folded head, float32 outside."""
    weights = {"w": random(LATENT, CLASSES, half=half), "b": random(CLASSES, half=half)}
    weights |= {"one": np.array([1]), "two": np.array([2])}
    node, inside = helper.make_node, HALF if half else FLOAT
    inputs = {"mean": ["B", LATENT], "std": ["B", LATENT], "noise": ["NB", "N", LATENT], "noise_scale": [1]}
    nodes = [node("Cast", [name], [f"{name}_x"], to=inside) for name in inputs]
    nodes += [
        node("Mul", ["std_x", "noise_scale_x"], ["scale"]),
        node("Unsqueeze", ["scale", "two"], ["column"]),
        node("Mul", ["column", "w"], ["scaled"]),
        node("MatMul", ["noise_x", "scaled"], ["spread"]),
        node("Gemm", ["mean_x", "w", "b"], ["centre"]),
        node("Unsqueeze", ["centre", "one"], ["row"]),
        node("Add", ["row", "spread"], ["logits_x"]),
        node("Cast", ["logits_x"], ["logits"], to=FLOAT),
        node("ArgMax", ["logits"], ["choices"], axis=2, keepdims=0),
    ]
    outputs = [tensor("logits", ["B", "N", CLASSES]), tensor("choices", ["B", "N"], INT64)]
    save(path, "head", nodes, [tensor(name, shape) for name, shape in inputs.items()], outputs, weights, opset=18)
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("typed")
    savers = {"encoder": save_encoder, "head": save_head}
    return {
        (role, precision): saver(folder / f"{role}.{precision}.onnx", precision == "fp16")
        for role, saver in savers.items()
        for precision in ("fp32", "fp16")
    }


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ["encoder", "head"])
def test_both_graphs_build_for_every_target(
    graphs: dict[tuple[str, str], Path], cache: EngineCache, role: str, precision: str, target: str
) -> None:
    graph = graphs[role, precision]
    if (target, precision) == ("sm75", "fp32"):
        with pytest.raises(EngineUnavailable, match=f"cannot build {graph.name} for sm75: .*FP32 GEMM") as caught:
            build_engine(RTX, graph, Target(target), cache)
        assert "--precision fp32,fp16" in caught.value.fix
        return
    built = build_engine(RTX, graph, Target(target), cache)
    assert built.precision == precision, "read back from the network's own types"
    assert len(built.content) > 100_000
    assert 0 < built.seconds < 120


@pytest.mark.parametrize("after_s", [0.001, 0.02, 0.1])
def test_an_interrupt_ends_a_build(tiny: TinyModel, cache: EngineCache, after_s: float) -> None:
    """A signal's handler may run in the library's logger, which swallows what it raises."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in range(100):  # some 0.2 s each
                build_engine(RTX, tiny.encoder, Target("sm86"), cache)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_engines_of_two_targets_differ(graphs: dict[tuple[str, str], Path], cache: EngineCache) -> None:
    contents = {build_engine(RTX, graphs["head", "fp32"], Target(name), cache).content for name in ("sm86", "sm120")}
    assert len(contents) == 2


def test_the_runtimes_tiny_graphs_build(tiny: TinyModel, cache: EngineCache) -> None:
    for graph in (tiny.encoder, tiny.head):
        assert build_engine(RTX, graph, Target("sm86"), cache).precision == "fp32"


def test_a_graph_without_heavy_layers_has_no_precision(tmp_path: Path, cache: EngineCache) -> None:
    path = tmp_path / "relu.onnx"
    shape: list[int | str] = ["B", 4]
    save(path, "relu", [helper.make_node("Relu", ["x"], ["y"])], [tensor("x", shape)], [tensor("y", shape)], {})
    assert build_engine(RTX, path, Target("sm86"), cache).precision == "none"


def save_quantized(path: Path, kind: type[np.int8] | type[np.uint8]) -> Path:
    """A matrix product of activations in 8 bits of a kind and of signed weights."""
    node = helper.make_node
    weights = {"scale": np.float32(0.1), "zero": kind(0), "w_zero": np.int8(0), "w_q": np.ones((16, 16), np.int8)}
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_f"]),
        node("DequantizeLinear", ["w_q", "scale", "w_zero"], ["w_f"]),
        node("MatMul", ["x_f", "w_f"], ["y"]),
    ]
    save(path, "quantized", nodes, [tensor("x", ["B", 16])], [tensor("y", ["B", 16])], weights)
    return path


def test_int8_is_read_back_and_never_called_float(tmp_path: Path, cache: EngineCache) -> None:
    """Signed and symmetric, as TensorRT takes it."""
    graph = save_quantized(tmp_path / "int8.onnx", np.int8)
    assert build_engine(RTX, graph, Target("sm86"), cache).precision == "int8"


def test_unsigned_activations_are_refused_in_words(tmp_path: Path, cache: EngineCache) -> None:
    """What CPUs want of int8; TensorRT's parser would read it as signed and saturate half of it."""
    graph = save_quantized(tmp_path / "uint8.onnx", np.uint8)
    with pytest.raises(EngineUnavailable, match="unsigned 8 bits") as caught:
        build_engine(RTX, graph, Target("sm86"), cache)
    assert "--precision" in caught.value.fix


def test_an_operator_that_is_missing_is_named(tmp_path: Path, cache: EngineCache) -> None:
    path, shape = tmp_path / "odd.onnx", ["B", 4]
    nodes = [helper.make_node("Det", ["x"], ["y"])]
    save(path, "odd", nodes, [tensor("x", ["B", 4, 4])], [tensor("y", shape[:1])], {})
    with pytest.raises(EngineUnavailable, match=r"has no way to run odd\.onnx: Det"):
        build_engine(RTX, path, Target("sm86"), cache)


@pytest.mark.parametrize(
    ("said", "about_the_graph"),
    [
        ("[l2tc.cpp] FP32 GEMM is not supported on this CUDA device", True),
        ("Could not find any implementation for node conv_1", True),
        ("Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)", False),
        ("Error Code 1: Cuda Runtime (out of memory)", False),
    ],
)
def test_a_machine_that_fails_says_nothing_about_the_graph(said: str, about_the_graph: bool) -> None:
    """Only the former lets the float16 head take the float32 one's place."""
    error = _build_error(import_tensorrt(rtx=True), Path("head.onnx"), Target("sm75"), deque([said]))
    assert isinstance(error, GraphNotSupported) == about_the_graph and error.exit_code == 6
    assert ("fp32,fp16" in error.fix) == ("GEMM" in said)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_what_is_no_graph_is_a_bundle_error(tmp_path: Path, cache: EngineCache, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot load .*bad\.onnx"):
        build_engine(RTX, path, Target("sm86"), cache)
    with pytest.raises(BundleError, match="does not exist"):
        cache_key(RTX, tmp_path / "absent.onnx", Target("sm86"))


def test_half_a_graph_is_refused(tiny: TinyModel, tmp_path: Path, cache: EngineCache) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(tiny.encoder.read_bytes()[:500])
    with pytest.raises(FLSSError):
        build_engine(RTX, path, Target("sm86"), cache)


@pytest.mark.parametrize("text", ["sm86 ", "86", "sm90", "SM86", "current", ""])
def test_unknown_targets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="builds for no target") as caught:
        parse_target(RTX, text)
    assert "sm75, sm80, sm86, sm89, sm120" in caught.value.fix


def test_the_key_of_a_target_holds_on_the_target(graphs: dict[tuple[str, str], Path]) -> None:
    """What was built for sm86 without a GPU has to be found on an sm86, whatever its model and driver."""
    graph = graphs["encoder", "fp32"]
    here = Target("sm86", cuda.Device("NVIDIA GeForce RTX 3080", "sm86", "13.0"))
    assert cache_key(RTX, graph, Target("sm86")) == cache_key(RTX, graph, here)
    assert cache_key(RTX, graph, Target("sm86")) != cache_key(RTX, graph, Target("sm89"))
    key = cache_key(RTX, graph, here)
    assert (key.library, key.target, key.driver) == (label(RTX), "sm86", "any")
    assert isinstance(key, CacheKey)
    assert f"{MAX_SAMPLES} samples" in key.profile


def test_a_build_is_cached_and_another_target_says_why_it_is_built(
    graphs: dict[tuple[str, str], Path], cache: EngineCache
) -> None:
    graph, lines = graphs["head", "fp16"], []
    for name in ("sm86", "sm86", "sm89"):
        target = parse_target(RTX, name)
        key = cache_key(RTX, graph, target)
        cache.obtain(key, graph.name, lambda target=target: build_engine(RTX, graph, target, cache), say=lines.append)
    version = label(RTX)
    assert lines[0] == f"engine for head.fp16.onnx: none for {version} on sm86 yet, building it"
    assert lines[1].startswith(
        f"engine for head.fp16.onnx: built for {version} on sm86, found {version} on sm89: rebuilding, about "
    )
    assert len(lines) == 2
    assert [entry.key.target for entry in cache.entries()] == ["sm86", "sm89"]


def test_the_librarys_words_stay_off_the_terminal(
    graphs: dict[tuple[str, str], Path], cache: EngineCache, capfd: pytest.CaptureFixture[str]
) -> None:
    build_engine(RTX, graphs["head", "fp32"], Target("sm86"), cache)
    with pytest.raises(EngineUnavailable):
        build_engine(RTX, graphs["head", "fp32"], Target("sm75"), cache)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert logger(RTX) is logger(RTX), "the library keeps the first logger for the life of the process"
    assert is_rtx(RTX)
