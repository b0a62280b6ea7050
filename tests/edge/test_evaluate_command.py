"""`flss-edge evaluate` as a user types it, on tiny networks and real engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flss_edge.robustness.adversarial_set import read_adversarial_set

Runner = Callable[..., Any]
FAST = ("--suite", "pgd-20", "--set", "pgd-20.steps=2", "--no-checks", "--budget", "0.2")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give torch back its threads: `--threads` is for a process, and here others follow in it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty training and twelve test images of three colours, 32 pixels a side; the test runs in the folder."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 12)):
        labels = np.arange(count) % 3
        images = random.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(tmp_path / "colours.npz", class_names=np.array(["cat", "dog", "fox"]), **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "colours.npz"


def classifiers(out: str) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(out)["results"]["classifiers"]}


def test_quick_is_the_default_and_says_everything(run: Runner, tiny_checkpoint: Path, pictures: Path) -> None:
    light = ("--set", "accepted-wrong.steps=1", "--set", "accepted-wrong-closed.steps=1", "--budget", "0.2")
    result = run("evaluate", tiny_checkpoint, "--data", pictures, *light, "--limit", "6", "--folder", "out")
    assert result.code == 0, result.err
    for name in ("vote", "vote-fixed", "deterministic-vote", "mean-softmax", "no-sampling", "no-sampling-matched"):
        assert name in result.out
    assert "vote:rejection" in result.err
    report = Path("out/report.md").read_text()
    assert "random weights" not in report and "Sanity checks" in report and "nat 10 %" in report
    stored = json.loads(Path("out/result.json").read_text())
    assert stored["command"].startswith("flss-edge evaluate tiny.pt --data colours.npz")
    assert str(pictures.parent) not in json.dumps(stored), "no path of this machine is recorded"
    assert {"classifiers", "attacks", "checks", "controls", "persistent"} <= set(stored["results"])
    assert (Path("out") / "risk-coverage.png").stat().st_size > 10_000


def test_a_folder_resumes_and_refuses_another_evaluation(run: Runner, tiny_checkpoint: Path, pictures: Path) -> None:
    command = ("evaluate", tiny_checkpoint, "--data", pictures, *FAST, "--folder", "out", "--format", "json")
    first = run(*command)
    assert first.code == 0, first.err
    stamps = {path: path.stat().st_mtime_ns for path in Path("out/pieces").iterdir()}
    again = run(*command)
    assert json.loads(again.out)["results"] == json.loads(first.out)["results"]
    assert {path: path.stat().st_mtime_ns for path in Path("out/pieces").iterdir()} == stamps
    other = run(*command, "--seed", "7")
    assert other.code == 7 and "seed" in other.err and "--overwrite" in other.err
    assert run(*command, "--seed", "7", "--overwrite").code == 0


def test_killed_and_resumed_gives_the_same(run: Runner, tiny_checkpoint: Path, pictures: Path) -> None:
    slow = ("--suite", "pgd", "--suite", "apgd-ce", "--no-checks", "--budget", "0.2", "--batch-size", "3")
    command = [sys.executable, "-m", "flss_edge", "evaluate", str(tiny_checkpoint), "--data", "colours.npz", *slow]
    process = subprocess.Popen([*command, "--folder", "killed"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(Path("killed/pieces").glob("*.npz"))) < 4 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(Path("killed/pieces").glob("*.npz")))
    assert 4 <= done < 12
    resumed = run("evaluate", tiny_checkpoint, "--data", pictures, *slow, "--folder", "killed", "--format", "json")
    fresh = run("evaluate", tiny_checkpoint, "--data", pictures, *slow, "--format", "json")
    assert resumed.code == fresh.code == 0, resumed.err + fresh.err
    assert classifiers(resumed.out) == classifiers(fresh.out)


def test_interrupted_by_sigterm_leaves_whole_pieces(tiny_checkpoint: Path, pictures: Path) -> None:
    command = [sys.executable, "-m", "flss_edge", "evaluate", str(tiny_checkpoint), "--data", "colours.npz"]
    arguments = [*command, "--suite", "pgd-long", "--budget", "0.2", "--folder", "out"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list(Path("out/pieces").glob("clean*.npz")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    assert [path.name for path in Path("out/pieces").iterdir()] == ["clean-000000.npz"]


def test_saved_images_are_replayed_on_the_bundle_with_the_same_votes(
    run: Runner, tiny_checkpoint: Path, pictures: Path
) -> None:
    saving = ("--save-adversarial", "adv.npz", "--format", "json")
    evaluated = run("evaluate", tiny_checkpoint, "--data", pictures, *FAST, *saving, "--seed", "5")
    assert evaluated.code == 0, evaluated.err
    assert run("export", tiny_checkpoint, "-o", "tiny.bundle", "--data", pictures).code == 0
    assert run("calibrate", "tiny.bundle", "--data", pictures, "--budget", "0.2", "--seed", "5").code == 0
    replayed = run("evaluate", "tiny.bundle", "--replay", "adv.npz", "--seed", "5", "--format", "json")
    assert replayed.code == 0, replayed.err
    ours, theirs = classifiers(evaluated.out)["vote"], classifiers(replayed.out)["vote"]
    assert theirs["attacks"] == ours["attacks"] and theirs["histogram"] == ours["histogram"]
    assert theirs["threshold"] == ours["threshold"], "both calibrations follow one rule on one split"
    assert [each["name"] for each in read_adversarial_set(Path("adv.npz")).attacks] == ["clean", "pgd-20"]


@pytest.mark.parametrize("sweep", ["num-samples", "noise-scale", "epsilon"])
def test_sweeps(run: Runner, tiny_checkpoint: Path, pictures: Path, sweep: str) -> None:
    command = ("evaluate", tiny_checkpoint, "--data", pictures, *FAST, "--sweep", sweep, "--folder", "out")
    result = run(*command, "--format", "json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["results"]["sweep"]["rows"]
    values = sorted({row["value"] for row in rows})
    assert values[0] == {"num-samples": 1, "noise-scale": 0.5, "epsilon": 1 / 255}[sweep]
    assert values[-1] == {"num-samples": 1000, "noise-scale": 3, "epsilon": 128 / 255}[sweep]
    assert list(Path("out").glob("*sweep*.png")), sorted(Path("out").iterdir())


def test_corruptions_and_other_classes(run: Runner, tiny_checkpoint: Path, pictures: Path) -> None:
    others = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez("others.npz", test_images=others, test_labels=np.zeros(20, np.int64))
    more = ("--corruptions", "--out-of-distribution", "others.npz", "--format", "json")
    result = run("evaluate", tiny_checkpoint, "--data", pictures, *FAST, *more)
    assert result.code == 0, result.err
    found = json.loads(result.out)["results"]
    kinds = {(row["corruption"], row["severity"]) for row in found["corruptions"]}
    assert ("bernoulli-noise", 1) in kinds and ("jpeg", 5) in kinds
    assert {row["classifier"] for row in found["out_of_distribution"]} >= {"vote", "no-sampling"}
    assert all("jpeg" not in name for name in classifiers(result.out)["vote"]["attacks"]), "chance is no attack"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--suite", "papper"), 2, "there is no suite 'papper'"),
        (("--epsilon", "0"), 2, "nothing to attack"),
        (("--epsilon", "8"), 2, "did you mean 8/255"),
        (("--epsilon", "8.0"), 2, "did you mean 8/255"),
        (("--epsilon", "1"), 2, "did you mean 1/255"),
        (("--set", "vote:accepted-wrong.steps=3"), 2, "does not run"),
        (("--set", "accepted-wrong.starts=abc"), 2, "cannot be given"),
        (("--set", "accepted-wrong.temperature=-1"), 2, "above 0"),
        (("--suite", "paper", "--against", "vote"), 2, "--against is for adaptive"),
        (("--transfer-from", "x.pt"), 2, "suite all"),
        (("--suite", "all", "--transfer-from", "a/x.pt", "--transfer-from", "b/x.pt"), 2, "are called x"),
        (("--folder", "."), 7, "holds other files"),
        (("--set", "pgd-20.stepps=3"), 2, "it has steps"),
        (("--set", "pgd-20.steps=many"), 2, "no int"),
        (("--set", "pgd-20.steps=0"), 2, "above 0"),
        (("--set", "fab.steps=3"), 2, "does not run"),
        (("--set", "steps=3"), 2, "ATTACK.KEY=VALUE"),
        (("--against", "ballot"), 2, "there are vote"),
        (("--sweep", "votes"), 2, "num-samples"),
        (("--budget", "0"), 2, "between 0 and 1"),
        (("--replay", "adv.npz"), 2, "export it first"),
        (("--gate", "colours.npz"), 3, "'.npz'"),
        (("--calibration", "nowhere"), 7, "does not exist"),
        (("--save-adversarial", "colours.npz"), 7, "exists already"),
    ],
)
def test_mistakes(
    run: Runner, tiny_checkpoint: Path, pictures: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = run("evaluate", tiny_checkpoint, "--data", pictures, "--limit", "3", "--budget", "0.2", *arguments)
    assert (result.code, result.out) == (code, ""), result.err
    assert words in result.err and "Traceback" not in result.err


def test_images_of_a_folder_without_parts_need_others_for_the_threshold(
    run: Runner, tiny_checkpoint: Path, labelled_pictures: Path
) -> None:
    result = run("evaluate", tiny_checkpoint, "--data", labelled_pictures, *FAST)
    assert result.code == 2 and "--calibration" in result.err
    marked = run(
        *("evaluate", tiny_checkpoint, "--data", labelled_pictures, "--calibration", labelled_pictures, "--limit", "9"),
        *("--suite", "pgd-20", "--set", "pgd-20.steps=1", "--budget", "0.2"),
    )
    assert marked.code == 0, marked.err
    assert "9 of 9 served for calibration" in marked.out


@pytest.mark.parametrize(("split", "seen"), [("calibration", "6 of 6"), ("validation", "6 of 12"), ("test", "none")])
def test_images_that_calibrated_a_bundle_are_marked(
    run: Runner, tiny_checkpoint: Path, pictures: Path, split: str, seen: str
) -> None:
    per_class = ("--data", pictures, "--budget", "0.2", "--overwrite")
    assert run("export", tiny_checkpoint, "-o", "own.bundle", "--data", pictures).code == 0
    assert run("calibrate", "own.bundle", *per_class).code == 0
    found = run("evaluate", "own.bundle", "--data", pictures, "--split", split, "--format", "json")
    assert found.code == 0, found.err
    (check,) = json.loads(found.out)["results"]["checks"]
    assert check["passed"] is (None if split == "test" else False) and check["text"].startswith(seen), check
    assert "nobody can tell which images served for training" in check["text"], "this checkpoint has no record"


@pytest.mark.parametrize(
    "option", [("--suite", "paper"), ("--folder", "x"), ("--gate", "x.pt"), ("--sweep", "epsilon")]
)
def test_a_bundle_refuses_what_only_a_checkpoint_can_do(
    run: Runner, calibrated_bundle: Path, pictures: Path, option: tuple[str, str]
) -> None:
    result = run("evaluate", calibrated_bundle, "--data", pictures, *option)
    assert (result.code, result.out) == (2, "") and option[0] in result.err


def changed_file(target: str, **changes: Any) -> str:
    """adv.npz with other arrays, or another description where `changes` has one of its keys."""
    with np.load("adv.npz") as arrays:
        kept = dict(arrays)
    description = json.loads(str(kept["description"]))
    for key, value in changes.items():
        (kept if key in kept else description)[key] = value
    np.savez(target, **{**kept, "description": np.array(json.dumps(description))})
    return target


def test_a_replay_of_other_images_says_so_or_is_refused(
    run: Runner, tiny_checkpoint: Path, calibrated_bundle: Path, pictures: Path
) -> None:
    assert run("evaluate", tiny_checkpoint, "--data", pictures, *FAST, "--save-adversarial", "adv.npz").code == 0
    fine = run("evaluate", calibrated_bundle, "--replay", "adv.npz")
    assert fine.code == 0 and "WARNING" not in fine.out, fine.err
    seeded = run("evaluate", calibrated_bundle, "--replay", "adv.npz", "--seed", "3")
    assert "WARNING seed is 3 here and 0 in the file" in seeded.out
    other = run("evaluate", calibrated_bundle, "--replay", changed_file("other.npz", sha256="0" * 64))
    assert other.code == 0 and "another checkpoint" in other.out
    with np.load("adv.npz") as arrays:
        far = np.clip(arrays["images 1"] + np.float32(0.3), 0, 1)
    attacks = json.loads(str(np.load("adv.npz")["description"]))["attacks"]
    for number, changes in enumerate(
        (
            {"images 1": far},
            {"labels": np.full(12, 0.7)},
            {"attacks": [{"name": "pgd"}]},
            {"attacks": [*attacks, attacks[1]]},
            {"classes": 5},
        )
    ):
        refused = run("evaluate", calibrated_bundle, "--replay", changed_file(f"bad{number}.npz", **changes))
        assert refused.code == 7 and "Traceback" not in refused.err, (changes.keys(), refused.err)


def test_an_uncalibrated_bundle_and_one_of_other_classes(
    run: Runner, tiny_checkpoint: Path, tiny_bundle: Path, calibrated_bundle: Path, pictures: Path
) -> None:
    refused = run("evaluate", tiny_bundle, "--data", pictures)
    assert refused.code == 3 and "flss-edge calibrate" in refused.err
    assert run("evaluate", tiny_checkpoint, "--data", pictures, *FAST, "--save-adversarial", "adv.npz").code == 0
    with np.load("adv.npz") as arrays:
        kept = dict(arrays)
    text = str(kept["description"]).replace('"fox"', '"wolf"')
    np.savez("other.npz", **{**kept, "description": np.array(text)})
    result = run("evaluate", calibrated_bundle, "--replay", "other.npz")
    assert result.code == 7 and "same classes" in result.err


def test_two_processes_find_what_one_finds(run: Runner, tiny_checkpoint: Path, pictures: Path) -> None:
    common = ("evaluate", str(tiny_checkpoint), "--data", "colours.npz", *FAST, "--batch-size", "3", "--threads", "1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "flss_edge", *common, "--device", "cpu", "--folder", "two", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    one = run(*common, "--folder", "one", "--format", "json")
    assert classifiers(done.stdout) == classifiers(one.out)
    assert len(list(Path("two/pieces").iterdir())) == 2 * 4
    alone = subprocess.run([*launcher, "flss_edge", *common], capture_output=True, text=True, timeout=240, check=False)
    assert alone.returncode != 0 and "--folder" in alone.stderr and "internal error" not in alone.stderr
