"""The script that times the attacks: tiny real runs, and the checks that must be able to fail."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import flss_edge.attacks
from flss_edge.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flss_edge.model import FLSS, ModelConfig, build_network
from flss_runtime.errors import CheckFailed, UsageError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"
NAMES = tuple("abcd")
CONFIG = ModelConfig(num_classes=len(NAMES), width=4, image_size=16)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The script's modules by name; they import each other as they do when it is started by its path."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("attacks", FOLDER / "attacks.py")
    assert spec is not None and spec.loader is not None
    sys.modules["attacks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["attacks"])
    sys.path.remove(str(FOLDER))
    ours = {path.stem for path in FOLDER.glob("*.py")} & (set(sys.modules) - before)
    yield {name: sys.modules[name] for name in ours}
    for name in ours:
        del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The script sets the threads of its process; for tiny networks one is fast, and two crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("secret-folder") / "tiny.pt"
    save_checkpoint(path, Checkpoint(FLSS(CONFIG).eval(), NAMES))
    return path


def tiny(checkpoint: Path, output: Path, *more: str) -> list[str]:
    size = ["--images", "4", "--steps", "3", "--queries", "5", "--blocks", "2"]
    return ["--checkpoint", str(checkpoint), *size, *more, "-o", str(output)]


def require_peers() -> None:
    for name in ("adv_lib", "torchattacks"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what they import
            try:
                importlib.import_module(name)
            except ImportError as error:
                pytest.skip(f"needs {name}, an independent implementation ({error}): make peers")


@pytest.mark.parametrize("network", ["flss", "classifier"])
def test_every_attack_makes_the_passes_of_the_table(scripts: dict[str, ModuleType], network: str) -> None:
    torch.manual_seed(0)
    victim = build_network(replace(CONFIG, network=network)).eval()
    rows = scripts["attack_passes"].check_passes(victim, "cpu")
    assert all(row["counted"] == row["by_hand"] for row in rows)
    counted = {row["attack"]: (row["counted"]["forward"], row["counted"]["backward"]) for row in rows}
    # 3 steps, 2 restarts, 4 classes: some of them once more without any formula
    assert counted["pgd"] == (3, 3)
    assert counted["apgd-ce"] == (4, 4)
    assert counted["square"] == (6, 0)
    assert counted["fab"] == (2 * 3 * 2 + 6, 3 * 3 * 2)
    published = {row["attack"]: row["published_by_hand"] for row in rows}
    assert published["pgd"] == {"forward": 100, "backward": 100, "at_most": False}
    assert published["apgd-dlr"] == {"forward": 101, "backward": 101, "at_most": False}
    assert published["square"] == {"forward": 5001, "backward": 0, "at_most": True}
    assert published["fab"] == {"forward": 206, "backward": 300, "at_most": False}
    assert published["pgd-long"] == {"forward": 10_010, "backward": 10_000, "at_most": False}


def test_no_attack_is_missing_from_the_table(scripts: dict[str, ModuleType]) -> None:
    found = set()
    for item in pkgutil.iter_modules(flss_edge.attacks.__path__):
        module = importlib.import_module(f"flss_edge.attacks.{item.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            parameters = list(inspect.signature(function).parameters)
            own = function.__module__ == module.__name__ and not name.startswith("_") and name != "unperturbed"
            if own and parameters[:3] == ["victim", "images", "labels"] and "draws" in parameters:
                found.add(function)
    assert len(found) > 10
    assert found == {work.attack for work in scripts["attack_passes"].TABLE.values()}


def test_another_number_of_passes_is_refused(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = scripts["attack_passes"]
    wrong = replace(passes.TABLE["apgd-ce"], by_hand=lambda settings: (settings.steps, settings.steps + 1))
    monkeypatch.setattr(passes, "TABLE", {"apgd-ce": wrong})
    with pytest.raises(CheckFailed, match=r"apgd-ce makes Passes\(forward=4, backward=4\) an image, by hand it is"):
        passes.check_passes(FLSS(CONFIG).eval(), "cpu")


def test_counts_every_image_and_every_gradient(scripts: dict[str, ModuleType]) -> None:
    network = FLSS(CONFIG).eval()
    with scripts["attack_passes"].counting(network) as counter:
        with torch.no_grad():
            network(torch.zeros(5, 3, 16, 16))
        images = torch.zeros(2, 3, 16, 16, requires_grad=True)
        logits = network(images)
        for column in range(3):
            torch.autograd.grad(logits[:, column].sum(), images, retain_graph=True)
    network(torch.zeros(7, 3, 16, 16))
    assert (counter.forward, counter.backward) == (7, 6)


def test_a_missing_peer_names_the_command(
    scripts: dict[str, ModuleType],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # as if it were not installed
    assert scripts["attacks"].main(tiny(checkpoint, tmp_path / "none.json", "--only", "square")) == 2
    assert "make peers" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--images", "0"], 2, "--images is 0"),
        (["--queries", "1"], 2, "--queries is 1"),
        (["--epsilon", "0"], 2, "--epsilon is 0"),
        (["--data", "wrong.npz"], 7, "is for 16 x 16 and 4"),
    ],
)
def test_refuses_what_it_cannot_time(
    scripts: dict[str, ModuleType],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels, labels = np.zeros((9, 8, 8, 3), np.uint8), np.arange(9) % 3
    np.savez("wrong.npz", test_images=pixels, test_labels=labels)
    assert scripts["attacks"].main(tiny(checkpoint, tmp_path / "none.json", *more)) == code
    assert message in capsys.readouterr().err


def test_attacks_only_images_that_are_right(
    scripts: dict[str, ModuleType], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are the network's answers, but for every third image."""
    network = load_checkpoint(checkpoint).model
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    answers = scripts["attack_peers"].answers_of(network, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).numpy()
    labels = np.where(np.arange(12) % 3 == 0, (answers + 1) % 4, answers)
    np.savez(tmp_path / "data.npz", test_images=pixels, test_labels=labels)
    monkeypatch.setattr(scripts["attack_peers"], "BATCH", 5)
    more = ("--data", str(tmp_path / "data.npz"), "--images", "6")
    options = scripts["attacks"]._parse(tiny(checkpoint, tmp_path / "none.json", *more))
    images, chosen, source = scripts["attack_peers"].right_images(options, load_checkpoint(checkpoint))
    np.testing.assert_array_equal((images * 255).round().permute(0, 2, 3, 1), pixels[[1, 2, 4, 5, 7, 8]])
    np.testing.assert_array_equal(chosen, labels[[1, 2, 4, 5, 7, 8]])
    assert source == "data.npz:test:first 6 that are answered correctly"
    options.images = 9
    with pytest.raises(UsageError, match=r"answers fewer than 9 images of data\.npz correctly"):
        scripts["attack_peers"].right_images(options, load_checkpoint(checkpoint))


@pytest.mark.slow  # make test-slow installs the peers
def test_times_both_implementations(
    scripts: dict[str, ModuleType], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_peers()
    output = checkpoint.with_name("attacks.json")
    assert scripts["attacks"].main(tiny(checkpoint, output)) == 5  # two blocks are too few for an interval
    result = json.loads(output.read_text())
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    assert {"schema_version", "command", "environment", "config", "checks", "results", "validity"} == set(result)
    assert "secret-folder" not in output.read_text()
    assert result["config"]["threads"] == 1
    assert "few_blocks" in {item["name"] for item in result["validity"]["flags"]}
    rows = {row["attack"]: row for row in result["results"]["attacks"]}
    assert set(rows) == {"pgd", "apgd-ce", "apgd-dlr", "fab", "square"}
    for row in rows.values():
        ours, peer = row["arms"]["ours"], row["arms"]["peer"]
        assert ours["n"] == peer["n"] == 4
        assert ours["images_per_s"] == pytest.approx(4 / np.median(ours["block_s"]))
        whole = 4 * (ours["forward_per_image"] + ours["backward_per_image"])
        assert ours["passes_per_s"] == pytest.approx(whole / np.median(ours["block_s"]))
        ratios = np.asarray(peer["block_s"]) / np.asarray(ours["block_s"])
        assert row["speed_up"]["images_per_s"] == pytest.approx(np.median(ratios))
        low, high = row["speed_up"]["images_per_s_interval"]
        assert low <= row["speed_up"]["images_per_s"] <= high
        assert ours["images_per_s_range"][0] <= ours["images_per_s"] <= ours["images_per_s_range"][1]
    # Equal work where both do the same; ours bisects at FAB's end.
    for name in ("pgd", "apgd-ce", "apgd-dlr"):
        arms = rows[name]["arms"]
        assert arms["ours"]["forward_per_image"] == arms["peer"]["forward_per_image"]
        assert arms["ours"]["backward_per_image"] == arms["peer"]["backward_per_image"]
    assert rows["fab"]["arms"]["ours"]["backward_per_image"] == rows["fab"]["arms"]["peer"]["backward_per_image"] == 9
    assert rows["fab"]["arms"]["ours"]["forward_per_image"] == rows["fab"]["arms"]["peer"]["forward_per_image"] + 5
    assert rows["square"]["arms"]["peer"]["backward_per_image"] == 0
    assert "times the passes/s" in capsys.readouterr().out
