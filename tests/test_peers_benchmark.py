"""The loops that stand beside ours: they answer what ours answers, and the script compares them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flss_runtime.arms import Setting, open_arm
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.image_pool import load_images

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import PNG, load, start

pytest.importorskip("matplotlib", reason="needs the extra plot")
peers, loops = load("peers"), load("peer_loops")


@pytest.fixture(scope="module")
def bundle(calibrated_bundle: Path) -> Bundle:
    return load_bundle(calibrated_bundle)


def test_the_plain_loop_gives_the_classes_of_ours(bundle: Bundle) -> None:
    images = load_images(bundle).images
    ours, bare = open_arm(bundle, "deterministic", Setting("ort", "fp32", 1), 0), loops.plain_loop(bundle, 1)
    assert [bare(image) for image in images] == [ours.frame(image) for image in images]
    ours.close()


def test_the_voting_loop_samples_around_the_class_of_ours(bundle: Bundle) -> None:
    """Without noise every sample votes for the class of the mean; with it, not every image keeps that class."""
    images = load_images(bundle).images
    plain = loops.plain_loop(bundle, 1)
    expected = [plain(image) for image in images]
    roles = peers.ours_roles(bundle)
    still = loops.voting_loop(replace(bundle, noise_scale=0.0), roles, 1, 7)
    assert [still(image) for image in images] == expected
    noisy = loops.voting_loop(replace(bundle, noise_scale=20.0), roles, 1, 7)
    assert [noisy(image) for image in images] != expected


def test_randomized_smoothing_answers_with_a_class(bundle: Bundle) -> None:
    images = load_images(bundle).images[:5]
    smooth = loops.smoothing_loop(bundle, 1, 10)
    assert all(smooth(image) in range(bundle.num_classes) for image in images)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("Median:        13.67 ms", 13.67), ("[ INFO ]    Median:  314.72 us", 0.31472), ("Median: 1.5 s", 1500)],
)
def test_what_the_tool_prints_is_understood(text: str, milliseconds: float) -> None:
    found = peers.APP_MEDIAN.search(text)
    assert float(found[1]) * peers.MILLISECONDS[found[2]] == pytest.approx(milliseconds)


def test_every_peer_is_compared(calibrated_bundle: Path, tmp_path: Path) -> None:
    options = ("--quick", "--no-openvino", "-n", 20, "-o", tmp_path / "peers.json")
    done = start("peers", calibrated_bundle, *options, folder=tmp_path)
    assert done.returncode == 5 and "quick profile" in done.stderr, done.stderr
    result = json.loads((tmp_path / "peers.json").read_text())
    rows: dict[tuple[str, str], Any] = {(row["name"], row["beside"]): row for row in result["results"]["rows"]}
    assert list(rows) == [("deterministic", "plain loop"), ("n20", "voting loop"), ("smoothing", "n20")]
    assert rows["n20", "voting loop"]["processes"] == 2 and rows["n20", "voting loop"]["blocks"] == 16
    assert rows["smoothing", "n20"]["ratio"] > 2
    assert (tmp_path / "peers.png").read_bytes()[:8] == PNG
    assert str(tmp_path) not in (tmp_path / "peers.json").read_text()
    assert "n20" in done.stdout and "voting loop" in done.stdout


@pytest.mark.slow
def test_openvino_is_compared_with_its_own_tool(calibrated_bundle: Path, tmp_path: Path) -> None:
    done = start("peers", calibrated_bundle, "--quick", "--allow-invalid", "-o", tmp_path / "p.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "p.json").read_text())["results"]["rows"][-1]
    assert (row["name"], row["beside"]) == ("openvino", "benchmark_app") and 0.2 < row["ratio"] < 5


@pytest.mark.parametrize(
    ("found", "roles"), [((), ["encoder", "head"]), (("fp32",), ["fused"]), (("int8",), ["encoder", "head"])]
)
def test_the_voting_loop_takes_a_fused_graph_only_in_fp32(found: tuple[str, ...], roles: list[str]) -> None:
    bundle: Any = SimpleNamespace(precisions=lambda role: found if role == "fused" else ("fp32",))
    assert peers.ours_roles(bundle) == roles
