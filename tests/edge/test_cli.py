"""The command line: what each command prints and writes, and where."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flss_edge import __version__
from flss_edge.cli import bench, demo
from flss_edge.cli.output import Format
from flss_runtime.benchmark import run_benchmark
from flss_runtime.bundle import load_bundle
from flss_runtime.errors import BenchmarkInvalid, CheckFailed, UsageError
from flss_runtime.profiles import PROFILES

Runner = Callable[..., Any]
COMMANDS = ("train", "evaluate", "calibrate", "export", "verify", "bench", "predict", "inspect", "doctor", "demo")
ENTRY = "import sys; from flss_edge.cli import main; sys.exit(main())"


def test_version_and_commands(run: Runner) -> None:
    assert run("--version").out == f"flss-edge {__version__}\n"
    listed = run("--help").out
    assert all(f"\n  {command} " in listed for command in COMMANDS)


def test_a_misspelt_command_is_suggested(run: Runner) -> None:
    result = run("predct")
    assert result.code == 2 and "predict" in result.err and result.out == ""


def test_export_writes_beside_the_checkpoint(run: Runner, here: Path, tiny_checkpoint: Path) -> None:
    shutil.copy(tiny_checkpoint, here / "ckpt.pt")
    result = run("export", "ckpt.pt")
    assert (result.code, result.out) == (0, "ckpt.bundle\n")
    assert "EXPORT PASSED" in result.err and "synthetic" in result.err
    assert load_bundle(here / "ckpt.bundle").num_samples == 100
    assert run("export", "ckpt.pt").code == 7
    assert run("export", "ckpt.pt", "--overwrite", "-n", "50").code == 0
    assert load_bundle(here / "ckpt.bundle").num_samples == 50


def test_export_takes_real_images_along(
    run: Runner, here: Path, tiny_checkpoint: Path, labelled_pictures: Path
) -> None:
    assert run("export", tiny_checkpoint, "-o", "real.bundle", "--data", labelled_pictures).code == 0
    verified = json.loads(run("verify", "real.bundle", "--format", "json").out)
    assert verified["results"]["verdict"] == "inconclusive", "60 images are too few for the default budget"
    assert verified["results"]["reference"]["real"] is True
    assert verified["results"]["reference"]["images"] == 60


def test_the_only_bundle_here_is_found(run: Runner, bundle: Path) -> None:
    assert run("inspect").code == 0
    shutil.copytree(bundle, bundle.with_name("other.bundle"))
    ambiguous = run("inspect")
    assert ambiguous.code == 2
    assert "tiny.bundle" in ambiguous.err and "other.bundle" in ambiguous.err


def test_inspect_shows_bundle_and_checkpoint(run: Runner, bundle: Path, tiny_checkpoint: Path) -> None:
    table = run("inspect", bundle).out
    assert load_bundle(bundle).digest in table and "min_votes" in table
    described = json.loads(run("inspect", tiny_checkpoint, "--format", "json").out)["results"]
    assert described["model"]["width"] == 4 and described["class_names"] == ["cat", "dog", "fox"]


def test_verify_passes_and_compares_with_torch(
    run: Runner, bundle: Path, tiny_checkpoint: Path, labelled_pictures: Path
) -> None:
    both = ("--data", labelled_pictures, "--checkpoint", tiny_checkpoint)
    result = run("verify", bundle, *both, "--budget", "0.05", "--format", "json")
    assert result.code == 0 and "VERIFY PASSED" in result.err
    compared = json.loads(result.out)["results"]["data"]
    assert compared["images"] == 60 and compared["class_flips"] == compared["rejection_flips"] == 0


def test_verify_fails_for_another_checkpoint(run: Runner, bundle: Path, labelled_pictures: Path, here: Path) -> None:
    import torch

    from flss_edge.checkpoint import Checkpoint, save_checkpoint
    from flss_edge.model import FLSS, ModelConfig

    torch.manual_seed(1)
    save_checkpoint(here / "other.pt", Checkpoint(FLSS(ModelConfig(3, width=4)).eval(), ("cat", "dog", "fox")))
    result = run("verify", bundle, "--data", labelled_pictures, "--checkpoint", "other.pt")
    assert result.code == 1 and "FAILED" in result.out and "fix:" in result.err


def test_calibrate_stores_the_threshold(run: Runner, tiny_bundle: Path, here: Path, labelled_pictures: Path) -> None:
    shutil.copytree(tiny_bundle, "new.bundle")
    before = {file.name: file.read_bytes() for file in Path("new.bundle").iterdir()}
    result = run("calibrate", "--data", labelled_pictures, "--split", "test", "-n", "20", "--format", "json")
    assert result.code == 0
    (entry,) = json.loads(result.out)["results"]
    assert load_bundle("new.bundle").policy(20).min_votes == entry["min_votes"]
    assert entry["n"] == 60 and entry["false_rejects"] <= 6
    changed = {name for name, content in before.items() if (here / "new.bundle" / name).read_bytes() != content}
    assert changed == {"policy.json"}
    assert "only 60 images" in run("calibrate", "--data", labelled_pictures, "--split", "test").out


def test_calibrate_numbers_classes_as_the_bundle_does(
    run: Runner, bundle: Path, labelled_pictures: Path, here: Path
) -> None:
    shutil.copytree(labelled_pictures / "fox", here / "some" / "fox")
    entry = json.loads(run("calibrate", "--data", "some", "--split", "test", "--format", "json").out)["results"][0]
    whole = json.loads(run("evaluate", "--data", labelled_pictures, "--format", "json").out)
    assert entry["n"] == 20 and 0 < entry["correct"] / 20 <= 1
    (classifier,) = whole["results"]["classifiers"]
    figures = classifier["groups"]["clean"]
    assert classifier["name"] == "vote" and figures["nat_0"]["n"] == 60 and figures["nat_0"]["share"] > 0
    assert figures["fc"]["share"] == pytest.approx(figures["nat_10"]["share"] * figures["coverage"]["share"])


def test_predict_answers_in_every_format(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    folder = labelled_pictures / "cat"
    whole = json.loads(run("predict", bundle, folder, "--seed", "1", "--format", "json").out)
    assert {"schema_version", "environment", "config", "results", "validity", "artifact"} <= set(whole)
    rows = whole["results"]
    assert [Path(row["file"]).name for row in rows] == [f"{index:02}.png" for index in range(20)]
    assert {row["status"] for row in rows} == {"accepted", "low_vote"}
    for row in rows:
        assert row["decision"] == (row["top_class"] if row["status"] == "accepted" else "rejected")
        assert row["vote_share"] == pytest.approx(row["votes"] / row["num_samples"])
    table = list(csv.DictReader(io.StringIO(run("predict", bundle, folder, "--seed", "1", "--format", "csv").out)))
    assert [row["decision"] for row in table] == [row["decision"] for row in rows]
    assert "| low_vote |" in run("predict", bundle, folder, "--format", "md").out
    assert "rejected" in run("predict", bundle, folder, "--seed", "1").out


def test_predict_keeps_data_and_talk_apart(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    result = run("predict", labelled_pictures / "cat" / "00.png", "--format", "csv")
    assert len(result.out.splitlines()) == 2
    assert "1 pictures" in result.err and "file," not in result.err


def test_predict_answers_the_others_when_one_picture_is_bad(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    good = labelled_pictures / "dog"
    Path("empty.png").touch()
    arguments = (good / "00.png", "empty.png", "missing.png", good / "01.png")
    result = run("predict", bundle, *arguments, "--seed", "3", "--format", "json")
    assert result.code == 7
    rows = json.loads(result.out)["results"]
    assert [row["status"] == "invalid_input" for row in rows] == [False, True, True, False]
    assert all(row["reason"] and row["top_class"] is None for row in rows[1:3])
    alone = json.loads(run("predict", bundle, arguments[0], arguments[3], "--seed", "3", "--format", "json").out)
    assert [row["votes"] for row in alone["results"]] == [rows[0]["votes"], rows[3]["votes"]]


def test_predict_writes_a_file_once(run: Runner, bundle: Path, labelled_pictures: Path, here: Path) -> None:
    command = ("predict", bundle, labelled_pictures / "cat", "-o", "rows.csv")
    first = run(*command)
    assert (first.code, first.out) == (0, "")
    assert (here / "rows.csv").read_text().startswith("file,decision,")
    assert run(*command).code == 7
    assert run(*command, "--overwrite", "--format", "json").code == 0
    assert json.loads((here / "rows.csv").read_text())["command"] == "predict"


def test_a_recorded_key_is_private_and_never_replaced(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    command = ("predict", bundle, labelled_pictures / "cat" / "00.png", "--record-key", "key.txt")
    assert run(*command).code == 0
    assert stat.S_IMODE(os.stat("key.txt").st_mode) == 0o600
    key = Path("key.txt").read_text()
    assert run(*command).code == 7 and Path("key.txt").read_text() == key


def test_names_are_no_markup_and_need_no_encoding(run: Runner, bundle: Path, labelled_pictures: Path) -> None:
    odd = Path(os.fsdecode(b"[red]\xff.png"))
    shutil.copy(labelled_pictures / "cat" / "00.png", odd)
    for form in Format:
        result = run("predict", bundle, odd, "--format", form.value)
        assert result.code == 0 and "[red]" in result.out


def test_bench_prints_the_overhead_and_is_invalid_when_quick(run: Runner, bundle: Path, here: Path) -> None:
    result = run("bench", bundle, "--profile", "quick", "--threads", "1", "-o", "bench.json")
    assert result.code == 5 and "--allow-invalid" in result.err and "BENCH INVALID" in result.err
    document = json.loads((here / "bench.json").read_text())
    assert {"environment", "artifact", "config", "results", "validity", "schema_version"} <= set(document)
    arms = [arm["name"] for arm in document["results"]["arms"]]
    assert arms[:5] == ["deterministic", "n1", "n10", "n100", "n1000"]


def test_bench_judges_validity_before_the_limit(calibrated_bundle: Path) -> None:
    brief = replace(PROFILES["quick"], processes=1, blocks=2, block_s=0.01, stream_s=0.05, stage_frames=5, batches=())
    result = run_benchmark(calibrated_bundle, threads=1, arms=("n3",), profile=brief)
    assert not result.valid
    bench.judge(result, limit=1e6, allow_invalid=True)
    with pytest.raises(CheckFailed, match=r"n3 costs up to .* above the 0 % asserted"):
        bench.judge(result, limit=0.0, allow_invalid=True)
    with pytest.raises(BenchmarkInvalid):
        bench.judge(result, limit=0.0, allow_invalid=False)


@pytest.mark.parametrize(("text", "value"), [("2%", 2.0), ("1.5 %", 1.5), ("3", 3.0)])
def test_percentages(text: str, value: float) -> None:
    assert bench.parse_percent(text) == value


@pytest.mark.parametrize("text", ["", "two", "-1%", "nan", "inf%"])
def test_no_percentages(text: str) -> None:
    with pytest.raises(UsageError, match="percentage"):
        bench.parse_percent(text)


def test_doctor_reports_engines(run: Runner) -> None:
    result = run("doctor", "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert {row["name"]: row["status"] for row in document["results"]["checks"]}["engine ort"] == "ok"
    assert document["environment"]["python"]
    assert run("doctor", "--json", "--format", "csv").code == 2


def test_the_demo_needs_the_repository(run: Runner, here: Path) -> None:
    result = run("demo")
    assert result.code == 2 and "repository" in result.err


def test_the_demo_goes_the_whole_way(
    run: Runner, here: Path, tiny_checkpoint: Path, labelled_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in (
        ("CHECKPOINT", tiny_checkpoint),
        ("CALIBRATION_IMAGES", labelled_pictures),
        ("TEST_IMAGES", labelled_pictures),
    ):
        monkeypatch.setattr(demo, name, path)
    result = run("demo")
    assert result.code == 0, result.err
    for said in ("EXPORT PASSED", "VERIFY PASSED", "falsely rejected", "60 pictures", "n100 costs"):
        assert said in result.err
    assert "rejected" in result.out and "overhead %" in result.out
    assert load_bundle(demo.BUNDLE).calibrations
