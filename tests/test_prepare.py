"""`flss-edge prepare`: engines for GPUs that are not here, and what it does where nothing needs building."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.bundle import load_bundle
from flss_runtime.bundle_engines import open_bundle_engines
from flss_runtime.engine_cache import CACHE_VARIABLE, ENGINE_NAME, Built, CacheKey, EngineCache
from flss_runtime.engines import auto
from flss_runtime.engines.cuda import Device, find_device
from flss_runtime.errors import EngineUnavailable
from flss_runtime.preparation import Prepared, build_for, opens_here, verify_prepared

from .runtime.bundles import edit_manifest
from .runtime.disks import no_room

needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")),
    reason="TensorRT-RTX is not installed: pip install 'flss-edge[tensorrt-rtx]'",
)
Run = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return EngineCache()


def without_gpu() -> None:
    try:
        find_device()
    except EngineUnavailable:
        return
    pytest.skip("a GPU is here: see tests/gpu")


@needs_rtx
def test_real_graphs_are_built_for_gpus_that_are_not_here(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    without_gpu()
    targets = "sm80,sm86,sm89,sm120"
    done = run("prepare", tiny_bundle, "--engine", "trt", "--target", targets, "--format", "json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    rows = document["results"]["engines"]
    assert [(row["role"], row["target"]) for row in rows] == [
        (role, target) for target in targets.split(",") for role in ("encoder", "head")
    ]
    assert {row["precision"] for row in rows} == {"fp32"}
    assert {row["verdict"] for row in rows} == {"not verified"}
    assert {row["state"] for row in rows} == {"built"}
    assert document["results"]["verification"] is None
    assert "built, not verified: no GPU here" in done.err
    assert "a second or two a graph" in done.err, "how long it may take"
    assert "encoder.onnx for sm86: built in " in done.err, "how long it took"
    assert len(cache.entries()) == 8
    assert all(entry.load() is not None and entry.verdict() is None for entry in cache.entries())


@needs_rtx
def test_real_graphs_in_float16_build_for_every_target_and_turing_gets_the_float16_head(
    tiny_checkpoint: Path, tmp_path: Path, run: Run, cache: EngineCache
) -> None:
    without_gpu()
    bundle = tmp_path / "half.bundle"
    exported = run("export", tiny_checkpoint, "-o", bundle, "--precision", "fp32,fp16", "--sampling", "logit")
    assert exported.code == 0, exported.err
    targets = "sm75,sm80,sm86,sm89,sm120"
    done = run("prepare", bundle, "--precision", "fp16", "--target", targets, "--format", "json")
    assert done.code == 0, done.err
    built = {(row["target"], row["graph"]): row["precision"] for row in json.loads(done.out)["results"]["engines"]}
    assert built == {
        **{(target, "encoder.fp16.onnx"): "fp16" for target in targets.split(",")},
        **{(target, "head.onnx"): "fp32" for target in targets.split(",")[1:]},
        **{(target, "logit.fp16.onnx"): "fp16" for target in targets.split(",")[1:]},
        ("sm75", "head.fp16.onnx"): "fp16",
    }
    assert "no logit sampling on sm75: " in done.err and "no logit sampling on sm80" not in done.err
    assert "the float32 head cannot be built for sm75: head.fp16.onnx takes its place" in done.err


@needs_rtx
def test_what_is_there_is_not_built_again_unless_asked(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    without_gpu()
    prepare = ("prepare", tiny_bundle, "--target", "sm86")
    assert run(*prepare).code == 0
    again = run(*prepare, "--format", "json")
    assert {row["state"] for row in json.loads(again.out)["results"]["engines"]} == {"in the cache"}
    assert "in the cache already" in again.err
    assert "cached, not verified: no GPU here" in again.err and "built, not verified" not in again.err
    stamps = {entry.folder: (entry.folder / ENGINE_NAME).stat().st_mtime_ns for entry in cache.entries()}
    rebuilt = run(*prepare, "--rebuild", "--format", "json")
    assert {row["state"] for row in json.loads(rebuilt.out)["results"]["engines"]} == {"built"}
    assert "building again, as asked" in rebuilt.err
    assert all((folder / ENGINE_NAME).stat().st_mtime_ns > stamp for folder, stamp in stamps.items())
    other = run(*prepare[:-1], "sm89")
    assert "built for tensorrt_rtx" in other.err
    assert "on sm86, found tensorrt_rtx" in other.err
    assert "rebuilding, about" in other.err


@needs_rtx
def test_turing_needs_float16(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    refused = run("prepare", tiny_bundle, "--target", "sm75")
    assert refused.code == 6
    assert "FP32 GEMM is not supported" in refused.err
    assert "export with --precision fp32,fp16" in refused.err
    absent = run("prepare", tiny_bundle, "--target", "sm75", "--precision", "fp16")
    assert absent.code == 6
    assert "not in fp16" in absent.err
    assert cache.entries() == []


@needs_rtx
@pytest.mark.parametrize(
    ("target", "message"), [("sm99", "builds for no target 'sm99'"), ("sm86,", "empty name"), ("", "empty name")]
)
def test_bad_targets(tiny_bundle: Path, run: Run, cache: EngineCache, target: str, message: str) -> None:
    done = run("prepare", tiny_bundle, "--target", target)
    assert (done.code, message in done.err) == (2, True)


def test_without_gpu_and_target(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    without_gpu()
    done = run("prepare", tiny_bundle)
    assert done.code == 6
    assert "fix: " in done.err


@needs_rtx
def test_a_cache_that_cannot_be_written_stops_it_before_the_build(
    tiny_bundle: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    done = run("prepare", tiny_bundle, "--target", "sm86")
    assert done.code == 7
    assert CACHE_VARIABLE in done.err
    assert "built in" not in done.err


@needs_rtx
def test_a_full_disk_stops_it_before_the_build(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    with no_room(10_000):
        done = run("prepare", tiny_bundle, "--target", "sm86")
    assert done.code == 7
    assert CACHE_VARIABLE in done.err
    assert "building it" not in done.err


def test_a_verdict_that_cannot_be_kept_is_shown_all_the_same(
    tiny_bundle: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    done = run("prepare", tiny_bundle, "--engine", "ort", "--format", "json")
    assert done.code == 7
    assert json.loads(done.out)["results"]["verification"]["verdict"] == "inconclusive"
    assert "cannot write to the cache" in done.err and CACHE_VARIABLE in done.err


def test_auto_names_a_damaged_graph_as_any_engine_does(
    tiny_bundle: Path, run: Run, cache: EngineCache, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))
    half = (bundle / "encoder.onnx").read_bytes()[:500]
    (bundle / "encoder.onnx").write_bytes(half)
    sealed = {"sha256": hashlib.sha256(half).hexdigest(), "size": len(half)}
    edit_manifest(bundle, lambda manifest: manifest["files"]["encoder.onnx"].update(sealed))
    done = run("prepare", bundle, "--engine", "auto")
    assert done.code == 3, done.err
    assert "export the bundle again" in done.err


def test_auto_is_told_the_precision(tiny_checkpoint: Path, tmp_path: Path, run: Run, cache: EngineCache) -> None:
    bundle = tmp_path / "half.bundle"
    assert run("export", tiny_checkpoint, "-o", bundle, "--precision", "fp32,fp16").code == 0
    done = run("prepare", bundle, "--engine", "auto", "--precision", "fp16")
    if len(auto._present()) == 1:
        pytest.skip("one engine is here: there is nothing to choose")
    assert "none computes in fp16 (" in done.err or "left out, because not in fp16: ort in fp32" in done.err
    assert (done.code == 6) == ("none computes in fp16 (" in done.err), done.err


def test_an_engine_that_builds_nothing_is_opened_and_verified(
    tiny_bundle: Path, run: Run, cache: EngineCache, tmp_path: Path
) -> None:
    bundle = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle, bundle)
    done = run("prepare", bundle, "--engine", "ort", "--format", "json")
    document = json.loads(done.out)
    verification = document["results"]["verification"]
    # 64 synthetic images cannot show that fewer than 0.5 % of decisions change.
    assert (done.code, verification["verdict"]) == (1, "inconclusive"), done.err
    assert [row["verdict"] for row in document["results"]["engines"]] == ["inconclusive"] * 2
    assert "ort builds nothing; it was opened and verified" in done.err
    assert cache.entries() == [], "no engine was built"
    entries = cache.judged()
    assert [entry.graph_name for entry in entries] == ["encoder.onnx", "head.onnx"]
    assert all((entry.verdict() or {})["bundle"] == verification["bundle"] for entry in entries)
    inspected = run("inspect", bundle, "--format", "json")
    assert [verdict["verdict"] for verdict in json.loads(inspected.out)["results"]["verdicts"]] == ["inconclusive"]
    for option in (("--target", "sm86"), ("--rebuild",)):
        refused = run("prepare", bundle, "--engine", "ort", *option)
        assert (refused.code, "make no sense with --engine ort" in refused.err) == (2, True)


def test_auto_is_resolved_to_the_engine_that_it_chooses(tiny_bundle: Path, run: Run, cache: EngineCache) -> None:
    done = run("prepare", tiny_bundle, "--engine", "auto", "--format", "json")
    assert done.code == 1, done.err  # inconclusive, as above
    document = json.loads(done.out)
    chosen = document["results"]["verification"]["engine"]
    assert chosen in ("ort", "openvino", "ort:cuda") and document["config"]["engine"] == chosen
    assert f"{chosen} builds nothing" in done.err


def test_another_librarys_verdict_is_not_kept_beside_an_engine(tiny_bundle: Path, cache: EngineCache) -> None:
    """With TensorRT and TensorRT-RTX installed, one may have built and the other answered."""
    bundle = load_bundle(tiny_bundle)
    graph = bundle.graph("encoder", "fp32")
    key = CacheKey(bundle.manifest["files"][graph.name]["sha256"], "tensorrt_rtx 1.7.1.116", "sm86")
    built = Prepared("encoder", graph, cache.store(key, graph.name, Built(b"engine", "fp32", 1.0)), True)
    with pytest.raises(
        EngineUnavailable, match=r"onnxruntime .* was verified, not the engines built with tensorrt_rtx"
    ):
        verify_prepared(bundle, "ort", "fp32", [built])
    assert built.entry.verdict() is None
    here = Device("NVIDIA GeForce RTX 3080", "sm86", "13.0")
    assert opens_here(built, here, "tensorrt_rtx 1.7.1.116")
    assert not opens_here(built, here, "tensorrt 10.16.0")
    assert not opens_here(built, Device("NVIDIA GeForce RTX 4090", "sm89", "13.0"), "tensorrt_rtx 1.7.1.116")


def test_trt_has_no_int8_whatever_is_installed(tiny_bundle: Path, cache: EngineCache) -> None:
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(EngineUnavailable, match="unsigned"):
        build_for(bundle, "int8", ["sm86"], say=print)
    with pytest.raises(EngineUnavailable, match="unsigned"):
        open_bundle_engines(bundle, "trt", precision="int8")
    with pytest.raises(EngineUnavailable, match="not in int8"):
        open_bundle_engines(bundle, "ort", precision="int8")
