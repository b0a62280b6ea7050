"""What `build_for` finds out about a bundle's graphs before it builds them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flss_runtime.bundle import Bundle
from flss_runtime.engine_cache import CACHE_VARIABLE, EngineCache
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_build import Target, build_engine, cache_key
from flss_runtime.errors import BundleError, EngineUnavailable, GraphNotSupported, OutputError
from flss_runtime.preparation import build_for

from .bundles import manifest_fields, write_tiny
from .disks import no_room
from .reduced import save_fp16, write_reduced

if TYPE_CHECKING:
    from .conftest import TinyModel

if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
    pytest.skip("TensorRT-RTX is not installed: pip install 'flss-edge[tensorrt-rtx]'", allow_module_level=True)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def build(bundle: Bundle, precision: str, target: str, cache: EngineCache, **options: Any) -> list[str]:
    """Return the lines that were said."""
    lines: list[str] = []
    build_for(bundle, precision, [target], cache=cache, say=lines.append, **options)
    return lines


def test_a_graph_that_is_not_in_the_precision_it_is_listed_in(
    tiny: TinyModel, tmp_path: Path, cache: EngineCache
) -> None:
    bundle = write_reduced(tmp_path / "a.bundle", tiny, tiny.encoder, "fp16")
    with pytest.raises(EngineUnavailable, match="runs the fp16 graph of the encoder in fp32") as caught:
        build(bundle, "fp16", "sm86", cache)
    assert caught.value.exit_code == 6 and cache.entries() == [], "it is known before the build"
    assert any("runs the fp16 graph" in line for line in build(bundle, "fp16", "sm86", cache, strict=False))
    with pytest.raises(EngineUnavailable, match="runs the fp16 graph of the encoder in fp32"):
        build(bundle, "fp16", "sm86", cache)  # from the cache too


def test_a_float16_graph_listed_as_float32(tiny: TinyModel, tmp_path: Path, cache: EngineCache) -> None:
    bundle = write_tiny(tmp_path / "a", tiny, files={"encoder.onnx": save_fp16(tmp_path / "half.onnx", tiny)})
    with pytest.raises(EngineUnavailable, match="runs the fp32 graph of the encoder in fp16"):
        build(bundle, "fp32", "sm86", cache)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (lambda tiny: {"encoder.onnx": tiny.head}, "the encoder graph maps"),
        (lambda tiny: {"head.onnx": tiny.encoder}, "the head graph maps"),
    ],
    ids=["head as encoder", "encoder as head"],
)
def test_a_graph_of_another_role(
    tiny: TinyModel, tmp_path: Path, cache: EngineCache, files: Callable[[Any], dict[str, Path]], said: str
) -> None:
    bundle = write_tiny(tmp_path / "a.bundle", tiny, files=files(tiny))
    for _ in range(2):
        with pytest.raises(BundleError, match=said) as caught:
            build(bundle, "fp32", "sm86", cache)
        assert caught.value.exit_code == 3
        library, target = import_tensorrt(rtx=True), Target("sm86")  # now as `open_engine` leaves it behind
        for graph in (bundle.graph("encoder"), bundle.graph("head")):
            cache.store(cache_key(library, graph, target), graph.name, build_engine(library, graph, target, cache))


def test_a_gate_that_is_an_encoder(tiny: TinyModel, cascade_path: Path, tmp_path: Path, cache: EngineCache) -> None:
    from flss_runtime.bundle import load_bundle

    bundle = load_bundle(cascade_path)
    assert build(bundle, "fp32", "sm86", cache)
    spoilt = tmp_path / "gate.onnx"
    spoilt.write_bytes(tiny.encoder.read_bytes())
    graphs = {**bundle.manifest["graphs"], "gate": "gate.onnx"}
    manifest = {**manifest_fields(tiny), **{key: bundle.manifest[key] for key in ("precision", "gate_checkpoint")}}
    files = {name: bundle.path / name for name in bundle.manifest["files"]} | {"gate.onnx": spoilt}
    other = write_tiny(tmp_path / "b.bundle", tiny, manifest={**manifest, "graphs": graphs}, files=files)
    with pytest.raises(BundleError, match="the gate graph maps"):
        build(other, "fp32", "sm86", cache)


def test_turing_is_sent_to_the_float16_that_the_bundle_has(tiny: TinyModel, tmp_path: Path, cache: EngineCache) -> None:
    half = save_fp16(tmp_path / "half.onnx", tiny)
    with pytest.raises(GraphNotSupported, match="FP32 GEMM") as caught:
        build(write_reduced(tmp_path / "a.bundle", tiny, half, "fp16"), "fp32", "sm75", cache)
    assert "--precision fp16" in caught.value.fix and "export" not in caught.value.fix
    with pytest.raises(GraphNotSupported, match="FP32 GEMM") as caught:
        build(write_tiny(tmp_path / "b.bundle", tiny), "fp32", "sm75", cache)
    assert "export with --precision fp32,fp16" in caught.value.fix


def test_a_full_disk_is_known_before_the_build(tiny: TinyModel, tmp_path: Path, cache: EngineCache) -> None:
    bundle, lines = write_tiny(tmp_path / "a.bundle", tiny), []
    with no_room(1000), pytest.raises(OutputError, match="cannot write to the cache") as caught:
        build_for(bundle, "fp32", ["sm86"], cache=cache, say=lines.append)
    assert CACHE_VARIABLE in caught.value.fix
    assert len(lines) == 1 and "building it" not in lines[0]
