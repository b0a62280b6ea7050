"""`gpu_checks.py` under pytest (make test-gpu), over a bundle exported here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.bundle import load_bundle
from flss_runtime.engines.cuda import Device, find_device
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_library import is_rtx, label
from flss_runtime.errors import EngineUnavailable

needs_gpu = pytest.mark.gpu

with pytest.MonkeyPatch.context() as patch:  # the checks are a script, whose neighbours are found beside it
    patch.syspath_prepend(Path(__file__).parent)
    checks: Any = importlib.import_module("gpu_checks")


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from flss_edge.cli import main

    checkpoint: Path = request.getfixturevalue("tiny_checkpoint")
    path = tmp_path_factory.mktemp("gpu") / "tiny.bundle"
    assert main(["export", str(checkpoint), "-o", str(path), "--precision", "fp32,fp16"]) == 0
    return load_bundle(path)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def case(request: pytest.FixtureRequest) -> Any:
    try:
        device, library = find_device(), import_tensorrt()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    if (device.capability, is_rtx(library), request.param) == ("sm75", True, "fp32"):
        pytest.skip(f"{label(library)} has no float32 matrix products for Turing")
    with checks.private_cache():
        yield checks.Case(request.getfixturevalue("bundle"), request.param)


@needs_gpu
@pytest.mark.parametrize("name", checks.CHECKS)
def test_on_the_gpu(case: Any, name: str) -> None:
    print(checks.CHECKS[name](case))


def test_the_users_cache_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flss_runtime.engine_cache import CACHE_VARIABLE, cache_root

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with checks.private_cache() as cache:
        assert cache.root == cache_root() != tmp_path
        (cache.root / "file").touch()
    assert cache_root() == tmp_path
    assert not cache.root.exists()
    monkeypatch.delenv(CACHE_VARIABLE)
    with checks.private_cache() as cache:
        assert cache.root == cache_root()
    assert cache_root() != cache.root


def test_the_engine_that_is_damaged_is_this_machines(tiny_bundle: Path, tmp_path: Path) -> None:
    from flss_runtime.engine_cache import Built, EngineCache
    from flss_runtime.engines.trt_build import Target, cache_key

    try:
        library = import_tensorrt()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    bundle, cache, device = load_bundle(tiny_bundle), EngineCache(tmp_path), Device("GPU", "sm86", "13.0")
    head = bundle.graph("head")
    keys = [cache_key(library, head, Target(name, Device("GPU", name, "13.0"))) for name in ("sm80", "sm86", "sm89")]
    for key in keys[::2]:
        cache.store(key, head.name, Built(b"another machine's", "fp32", 1.0))
    with pytest.raises(AssertionError, match="no engine of the head"):
        checks.head_entry(bundle, library, device, cache)
    stored = cache.store(keys[1], head.name, Built(b"this one's", "fp32", 1.0))
    assert checks.head_entry(bundle, library, device, cache) == stored


@needs_gpu
def test_torch_as_a_cuda_graph_decides_as_the_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Checked by the benchmark itself, which exits 1 otherwise."""
    torch = pytest.importorskip("torch", reason="needs the extra train")
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    script, output = Path(__file__).parents[2] / "benchmarks/torch_inference.py", tmp_path / "torch.json"
    sizes = ["--batches", "1,8", "--samples", "1,100", "--precisions", "fp32,tf32,fp16"]
    command = [sys.executable, str(script), str(tiny_checkpoint), "--device", "cuda", *sizes, "--quick"]
    done = subprocess.run([*command, "--allow-invalid", "-o", str(output)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for row in json.loads(output.read_text())["results"]["cells"]:
        assert row["failed"] is None, row["detail"]
        assert {arm["way"] for arm in row["arms"]} == {"eager", "graph"}
        assert all(arm["kernels"] for arm in row["arms"]), "the profiler saw no kernels"
        assert any("fused_at_best" in cost for cost in row["overhead"])
