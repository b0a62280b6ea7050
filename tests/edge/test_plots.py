"""Pictures of a benchmark: drawn from its JSON alone, refused with a remedy otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_edge.plots import main, plot_benchmark
from flss_runtime.errors import OutputError, UsageError
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
