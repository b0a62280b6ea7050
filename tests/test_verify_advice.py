"""What `flss-edge verify` advises when the answer is no, or none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_runtime.equivalence_report import GOLDEN

from .runtime.bundles import edit_manifest

Runner = Callable[..., Any]


@pytest.fixture
def bundle(calibrated_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(calibrated_bundle, tmp_path / "tiny.bundle"))


def test_without_reference_images_it_says_what_it_compared_and_asks_for_images(run: Runner, bundle: Path) -> None:
    (bundle / "reference.npz").unlink()
    edit_manifest(bundle, lambda manifest: manifest["files"].pop("reference.npz"))
    done = run("verify", bundle, "--format", "json")
    assert done.code == 1 and "inconclusive" in done.err
    assert json.loads(done.out)["results"]["against"] == GOLDEN and "golden.npz" in GOLDEN
    assert "--data" in done.err and "--budget" not in done.err
    table = run("verify", bundle).out
    assert f"compared with: {GOLDEN}" in table and "reference.npz" not in table


def test_a_failed_precision_is_answered_with_another_precision(run: Runner, bundle: Path) -> None:
    reference = bundle / "reference.npz"
    with np.load(reference) as arrays:
        spoilt = {**arrays, "votes": np.roll(arrays["votes"], 1, axis=1)}
    np.savez(reference, **spoilt)
    shutil.copy(bundle / "encoder.onnx", bundle / "encoder.fp16.onnx")

    def seal(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["encoder.fp16"], manifest["precision"]["encoder.fp16"] = "encoder.fp16.onnx", "fp16"
        for name in ("reference.npz", "encoder.fp16.onnx"):
            content = (bundle / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    edit_manifest(bundle, seal)
    exact = run("verify", bundle)
    assert exact.code == 1 and "export again with this engine's versions" in exact.err
    assert "another --precision" not in exact.err
    reduced = run("verify", bundle, "--precision", "fp16", "--no-strict")
    assert reduced.code == 1 and "does not decide as its checkpoint" in reduced.err
    assert "choose another --precision" in reduced.err and "export again" not in reduced.err
