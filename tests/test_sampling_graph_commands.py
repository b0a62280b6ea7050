"""`flss-edge export --sampling logit --fused`, and what the other commands say of the graphs that it adds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_runtime.bundle import load_bundle

from .conftest import CLASS_NAMES

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def sampled(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle with both graphs, and what the export said."""
    from typer.testing import CliRunner

    from flss_edge.cli import app

    path = tmp_path_factory.mktemp("sampled") / "tiny.bundle"
    done = CliRunner().invoke(app, ["export", str(tiny_checkpoint), "-o", str(path), "--sampling", "logit", "--fused"])
    assert done.exit_code == 0, done.output
    return path, done.stderr


def test_export_adds_both(sampled: tuple[Path, str]) -> None:
    bundle, said = load_bundle(sampled[0]), sampled[1]
    assert set(bundle.manifest["graphs"]) == {"encoder", "head", "deterministic", "fused", "logit"}
    assert "EXPORT PASSED" in said and "fused graph on the same images: 0 class flips" in said
    sizes = {name: entry["size"] for name, entry in bundle.manifest["files"].items()}
    assert sizes["fused.onnx"] > sizes["encoder.onnx"] and sizes["logit.onnx"] > sizes["encoder.onnx"], "weights again"


def test_inspect_shows_them(run: Run, sampled: tuple[Path, str], tiny_bundle: Path) -> None:
    shown = run("inspect", sampled[0]).out
    assert "graph fused" in shown and "graph logit" in shown and "latent, logit, deterministic" in shown
    facts = json.loads(run("inspect", tiny_bundle, "--format", "json").out)
    assert "fused" not in facts["results"]["manifest"]["graphs"]
    assert "logit" not in run("inspect", tiny_bundle).out


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_verify_judges_them(run: Run, sampled: tuple[Path, str], engine: str) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine))
    done = run("verify", sampled[0], "--engine", engine, "--budget", "0.05", "--format", "csv")
    assert done.code == 0, done.err
    rows = {(row["name"], row["check"]): row for row in csv.DictReader(io.StringIO(done.out))}
    expected = [("fused golden", "mean logits differ"), ("fused", "class flips"), ("fused", "largest vote change")]
    expected += [("logit", "mean logits differ"), ("logit", "covariance differs")]
    assert {rows[key]["verdict"] for key in expected} == {"passed"}
    assert rows["fused", "class flips"]["allowed"] == "5.00 %"
    assert rows["logit votes", "class flips"]["verdict"] == "passed", "what is decided by it, not only its tensors"
    assert rows["logit votes", "class flips"]["allowed"] == "5.00 %"
    assert rows["reference", "class flips"]["verdict"] == "passed"


def test_prepare_keeps_a_verdict_for_each(
    run: Run, sampled: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLSS_EDGE_CACHE", str(tmp_path))
    done = run("prepare", sampled[0], "--engine", "ort", "--format", "json")
    rows = json.loads(done.out)["results"]["engines"]
    assert [row["graph"] for row in rows] == ["encoder", "head", "fused", "logit"]
    assert {row["precision"] for row in rows} == {"fp32"}


def test_what_cannot_be_had_is_refused(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from flss_edge.checkpoint import Checkpoint, save_checkpoint
    from flss_edge.model import FLSS, ModelConfig

    hidden = FLSS(ModelConfig(num_classes=len(CLASS_NAMES), width=2, hidden=(6,), image_size=16)).eval()
    save_checkpoint(tmp_path / "hidden.pt", Checkpoint(hidden, CLASS_NAMES))
    many = tuple(f"class {number}" for number in range(33))
    wide = FLSS(ModelConfig(num_classes=33, width=2, image_size=16)).eval()
    save_checkpoint(tmp_path / "wide.pt", Checkpoint(wide, many))
    for checkpoint, reason in (("hidden", "hidden layer"), ("wide", "33 classes")):
        done = run("export", tmp_path / f"{checkpoint}.pt", "--sampling", "logit")
        assert done.code == 2 and reason in done.err and "leave --sampling out" in done.err
    done = run("export", tiny_checkpoint, "-o", tmp_path / "a.bundle", "--sampling", "deterministic")
    assert done.code == 2 and "choose latent or logit" in done.err
    assert "reading" not in done.err, "before the checkpoint is"
    assert not list(tmp_path.glob("*.bundle"))
