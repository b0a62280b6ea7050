"""What doctor says of this machine, and whether an engine's trial tells a working engine from a broken one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from flss_runtime import diagnosis, engine_trial
from flss_runtime.diagnosis import Check, Diagnosis, diagnose
from flss_runtime.engine_cache import CACHE_VARIABLE, Built, CacheKey, EngineCache
from flss_runtime.engine_trial import GRAPH, try_engine
from flss_runtime.errors import UsageError

from .disks import let_all_enter, no_room, unprivileged


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return diagnose()


def by_name(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_all_that_is_not_ok_has_a_remedy(here: Diagnosis) -> None:
    assert {"python", "numpy", "engine ort", "engine openvino", "conflicts", "training", "cpu governor"} <= {
        check.name for check in here.checks
    }
    assert len({check.name for check in here.checks}) == len(here.checks)
    for check in here.checks:
        assert check.detail and (check.status == "ok") == (check.fix == ""), check
    assert by_name(here.checks, "python").status == "ok"


def test_onnx_runtime_is_seen_to_work(here: Diagnosis) -> None:
    ort = next(trial for trial in here.trials if trial.engine == "ort")
    assert ort.usable and ort.library is not None and ort.library.startswith("onnxruntime ")
    assert (ort.device, ort.precision) == ("CPUExecutionProvider", "fp32")
    assert "CPUExecutionProvider" in ort.offers
    assert by_name(here.checks, "engine ort").status == "ok"


def test_the_json_has_every_part_and_no_folder(here: Diagnosis) -> None:
    parts = here.to_json()
    named = "checks, devices, drivers, libraries, providers, engines, caches, clocks"
    assert ", ".join(parts) == named
    assert "CPUExecutionProvider" in parts["providers"]["ort"]
    text = json.dumps(parts, allow_nan=False)
    assert str(Path.home()) not in text and os.getcwd() not in text
    assert parts["devices"][0]["kind"] == "cpu"


def test_an_unknown_engine_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="no engine 'orf'"):
        try_engine("orf")


def test_an_engine_that_is_not_here_says_what_to_install() -> None:
    trial = try_engine("ort:cuda")
    if trial.usable:
        pytest.skip("CUDA works here")
    assert trial.problem and "pip install" in trial.fix


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "signal 4"),
        ("raise RuntimeError('no such instruction')", "no such instruction"),
        ("import sys; sys.exit(0)", "it said nothing"),
    ],
)
def test_a_library_that_takes_its_process_down_is_an_answer(
    module: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    trial = try_engine("ort")
    assert not trial.usable and said in trial.problem and trial.fix


def test_a_trial_leaves_the_working_folder_and_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    assert try_engine("ort").usable and try_engine("openvino")
    assert list(tmp_path.iterdir()) == []


def test_the_small_graph_is_what_its_comment_says(tmp_path: Path) -> None:
    model = onnx.load_from_string(GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv"] and model.opset_import[0].version == 18
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), np.ones((1, 1, 3, 3)))


def test_a_wrong_result_is_no_working_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(GRAPH)
    twos = np.full((1, 1, 3, 3), 2, np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(twos, "w"))
    monkeypatch.setattr(engine_trial, "GRAPH", model.SerializeToString())
    assert "18.0" in engine_trial.run_graph("ort", tmp_path)["problem"]


def add_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_two_runtime_wheels_over_each_other_are_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_distribution(tmp_path, "onnxruntime-gpu", "1.30.0")
    add_distribution(tmp_path, "onnxruntime", "1.30.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = by_name(diagnose().checks, "conflicts")
    assert found.status == "fail" and "onnxruntime-gpu 1.30.0" in found.detail
    assert found.fix.startswith("pip uninstall onnxruntime onnxruntime-gpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    cache = EngineCache()
    cache.store(CacheKey("a" * 64, "library 1", "sm86"), "encoder.onnx", Built(b"engine", "fp32", 1.0))
    return cache


def test_a_cache_that_works_is_ok_and_not_touched(cache: EngineCache, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert diagnosis._check_cache().status == "ok" and diagnosis._describe_cache()["usable"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["root", "engines", "engine"])
def test_a_cache_that_everybody_may_write_to_is_not_ok(cache: EngineCache, place: str) -> None:
    (entry,) = cache.entries()
    folder = {"root": cache.root, "engines": entry.folder.parent, "engine": entry.folder}[place]
    folder.chmod(0o777)
    found = diagnosis._check_cache()
    assert found.status == "warn" and "everybody may write" in found.detail and f"chmod go-w {folder}" in found.fix


def test_a_cache_on_a_full_disk_is_not_ok(cache: EngineCache) -> None:
    with no_room(2000):
        found, described = diagnosis._check_cache(), diagnosis._describe_cache()
    assert found.status == "warn" and "cannot write to the cache" in found.detail and CACHE_VARIABLE in found.fix
    assert not described["usable"] and len(described["engines"]) == 1


def test_a_read_only_cache_is_not_ok(cache: EngineCache, tmp_path: Path) -> None:
    let_all_enter(tmp_path)
    folders = [cache.root, cache.root / "engines"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with unprivileged():
            found = diagnosis._check_cache()
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert found.status == "warn" and "Permission denied" in found.detail and CACHE_VARIABLE in found.fix


def test_a_problem_of_the_cache_does_not_tell_where_home_is(
    cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache.root.chmod(0o777)
    found = diagnosis._check_cache()
    assert str(tmp_path) not in found.detail + found.fix and "chmod go-w ~/cache" in found.fix


def test_a_cache_that_changes_while_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"12345")
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    assert [diagnosis._size(tmp_path / name) for name in ("engine", "gone", "absent", ".")] == [5, 0, 0, 0]


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert diagnosis._below_home(tmp_path / "cache") == "~/cache"

    def absent() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", absent)
    assert diagnosis._below_home(tmp_path / "cache") == str(tmp_path / "cache")
