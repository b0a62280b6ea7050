"""What loading an engine does where it fails: without a driver it always does, and the library says why."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flss_runtime.engine_cache import EngineCache
from flss_runtime.engines.cuda import find_device
from flss_runtime.engines.trt import import_tensorrt
from flss_runtime.engines.trt_build import Target, build_engine, load_timings, read_timings
from flss_runtime.engines.trt_library import logger
from flss_runtime.engines.trt_plan import ForeignEngine, Plan, is_foreign
from flss_runtime.errors import EngineUnavailable

if TYPE_CHECKING:
    from .conftest import TinyModel

needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")),
    reason="TensorRT-RTX is not installed: pip install 'flss-edge[tensorrt-rtx]'",
)


@pytest.mark.parametrize(
    ("message", "foreign"),
    [
        ("Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, expecting "
         "compute 8.9 got compute 8.6, please rebuild.)", True),
        ("6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.0.0 got "
         "8.0.1, please rebuild.", True),
        ("Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version "
         "tag does not match. Note: Current Version: 237, Serialized Engine Version: 239)", True),
        ("Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)", False),
        ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", False),
        ("Error Code 4: Internal Error (Engine deserialization failed.)", False),
    ],
)  # fmt: skip
def test_only_what_another_build_mends_is_built_again(message: str, foreign: bool) -> None:
    assert is_foreign([message]) is foreign
    assert is_foreign(["something before", message, "Error Code 4: Internal Error"]) is foreign


@needs_rtx
def test_an_engine_that_is_none_is_foreign_and_a_good_one_without_a_driver_is_not(
    tiny: TinyModel, tmp_path: Path
) -> None:
    try:
        find_device()
    except EngineUnavailable:
        pass
    else:
        pytest.skip("a GPU is here: see tests/gpu")
    library = import_tensorrt(rtx=True)
    with pytest.raises(ForeignEngine, match=r"does not load the engine: .*Serialization"):
        Plan(library, b"no engine " * 1000, tmp_path / "compiled.bin")
    content = build_engine(library, tiny.head, Target("sm86"), EngineCache(tmp_path)).content
    with pytest.raises(EngineUnavailable, match=r"does not load the engine: .*driver") as caught:
        Plan(library, content, tmp_path / "compiled.bin")
    assert not isinstance(caught.value, ForeignEngine)
    assert "nvidia-smi" in caught.value.fix


@needs_rtx
@pytest.mark.filterwarnings("ignore:.*[Tt]iming cache:DeprecationWarning")
@pytest.mark.parametrize("content", [b"", b"no timings"])
def test_timings_that_are_none_do_not_stop_a_build(content: bytes) -> None:
    """TensorRT-RTX has the same calls, and ignores what they say."""
    library = import_tensorrt(rtx=True)
    config = library.Builder(logger(library)).create_builder_config()
    assert isinstance(read_timings(config), bytes)
    load_timings(config, content)
    assert isinstance(read_timings(config), bytes)
