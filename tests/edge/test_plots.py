"""Pictures of a benchmark and of a training run: drawn from their files alone, refused with a remedy otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_edge.picture import FORMATS
from flss_edge.plots import main, plot_benchmark
from flss_edge.training_log import in_words, loss_terms, read_log
from flss_edge.training_plot import plot_training
from flss_runtime.errors import DataError, OutputError, UsageError
from flss_runtime.latency import overhead, summarise

pytest.importorskip("matplotlib", reason="needs the extra plot")

SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A result as the benchmark writes it, of drawn latencies."""
    draw = np.random.default_rng(0)
    arms: list[dict[str, Any]] = []
    for name, cost in (("deterministic", 1.0), ("n100", 1.03)):
        blocks = (10 * cost * draw.normal(1, 0.005, (3, 10))).tolist()
        latencies = cost * draw.gamma(100, 0.1, 2000)
        arms.append({"name": name, **summarise(latencies), "block_medians_ms": blocks})
    cost_row = overhead("n100", "deterministic", arms[1]["block_medians_ms"], arms[0]["block_medians_ms"])
    stages = {"preprocess": 0.05, "encoder": 9.8, "between": 0.01, "noise": 0.01, "head": 0.2, "decide": 0.1}
    return {
        "environment": {"cpu": "Some CPU", "engines": {"ort": "ort 1.30.0"}},
        "config": {"engine": "ort", "threads": 1, "profile": {"name": "standard"}},
        "results": {
            "arms": arms,
            "overhead": [cost_row.to_json()],
            "stages_ms": {"n100": {**stages, "total": sum(stages.values())}},
        },
        "validity": {"valid": True, "flags": []},
    }


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_each_format_is_drawn(result: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    plot_benchmark(result, tmp_path / f"bench.{suffix}")
    assert (tmp_path / f"bench.{suffix}").read_bytes().startswith(SIGNATURES[suffix])


def test_flags_are_part_of_the_picture(result: dict[str, Any], tmp_path: Path) -> None:
    flagged = {**result, "validity": {"flags": [{"name": "other_load", "detail": ""}]}, "config": {**result["config"]}}
    plot_benchmark(result, tmp_path / "valid.png")
    plot_benchmark(flagged, tmp_path / "flagged.png")
    assert (tmp_path / "valid.png").read_bytes() != (tmp_path / "flagged.png").read_bytes()


def test_a_result_without_interval_or_stages_is_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    row = {**result["results"]["overhead"][0], "interval": None, "half_width": None}
    bare = {**result, "results": {**result["results"], "overhead": [row], "stages_ms": None}}
    plot_benchmark(bare, tmp_path / "bare.png")


def test_bad_targets_are_refused(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot draw"):
        plot_benchmark(result, tmp_path / "bench.gif")
    (tmp_path / "there.png").touch()
    with pytest.raises(OutputError, match="exists"):
        plot_benchmark(result, tmp_path / "there.png", overwrite=False)
    with pytest.raises(OutputError):
        plot_benchmark(result, tmp_path / "nowhere" / "bench.png")


def test_command_draws_beside_the_result_and_refuses_other_files(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    assert main([str(file)]) == 0 and (tmp_path / "result.png").is_file()
    assert main([str(file)]) == 7
    for text in ("{}", "[]", "no JSON"):
        file.write_text(text)
        assert main([str(file), "--overwrite"]) == 7
    assert "fix: pass a file written by flss-edge bench" in capsys.readouterr().err


def training_records(steps: int = 400, epochs: int = 4) -> list[dict[str, Any]]:
    """A log as the trainer writes it: two losses, one of them with terms, and the third epoch the best."""
    records: list[dict[str, Any]] = []
    for step in range(2, steps + 1, 2):
        terms = {"adversarial_cross_entropy": 2 / step, "adversarial_kl_prior": 1 / step}
        losses = {"adversarial_loss": 3 / step, **terms, "clean_loss": 1 / step, "clean_kl_prior": 1 / step}
        record = {"event": "step", "step": step, "total_steps": steps, "lr": 0.1, "momentum": 0.9}
        records.append({**record, **losses, "images_per_s": 100.0})
        if step % (steps // epochs) == 0:
            epoch = step * epochs // steps
            accuracies = {"selection_accuracy": 0.2 * epoch, "selection_pgd_accuracy": 0.1 * min(epoch, 3)}
            records.append({"event": "epoch", "step": step, "epoch": epoch, **accuracies, "best_epoch": min(epoch, 3)})
    return records


def written(records: list[dict[str, Any]], folder: Path, end: str = "") -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return folder / "log.jsonl"


def test_losses_are_told_from_their_terms() -> None:
    assert loss_terms(training_records()[0]) == {
        "adversarial_loss": ("adversarial_cross_entropy", "adversarial_kl_prior"),
        "clean_loss": (),  # one term is the loss itself
    }
    assert in_words("adversarial_kl_prior", "adversarial_loss") == "KL prior"
    assert in_words("adversarial_loss", "adversarial_loss") == "adversarial loss"


@pytest.mark.parametrize("kind", FORMATS)
def test_training_curves_are_drawn(tmp_path: Path, kind: str) -> None:
    plot_training(training_records(), tmp_path / f"curves.{kind}", title="a run")
    assert (tmp_path / f"curves.{kind}").read_bytes().startswith(SIGNATURES[kind])


def test_training_curves_say_what_was_measured(tmp_path: Path) -> None:
    target = tmp_path / "curves.svg"
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # texts stay texts
        plot_training(training_records(), target, title="a run")
    picture = target.read_text()
    for said in ("a run: step 400 of 400", "selected: epoch 3", ">60.0<", ">30.0<", "KL prior", "Learning rate"):
        assert said in picture, said
    assert "Terms of the clean loss" not in picture  # it has one only


@pytest.mark.parametrize("count", [1, 50])
def test_a_run_without_an_epoch_is_drawn(tmp_path: Path, count: int) -> None:
    plot_training([r for r in training_records() if r["event"] == "step"][:count], tmp_path / "curves.png")
    plot_training([r for r in training_records() if r["event"] == "epoch"], tmp_path / "curves.png")


def test_a_log_is_drawn_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(training_records(), tmp_path, end='{"event": "step", "st')  # cut short by a kill
    assert len(read_log(log)) == 204
    assert main([str(log)]) == 0 and (tmp_path / "log.png").is_file()
    assert main([str(log)]) == 7
    assert main([str(log), "-o", str(tmp_path / "curves.gif")]) == 2
    assert "cannot draw" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]\n", '{"event": "frame", "step": 1}\n{}\n', "no JSON\n{}\n"])
def test_other_logs_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"train"):
        read_log(tmp_path / "log.jsonl")
    assert main([str(tmp_path / "log.jsonl")]) == 7
