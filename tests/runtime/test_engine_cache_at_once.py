"""Several processes and threads at one cache of engines, and one that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flss_runtime.atomic import one_writer
from flss_runtime.engine_cache import Built, EngineCache

from .test_engine_cache import BUILT, KEY, never


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def _obtain_slowly(root: Path, start: float, folder: Path) -> None:
    def build() -> Built:
        (folder / f"built-{os.getpid()}").touch()
        time.sleep(0.5)
        return BUILT

    time.sleep(max(0.0, start - time.time()))
    built = EngineCache(root).obtain(KEY, "encoder.onnx", build, say=lambda line: None)
    assert built == BUILT
    (folder / f"done-{os.getpid()}").touch()


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "cache", time.time() + 2, tmp_path)
    processes = [context.Process(target=_obtain_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("done-*"))) == 3
    assert len(list(tmp_path.glob("built-*"))) == 1


def test_whoever_waits_for_another_builder_says_so(cache: EngineCache) -> None:
    lines: list[str] = []
    said = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        said.set()

    waiting = threading.Thread(target=cache.obtain, args=(KEY, "encoder.onnx", never), kwargs={"say": say})
    cache.reserve(KEY)
    with one_writer(cache.folder(KEY)):
        waiting.start()
        assert said.wait(30)
        cache.store(KEY, "encoder.onnx", BUILT)
    waiting.join(30)
    assert lines == ["engine for encoder.onnx: another process builds it, waiting"]


def test_other_keys_do_not_wait(cache: EngineCache) -> None:
    inside, leave = threading.Event(), threading.Event()

    def build() -> Built:
        inside.set()
        assert leave.wait(30)
        return BUILT

    slow = threading.Thread(target=cache.obtain, args=(KEY, "encoder.onnx", build), kwargs={"say": lambda line: None})
    slow.start()
    assert inside.wait(30)
    try:
        cache.obtain(replace(KEY, graph="b" * 64), "head.onnx", lambda: BUILT, say=lambda line: None)
        assert [entry.graph_name for entry in cache.entries()] == ["head.onnx"]
    finally:
        leave.set()
        slow.join()
    assert len(cache.entries()) == 2


def test_a_killed_builder_leaves_no_entry_and_no_lock(cache: EngineCache) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom flss_runtime.engine_cache import *\n"
        f"def build():\n    print('building', flush=True)\n    time.sleep(60)\n"
        f"EngineCache(Path(sys.argv[1])).obtain({KEY!r}, 'encoder.onnx', build, say=lambda line: None)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(cache.root)], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "building\n"
        builder.send_signal(signal.SIGKILL)
    assert cache.obtain(KEY, "encoder.onnx", lambda: BUILT, say=lambda line: None) == BUILT


def test_whoever_reads_while_it_is_written_sees_all_or_nothing(cache: EngineCache) -> None:
    contents = [bytes([number]) * 200_000 for number in range(30)]
    stop = threading.Event()
    torn: list[Built] = []

    def read() -> None:
        while not stop.is_set():
            entry = cache.entry(KEY)
            built = entry.load() if entry is not None else None
            if built is not None and built.content not in contents:
                torn.append(built)

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        cache.store(KEY, "encoder.onnx", replace(BUILT, content=content))
    stop.set()
    reader.join()
    assert torn == []
