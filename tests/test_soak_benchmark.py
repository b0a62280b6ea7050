"""The long run: a leak and a drift are found where there is one, and the script writes what it found."""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import PNG, load, start

from flss_runtime.errors import EngineUnavailable

pytest.importorskip("matplotlib", reason="needs the extra plot")
soak = load("soak")
FRAMES = 100_000
AT = np.arange(0, FRAMES, 50)


def test_a_slope_is_found_with_its_error() -> None:
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        slope, error = soak.line(np.arange(20.0), 3 + 0.5 * np.arange(20.0) + draw.normal(0, 1, 20))
        errors.append((slope - 0.5) / error)
    assert abs(np.mean(errors)) < 0.25
    assert 0.9 < np.mean(np.abs(errors) < soak.T_18) <= 1, "a 95 % interval"


@pytest.mark.parametrize("leak", [0.0, 0.5, 3.0])
def test_growth_is_that_of_a_million_frames(leak: float) -> None:
    draw = np.random.default_rng(1)
    resident = 80 + leak * AT / 1e6 + draw.normal(0, 0.002, AT.size)
    resident[AT < FRAMES / 30] -= 5  # what is allocated while it warms up
    memory = soak.describe(draw.integers(900, 1100, FRAMES), AT, resident)["memory"]
    assert memory["mib_per_million"] == pytest.approx(leak, abs=0.01)
    assert memory["lower_mib"] <= memory["mib_per_million"] <= memory["upper_mib"] < leak + 0.02


def test_frames_that_get_slower_are_a_drift() -> None:
    draw = np.random.default_rng(2)
    latency = (draw.gamma(100, 10, FRAMES) * np.linspace(1, 1.2, FRAMES)).astype(np.int64)
    found = soak.describe(latency, AT, np.full(AT.size, 80.0))
    low, high = found["drift"]["interval"]
    assert low < found["drift"]["share"] < high and found["drift"]["share"] == pytest.approx(0.17, abs=0.03)
    assert found["p99_9_over_p50"] > 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "FIRST", 10)
    kept: list[mmap.mmap] = []
    large = 50 * mmap.PAGESIZE

    def leak() -> mmap.mmap:
        pages = mmap.mmap(-1, large)  # from the system: an allocator would first use up what it has left over
        pages.write(b"x" * large)
        return pages

    latency, at, resident = soak.run(lambda image: kept.append(leak()), [None], 1000)
    memory = soak.describe(latency, at, resident)["memory"]
    assert memory["mib_per_million"] == pytest.approx(large * 1e6 / 2**20, rel=0.1)
    kept.clear()
    latency, at, resident = soak.run(lambda image: leak(), [None], 1000)
    assert soak.describe(latency, at, resident)["memory"]["upper_mib"] < memory["lower_mib"] / 100


def test_the_script_writes_what_it_found(calibrated_bundle: Path, tmp_path: Path) -> None:
    options = ("--quick", "--frames", 2100, "--arm", "n5", "--allow-invalid", "-o", tmp_path / "soak.json")
    done = start("soak", calibrated_bundle, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["config"]["frames"] == result["results"]["latency"]["n"] == 2100
    assert result["command"].startswith("python benchmarks/soak.py tiny.bundle --frames 2100 --arm n5")
    assert (tmp_path / "soak.png").read_bytes()[:8] == PNG and "MiB in 10^6 frames" in done.stdout
    assert start("soak", calibrated_bundle, *options, folder=tmp_path).returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_fails_leaves_its_evidence(
    calibrated_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "MOST_GROWTH", -1e6)  # what really grows by more than a MiB would take a long run
    output = tmp_path / "soak.json"
    options = ["--frames", "1000", "--arm", "n5", "--allow-invalid", "-o", str(output)]
    assert soak.main([str(calibrated_bundle), *options]) == 1
    assert "memory may grow" in capsys.readouterr().err
    assert json.loads(output.read_text())["results"]["memory"]["limit_mib"] == -1e6
    assert output.with_suffix(".png").read_bytes()[:8] == PNG


def test_without_a_memory_reading_nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "rss_mib", lambda: None)
    with pytest.raises(EngineUnavailable, match="how much memory is resident"):
        soak.run(lambda image: image, [None], 1000)
