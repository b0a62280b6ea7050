"""`flss-edge verify` with engines, precisions, budgets and attacked images, and what `inspect` shows of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_edge.robustness.adversarial_set import write_adversarial_set
from flss_runtime.bundle import load_bundle, store_calibration
from flss_runtime.engine_cache import Built, CacheKey, EngineCache
from flss_runtime.engine_trial import try_engine
from flss_runtime.equivalence import JUDGE, verify_bundle
from flss_runtime.images import read_image, to_nchw

Runner = Callable[..., Any]
WIDE = ("--budget", "0.05")  # what 60 images can show


@pytest.fixture
def bundle(calibrated_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(calibrated_bundle, tmp_path / "tiny.bundle"))


@pytest.fixture
def attacked(bundle: Path, labelled_pictures: Path) -> Path:
    """Pictures under an attack of radius 8/255 and one corruption, in a file."""
    loaded = load_bundle(bundle)
    files = sorted(labelled_pictures.rglob("*.png"))
    clean = to_nchw(np.stack([read_image(file, loaded.input) for file in files]))
    labels = np.array([loaded.class_names.index(file.parent.name) for file in files])
    noise = np.random.default_rng(1).choice([-8 / 255, 8 / 255], clean.shape)
    moved = np.clip(clean + noise, 0, 1).astype(np.float32)
    attacks = [
        {"name": "clean", "groups": ["clean"], "epsilon": 0.0},
        {"name": "signs", "groups": ["quick"], "epsilon": 8 / 255},
        {"name": "dark-3", "groups": ["corruption"], "epsilon": 0.0},
    ]
    description = {
        "attacks": attacks,
        "classes": list(loaded.class_names),
        "seed": 4,
        "num_samples": 100,
        "noise_scale": 2.0,
        "sha256": loaded.manifest["checkpoint"]["sha256"],
    }
    path = bundle.parent / "adv.npz"
    write_adversarial_set(path, labels, description, iter([clean, moved, clean / 4]), overwrite=False)
    return path


def test_too_few_images_are_inconclusive_and_say_how_many_it_takes(run: Runner, bundle: Path) -> None:
    done = run("verify", bundle)
    assert done.code == 1 and "inconclusive" in done.out and "VERIFY PASSED" not in done.err
    assert "is inconclusive" in done.err and "takes 598 images" in done.err and "--data DATA --checkpoint" in done.err
    wide = run("verify", bundle, *WIDE)
    assert wide.code == 0 and "VERIFY PASSED" in wide.err and "verdict: passed" in wide.out
    assert run("verify", bundle, "--budget", "1.5").code == 2


def test_the_table_says_what_ran_what_was_found_and_what_is_allowed(run: Runner, bundle: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("verify", bundle, *WIDE, "--format", "csv").out)))
    found = {(row["name"], row["check"]): row for row in rows}
    flips = found["reference", "class flips"]
    assert (flips["images"], flips["found"], flips["allowed"], flips["verdict"]) == (
        "64",
        "0 (0.00 %)",
        "5.00 %",
        "passed",
    )
    assert flips["bound"] == f"{100 * (1 - 0.05 ** (1 / 64)):.2f} %"
    assert found["reference", "rejection flips"]["verdict"] == "passed"
    assert float(found["golden", "mean differs"]["found"]) < float(found["golden", "mean differs"]["allowed"])
    shown = run("verify", bundle, *WIDE).out
    assert "CPUExecutionProvider" in shown and "read back from the engine: encoder fp32, head fp32" in shown
    results = json.loads(run("verify", bundle, *WIDE, "--format", "json").out)["results"]
    assert results["facts"]["device"] == "CPUExecutionProvider" and results["budget"] == 0.05
    assert [test["verdict"] for test in results["flips"]] == ["passed", "passed"]


@pytest.mark.parametrize("strict", [True, False])
def test_the_comparison_with_torch_is_as_strict_as_the_rest(
    run: Runner, bundle: Path, labelled_pictures: Path, tiny_checkpoint: Path, strict: bool
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    if try_engine("openvino:gpu").usable:
        pytest.skip("the device that has to be missing is here")
    own = ("--data", labelled_pictures, "--checkpoint", tiny_checkpoint, "--budget", "0.1")
    done = run("verify", bundle, "--engine", "openvino:gpu", *own, *(() if strict else ("--no-strict",)))
    assert done.code == (6 if strict else 0), done.err


def test_another_engine_is_compared_on_ones_own_images(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: the second engine is missing")
    command = ("verify", bundle, "--engine", "openvino", "--data", labelled_pictures, "--format", "json")
    done = run(*command, *WIDE)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    results = document["results"]
    assert results["against"] == results["data"]["reference"] == JUDGE and results["data"]["images"] == 60
    assert results["facts"]["library"].startswith("openvino ") and document["config"]["data_sha256"]
    assert "ort: images" in done.err and "openvino: images" in done.err
    few = run(*command, "--limit", "7")
    assert few.code == 1 and json.loads(few.out)["results"]["data"]["images"] == 7
    assert "evenly spaced" in json.loads(few.out)["config"]["data"]


def test_options_that_compare_nothing_are_refused(
    run: Runner, bundle: Path, labelled_pictures: Path, tiny_checkpoint: Path
) -> None:
    for arguments, said in (
        (("--data", labelled_pictures), "these are what is to be examined"),
        (("--checkpoint", tiny_checkpoint), "--checkpoint was given without --data"),
        (("--limit", "3"), "--limit was given without --data"),
    ):
        refused = run("verify", bundle, *arguments)
        assert refused.code == 2 and said in refused.err and "fix:" in refused.err and refused.out == ""


def test_a_precision_that_is_not_there_is_exit_6(run: Runner, bundle: Path) -> None:
    refused = run("verify", bundle, "--precision", "int8")
    assert refused.code == 6 and "flss-edge export" in refused.err
    assert run("verify", bundle, "--precision", "fp8").code == 2


def test_robust_accuracy_is_that_of_evaluate(run: Runner, bundle: Path, attacked: Path) -> None:
    done = run("verify", bundle, *WIDE, "--adversarial", attacked, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]["adversarial"]
    replayed = run("evaluate", bundle, "--replay", attacked, "--seed", "4", "--format", "json")
    figures = json.loads(replayed.out)["results"]["classifiers"][0]["groups"]["quick"]
    assert found["images"] == figures["n"] == 60
    assert found["candidate"]["correct"] == figures["adv_0"]["count"] > 0
    assert found["candidate"]["wrongly_accepted"] == figures["fw"]["count"] > 0
    assert [attack["name"] for attack in found["attacks"]] == ["clean", "signs", "dark-3"]
    table = run("verify", bundle, *WIDE, "--adversarial", attacked).out
    assert "robust accuracy" in table and "another checkpoint" not in table


def test_attacked_images_have_to_fit(run: Runner, bundle: Path, attacked: Path) -> None:
    with np.load(attacked) as arrays:
        members = dict(arrays)
    described = json.loads(str(members["description"]))
    described["attacks"][1]["epsilon"] = 4 / 255
    np.savez(attacked, **{**members, "description": np.array(json.dumps(described))})
    outside = run("verify", bundle, "--adversarial", attacked)
    assert outside.code == 7 and "its radius is 4/255" in outside.err
    described |= {"classes": ["cat", "fox", "dog"]}
    np.savez(attacked, **{**members, "description": np.array(json.dumps(described))})
    assert run("verify", bundle, "--adversarial", attacked).code == 7
    assert run("verify", bundle, "--adversarial", "none.npz").code == 7


def test_images_of_another_checkpoint_are_named_so(run: Runner, bundle: Path, attacked: Path) -> None:
    with np.load(attacked) as arrays:
        members = dict(arrays)
    described = {**json.loads(str(members["description"])), "sha256": "0" * 64}
    np.savez(attacked, **{**members, "description": np.array(json.dumps(described))})
    assert (
        "WARNING the attacked images were made against another checkpoint"
        in run("verify", bundle, *WIDE, "--adversarial", attacked).out
    )


def test_inspect_shows_the_verdicts_of_this_machine(run: Runner, bundle: Path) -> None:
    assert "nothing on this machine: flss-edge prepare" in run("inspect", bundle).out
    loaded = load_bundle(bundle)
    digests = {name: file["sha256"] for name, file in loaded.manifest["files"].items()}
    verdict = verify_bundle(loaded, budget=0.05).to_json()
    cache = EngineCache()
    for graph in ("encoder.onnx", "head.onnx", "golden.npz"):
        key = CacheKey(digests[graph], "onnxruntime", "cpu")
        cache.store(key, graph, Built(b"", "fp32", 0)).store_verdict(verdict)
    shown = run("inspect", bundle).out
    assert "verified on ort in fp32" in shown and "passed: onnxruntime" in shown
    assert "0 class flips of 64 (at most 4.57%), 0 rejection flips of 64 (at most 4.57%), budget 5.00%" in shown
    assert "another calibration" not in shown
    (found,) = json.loads(run("inspect", bundle, "--format", "json").out)["results"]["verdicts"]
    assert found["verdict"] == "passed" and found["bundle"] == loaded.digest

    before = loaded.calibrations[0]
    store_calibration(loaded, {**before, "min_votes": before["min_votes"] + 1})
    assert "under another calibration: prepare again" in run("inspect", bundle).out
    store_calibration(loaded, before)
    assert "another calibration" not in run("inspect", bundle).out
    store_calibration(loaded, {**before, "mode": "deterministic"})
    assert "under another calibration: prepare again" in run("inspect", bundle).out

    cache.store(CacheKey(digests["encoder.onnx"], "onnxruntime", "cpu"), "encoder.onnx", Built(b"", "fp32", 0))
    assert "nothing on this machine" in run("inspect", bundle).out, "a verdict goes with the engine it was about"
