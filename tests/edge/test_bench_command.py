"""`flss-edge bench` with its options: arms, camera frames, pictures, comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flss_edge.cli import bench
from flss_runtime.errors import UsageError

Runner = Callable[..., Any]
QUICK = ("--profile", "quick", "--threads", "1", "--allow-invalid")


@pytest.fixture(scope="module")
def results(calibrated_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.json and a.png of one benchmark, and b.json of another without its extras."""
    from flss_edge.cli import main

    folder = tmp_path_factory.mktemp("results")
    extras = ["--control", "--batches", "1,4", "--frame", "64x48", "--plot"]
    for name, options in (("a", extras), ("b", ["--batches", "none", "--frame", "64x48"])):
        command = ["bench", str(calibrated_bundle), *QUICK, "--arms", "n10,n100", *options]
        pytest.importorskip("matplotlib", reason="needs the extra plot")
        assert main([*command, "-o", str(folder / f"{name}.json")]) == 0
    return folder


def test_every_extra_is_in_the_result(results: Path) -> None:
    found = json.loads((results / "a.json").read_text())
    assert [arm["name"] for arm in found["results"]["arms"]] == ["deterministic", "n10", "n100", "control"]
    assert [row["batch"] for row in found["results"]["throughput"]] == [1, 4]
    assert found["config"]["camera"] == [64, 48] and "64x48" in found["config"]["boundary"]
    assert found["results"]["stages_ms"]["n100"]["resize"] > 0
    assert (results / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert not (results / "b.png").exists() and json.loads((results / "b.json").read_text())["results"]["energy"] == []


@pytest.mark.parametrize("form", ["table", "csv", "md", "json"])
def test_two_results_are_compared(run: Runner, results: Path, form: str) -> None:
    done = run("bench", "--compare", results / "a.json", results / "b.json", "--format", form, "--allow-invalid")
    assert done.code == 0, done.err
    assert "n100" in done.out
    if form == "csv":
        assert [line.partition(",")[0] for line in done.out.splitlines()] == ["arm", "deterministic", "n10", "n100"]


def test_flagged_results_are_compared_only_on_request(run: Runner, results: Path) -> None:
    done = run("bench", "--compare", results / "a.json", results / "a.json")
    assert done.code == 5 and "first: the quick profile" in done.err and "second:" in done.err


def test_what_is_not_comparable_exits_2(run: Runner, results: Path, tmp_path: Path) -> None:
    other = json.loads((results / "b.json").read_text())
    other["config"]["boundary"] = "elsewhere"
    (tmp_path / "c.json").write_text(json.dumps(other))
    done = run("bench", "--compare", results / "a.json", tmp_path / "c.json")
    assert done.code == 2 and "another place" in done.err and "--frame" in done.err
    assert run("bench", "--compare", results / "a.json", results / "a.png").code == 7


def test_a_comparison_takes_nothing_that_it_would_ignore(run: Runner) -> None:
    pair = ("bench", "--compare", "a.json", "b.json", "--allow-invalid")  # refused before they are read
    for options in (
        ("--assert-overhead", "2%"),
        ("--assert-overhead", "junk"),
        ("--arms", "n1"),
        ("--frame", "zz"),
        ("--batches", "1"),
        ("--engine", "openvino"),
        ("--control",),
    ):
        done = run(*pair, *options)
        assert done.code == 2 and f"takes no {options[0]}" in done.err, (options, done.err)
    done = run(*pair, "absent.bundle")
    assert done.code == 2 and "takes no BUNDLE" in done.err
    done = run(*pair, "--no-strict", "-n", 0)
    assert done.code == 2 and "takes no --no-strict, -n" in done.err


def test_options_are_refused_before_anything_is_measured(run: Runner, calibrated_bundle: Path, tmp_path: Path) -> None:
    for options, said in (
        (("--arms", "n100,fast"), "no arm 'fast'"),
        (("--arms", "control"), "no classifier"),
        (("--arms", "n100-logit", "--profile", "quick"), "logit"),
        (("--frame", "640"), "640x480"),
        (("--batches", "1,0"), "--batches 1,8,32"),
        (("--plot",), "-o result.json"),
        (("--profile", "slow"), "no profile 'slow'"),
        (("-n", "100000000"), "at most 1,000,000 latent samples"),
    ):
        done = run("bench", calibrated_bundle, *options)
        assert done.code in (2, 3) and said in done.err, (options, done.err)
        assert "start" not in done.err.partition("error:")[0], options
    (tmp_path / "r.png").touch()
    done = run("bench", calibrated_bundle, "-o", tmp_path / "r.json", "--plot")
    assert done.code == 7 and "r.png" in done.err


def test_sizes_and_batches() -> None:
    assert bench.parse_size("640x480") == bench.parse_size("640X480") == (640, 480)
    assert bench.parse_batches("1,8,8") == (1, 8) and bench.parse_batches("none") == ()
    for text in ("", "x", "\N{FULLWIDTH DIGIT TWO}x2", "640x", "0x480", "640x9000", "640x480x3", "-1x2"):
        with pytest.raises(UsageError, match="camera frame"):
            bench.parse_size(text)
    for text in ("", "0", "\N{FULLWIDTH DIGIT TWO}", "1,,2", "1.5", "5000"):
        with pytest.raises(UsageError, match="batch sizes"):
            bench.parse_batches(text)
