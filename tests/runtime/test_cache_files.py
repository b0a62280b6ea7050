"""The cache on a disk that is full, read-only, somebody else's or no directory at all."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from flss_runtime.cache_files import CACHE_VARIABLE, cache_root, check_private, read_blob, write_blob
from flss_runtime.engine_cache import Built, CacheKey, EngineCache
from flss_runtime.errors import OutputError

from .disks import let_all_enter, no_room, unprivileged

KEY = CacheKey("a" * 64, "tensorrt 10.3.0", "sm86 (NVIDIA GeForce RTX 3080)", "CUDA 12.6", "1 and many")
BUILT = Built(b"engine" * 1000, "fp32", 42.4)
on_posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def never() -> Built:
    raise AssertionError("it was built although it was there")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / "named"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_root() == tmp_path / "xdg" / "flss-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / ".cache" / "flss-edge"


@pytest.mark.parametrize("place", ["sub/timing.bin", "timing.bin"])
def test_what_libraries_keep_is_optional(tmp_path: Path, place: str) -> None:
    assert read_blob(tmp_path / place) == b""
    write_blob(tmp_path / place, b"123")
    assert read_blob(tmp_path / place) == b"123"
    (tmp_path / "file").touch()
    write_blob(tmp_path / "file" / "timing.bin", b"123")


@on_posix
@pytest.mark.parametrize("place", ["root", "engines", "engine"])
def test_an_engine_that_anybody_could_have_put_there_is_not_loaded(tmp_path: Path, place: str) -> None:
    cache = EngineCache(tmp_path / "cache")
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    folder = {"root": cache.root, "engines": entry.folder.parent, "engine": entry.folder}[place]
    folder.chmod(0o777)
    with pytest.raises(OutputError, match="everybody may write") as caught:
        cache.obtain(KEY, "encoder.onnx", lambda: BUILT)
    assert f"chmod go-w {folder}" in caught.value.fix
    folder.chmod(0o700)
    assert cache.obtain(KEY, "encoder.onnx", lambda: Built(b"another", "fp32", 1.0)) == BUILT


@on_posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can give a folder away")
def test_an_engine_of_another_user_is_not_loaded(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.store(KEY, "encoder.onnx", BUILT)
    os.chown(cache.root, 65534, -1)
    with pytest.raises(OutputError, match="belongs to another user") as caught:
        cache.obtain(KEY, "encoder.onnx", lambda: BUILT)
    assert CACHE_VARIABLE in caught.value.fix


@on_posix
def test_a_folder_of_the_group_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o770)
    with caplog.at_level(logging.WARNING, "flss_runtime"):
        check_private(tmp_path, tmp_path / "absent")
        check_private(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"its group may put code into the cache {tmp_path}: chmod go-w {tmp_path}"
    ]


def test_a_full_disk_costs_the_cache_and_not_the_engine(cache: EngineCache) -> None:
    lines: list[str] = []
    with no_room(2000):
        with pytest.raises(OutputError, match="cannot write"):
            cache.store(KEY, "encoder.onnx", BUILT)
        assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lines.append) == BUILT
    assert len(lines) == 2
    assert "cannot be kept, so it will be built again next time" in lines[1]
    assert cache.entry(KEY) is None
    assert not list(cache.folder(KEY).glob(".tmp-*")), "half an engine must not fill the disk further"
    cache.store(KEY, "encoder.onnx", BUILT)
    with no_room(2000), pytest.raises(OutputError):  # the old engine is intact, or there is none: never half of one
        cache.store(KEY, "encoder.onnx", replace(BUILT, content=b"new" * 1000))
    entry = cache.entry(KEY)
    assert entry is None or entry.load() == BUILT


def test_a_read_only_cache_is_read_and_not_written(tmp_path: Path) -> None:
    let_all_enter(tmp_path)
    cache = EngineCache(tmp_path / "cache")
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    for folder in (cache.root, entry.folder.parent, entry.folder):
        folder.chmod(0o555)
    lines: list[str] = []
    new = replace(KEY, library="tensorrt 11.4.0")
    try:
        with unprivileged():
            assert cache.obtain(KEY, "encoder.onnx", never) == BUILT
            assert cache.obtain(new, "encoder.onnx", lambda: BUILT, say=lines.append) == BUILT
            with pytest.raises(OutputError, match="cannot write to the cache") as caught:
                cache.reserve(new)
            assert CACHE_VARIABLE in caught.value.fix
            with pytest.raises(OutputError):
                entry.store_verdict({"verdict": "passed"})
    finally:
        for folder in (cache.root, entry.folder.parent, entry.folder):
            folder.chmod(0o755)
    assert "rebuilding" in lines[0]
    assert "cannot be kept" in lines[1]
    assert len(lines) == 2


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = EngineCache(tmp_path / "file" / "cache")
    assert cache.entries() == []
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lambda line: None) == BUILT
    with pytest.raises(OutputError):
        cache.store(KEY, "encoder.onnx", BUILT)


def test_an_engine_that_has_no_room_is_known_before_it_is_built(cache: EngineCache) -> None:
    cache.reserve(KEY, 6000)
    with no_room(2000):
        cache.reserve(KEY, 1500)
        with pytest.raises(OutputError, match="cannot write to the cache") as caught:
            cache.reserve(KEY, 6000)
    assert CACHE_VARIABLE in caught.value.fix
    assert list(cache.folder(KEY).iterdir()) == [], "the attempt leaves nothing"


def test_what_cannot_be_written_names_the_caches_variable(cache: EngineCache) -> None:
    entry = cache.store(KEY, "encoder.onnx", BUILT)
    with no_room(2000), pytest.raises(OutputError) as caught:
        cache.store(KEY, "encoder.onnx", BUILT)
    assert CACHE_VARIABLE in caught.value.fix
    with no_room(10), pytest.raises(OutputError) as caught:
        entry.store_verdict({"verdict": "passed"})
    assert CACHE_VARIABLE in caught.value.fix
