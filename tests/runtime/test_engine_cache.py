from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flss_runtime.engine_cache import (
    ENGINE_NAME,
    KEY_NAME,
    VERDICT_NAME,
    Built,
    CacheKey,
    EngineCache,
)

KEY = CacheKey("a" * 64, "tensorrt 10.3.0", "sm86 (NVIDIA GeForce RTX 3080)", "CUDA 12.6", "1 and many")
BUILT = Built(b"engine" * 1000, "fp32", 42.4)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def never() -> Built:
    raise AssertionError("it was built although it was there")


def test_an_engine_is_found_again(cache: EngineCache) -> None:
    assert cache.entry(KEY) is None
    assert cache.entries() == []
    stored = cache.store(KEY, "encoder.onnx", BUILT)
    assert cache.entry(KEY) == stored == cache.entries()[0]
    assert stored.load() == BUILT
    assert (stored.size, stored.graph_name) == (6000, "encoder.onnx")
    facts = json.loads((stored.folder / KEY_NAME).read_text())
    assert facts["key"]["library"] == "tensorrt 10.3.0", "for people"
    assert sorted(path.name for path in stored.folder.iterdir()) == [ENGINE_NAME, KEY_NAME]
    if os.name == "posix":
        assert cache.root.stat().st_mode & 0o077 == 0, "an engine is code: nobody else may write it"


@pytest.mark.parametrize("field", ["graph", "library", "target", "driver", "profile"])
def test_every_part_of_the_key_counts(cache: EngineCache, field: str) -> None:
    cache.store(KEY, "encoder.onnx", BUILT)
    assert cache.entry(replace(KEY, **{field: "other"})) is None


def test_an_engine_is_built_once(cache: EngineCache) -> None:
    lines: list[str] = []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lines.append) == BUILT
    assert cache.obtain(KEY, "encoder.onnx", never, say=lines.append) == BUILT
    assert lines == [f"engine for encoder.onnx: none for {KEY} yet, building it"]


def test_a_foreign_engine_is_rebuilt_and_the_reason_is_named(cache: EngineCache) -> None:
    cache.store(KEY, "encoder.onnx", BUILT)
    lines: list[str] = []
    newer = replace(KEY, library="tensorrt 11.4.0", driver="CUDA 13.0")
    cache.obtain(newer, "encoder.onnx", lambda: replace(BUILT, content=b"new"), say=lines.append)
    assert lines == [
        "engine for encoder.onnx: built for tensorrt 10.3.0 on sm86 (NVIDIA GeForce RTX 3080), driver CUDA 12.6, "
        "found tensorrt 11.4.0 on sm86 (NVIDIA GeForce RTX 3080), driver CUDA 13.0: rebuilding, about 42 s"
    ]
    assert cache.obtain(KEY, "encoder.onnx", never) == BUILT, "the other machine's engine stays"
    lines.clear()
    cache.obtain(replace(KEY, profile="wider"), "encoder.onnx", lambda: BUILT, say=lines.append)
    assert "another profile" in lines[0]


@pytest.mark.parametrize("damage", [b"", b"engine", b"ENGINE" * 1000])
def test_a_damaged_engine_is_rebuilt(cache: EngineCache, damage: bytes) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    (entry.folder / ENGINE_NAME).write_bytes(damage)
    assert entry.load() is None
    lines: list[str] = []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lines.append) == BUILT
    assert lines == ["engine for encoder.onnx: the stored file is damaged: rebuilding, about 42 s"]
    assert cache.obtain(KEY, "encoder.onnx", never) == BUILT


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": 1}', '{"format": 9}', '{"format": 1, "key": {"graph": "a"}}', "\xff"]
)
def test_unreadable_facts_are_no_entry(cache: EngineCache, content: str) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    (entry.folder / KEY_NAME).write_text(content, encoding="latin-1")
    assert cache.entry(KEY) is None
    assert cache.entries() == []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lambda line: None) == BUILT


@pytest.mark.parametrize("name", [ENGINE_NAME, KEY_NAME, VERDICT_NAME])
def test_a_folder_in_the_place_of_a_file_is_damage_and_goes(cache: EngineCache, name: str) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    (entry.folder / name).unlink(missing_ok=True)
    (entry.folder / name).mkdir()
    (entry.folder / name / "file").touch()
    if name == VERDICT_NAME:
        assert entry.verdict() is None
        entry.store_verdict({"verdict": "passed"})
        assert (entry.verdict() or {})["verdict"] == "passed"
        return
    lines: list[str] = []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lines.append) == BUILT
    said = {ENGINE_NAME: "the stored file is damaged", KEY_NAME: "what is stored cannot be read"}[name]
    assert len(lines) == 1 and said in lines[0] and "rebuilding" in lines[0]
    assert cache.obtain(KEY, "encoder.onnx", never) == BUILT


def test_an_entry_of_another_key_is_not_believed(cache: EngineCache) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    other = replace(KEY, graph="b" * 64)
    os.rename(entry.folder, cache.folder(other))
    assert cache.entry(other) is None


def test_a_verdict_goes_with_its_engine(cache: EngineCache) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    assert entry.verdict() is None
    entry.store_verdict({"verdict": "passed", "bundle": "c" * 64})
    verdict = cache.entries()[0].verdict()
    assert verdict is not None
    assert (verdict["verdict"], verdict["engine_sha256"]) == ("passed", entry.sha256)
    rebuilt = cache.store(KEY, "encoder.onnx", replace(BUILT, content=b"new"))
    assert rebuilt.verdict() is None, "nobody verified the new one"


def test_a_verdict_on_another_engine_is_not_believed(cache: EngineCache) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    entry.store_verdict({"verdict": "passed"})
    of_it = (entry.folder / VERDICT_NAME).read_text()
    rebuilt = cache.store(KEY, "encoder.onnx", replace(BUILT, content=b"new"))
    (entry.folder / VERDICT_NAME).write_text(of_it)  # by a process that verified the engine before
    assert rebuilt.verdict() is None
    assert cache.judged() == []


def test_a_verdict_without_an_engine_is_no_engine(cache: EngineCache) -> None:
    bare = cache.store_bare(replace(KEY, library="onnxruntime 1.32.0"), "encoder.onnx", "fp32")
    assert cache.judged() == [], "nothing was said yet"
    bare.store_verdict({"verdict": "passed"})
    assert cache.entries() == []
    engine = cache.store(KEY, "encoder.onnx", BUILT)
    engine.store_verdict({"verdict": "failed"})
    assert [(entry.verdict() or {})["verdict"] for entry in cache.judged()] == ["passed", "failed"]


def test_only_the_same_library_tells_how_long_a_build_takes(cache: EngineCache) -> None:
    for library in ("onnxruntime 1.32.0", "tensorrt_rtx 1.7.1"):
        cache.store(replace(KEY, library=library), "encoder.onnx", BUILT)
    lines: list[str] = []
    cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lines.append)
    assert lines == [f"engine for encoder.onnx: none for {KEY} yet, building it"]


def test_rebuilding_when_asked(cache: EngineCache) -> None:
    cache.store(KEY, "encoder.onnx", BUILT)
    new = replace(BUILT, content=b"new")
    lines: list[str] = []
    assert cache.obtain(KEY, "encoder.onnx", lambda: new, say=lines.append, rebuild=True) == new
    assert lines == ["engine for encoder.onnx: building again, as asked, about 42 s"]
    assert cache.obtain(KEY, "encoder.onnx", never) == new


def test_a_failed_build_leaves_nothing(cache: EngineCache) -> None:
    def fail() -> Built:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.obtain(KEY, "encoder.onnx", fail, say=lambda line: None)
    assert cache.entries() == []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lambda line: None) == BUILT


def test_builds_are_announced_on_the_log(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Callable[[], Built] = lambda: BUILT  # noqa: E731
    cache.obtain(KEY, "encoder.onnx", build)
    assert [record.name for record in caplog.records] == ["flss_runtime"]
    assert "building it" in caplog.text


@pytest.mark.parametrize("damage", [{"graph_name": 5}, {"seconds": "soon"}, {"size": None}, {"precision": []}])
def test_a_key_of_other_types_is_no_entry(tmp_path: Path, damage: dict[str, object]) -> None:
    cache = EngineCache(tmp_path / "cache")
    key = CacheKey("a" * 64, "library 1", "sm86")
    cache.store(key, "encoder.onnx", Built(b"engine", "fp32", 1.0))
    assert [entry.key for entry in cache.entries()] == [key]
    place = cache.folder(key) / "key.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **damage}))
    assert list(cache.entries()) == []
    place.write_text("[" * 100_000)
    assert list(cache.entries()) == []
