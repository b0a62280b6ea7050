"""Two results against each other: what is found, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flss_runtime.bench_compare import compare, differences, flags_of_both, read_benchmark
from flss_runtime.errors import DataError, UsageError


def result(speed: float = 1.0, cost: float = 1.03, seed: int = 0) -> dict[str, Any]:
    """A result of two arms with 3 processes of 10 blocks, which vary by half a percent together."""
    draw = np.random.default_rng(seed)
    shared = 10 * speed * draw.normal(1, 0.005, (3, 10))
    arms = [
        {"name": "deterministic", "block_medians_ms": shared.tolist()},
        {"name": "n100", "block_medians_ms": (cost * shared * draw.normal(1, 0.001, (3, 10))).tolist()},
    ]
    return {
        "schema_version": 1,
        "environment": {"cpu": "Some CPU", "packages": {"numpy": "2.0"}},
        "artifact": {"graphs_sha256": {"encoder": "a", "head": "b"}, "input": {"height": 32}},
        "config": {"boundary": "image to decision", "precision": "fp32", "images": {"count": 6}, "engine": "ort"},
        "results": {"arms": arms},
        "validity": {"flags": []},
    }


def test_a_change_is_found_with_its_interval() -> None:
    rows = {row["arm"]: row for row in compare(result(), result(speed=0.9, cost=1.01, seed=1))}
    plain, smoothed = rows["deterministic"], rows["n100"]
    assert plain["change_low_percent"] < -10 < plain["change_high_percent"] < -9
    assert "first_overhead_percent" not in plain
    assert smoothed["first_overhead_percent"] == pytest.approx(3, abs=0.1)
    assert smoothed["overhead_change_low_points"] < -2 < smoothed["overhead_change_high_points"] < -1.8
    # What the blocks share cancels in the overhead, and does not in the time.
    assert (
        smoothed["overhead_change_high_points"] - smoothed["overhead_change_low_points"]
        < (smoothed["change_high_percent"] - smoothed["change_low_percent"]) / 2
    )
    assert compare(result(), result(speed=0.9, cost=1.01, seed=1)) == list(rows.values()), "fixed seed"


def test_the_same_has_not_changed() -> None:
    for row in compare(result(), result(seed=3)):
        assert row["change_low_percent"] < 0 < row["change_high_percent"]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("config", "boundary"), "camera frame to decision", "another place: image to decision and camera frame"),
        (("config", "precision"), "int8", "another precision: fp32 and int8"),
        (("config", "images"), {"count": 7}, "other images"),
        (("artifact", "graphs_sha256"), {"encoder": "a", "head": "c"}, r"different graphs \(head\)"),
        (("artifact", "input"), {"height": 224}, r"different inputs \(height\)"),
    ],
)
def test_what_is_not_comparable_is_refused(place: tuple[str, str], value: object, said: str) -> None:
    other = result()
    other[place[0]][place[1]] = value
    with pytest.raises(UsageError, match=said):
        compare(result(), other)


def test_without_a_common_arm_there_is_nothing_to_compare() -> None:
    other = result()
    other["results"]["arms"] = [{"name": "n7", "block_medians_ms": [[1.0]]}]
    with pytest.raises(UsageError, match="no arm in common"):
        compare(result(), other)


def test_what_differs_otherwise_is_named() -> None:
    other = copy.deepcopy(result())
    other["config"]["engine"] = "openvino"
    other["environment"]["packages"] = {"numpy": "2.1", "openvino": "2026"}
    other["validity"]["flags"] = [{"name": "steal", "detail": "the hypervisor took 3 %"}]
    assert differences(result(), other) == [
        "engine: ort and openvino",
        "numpy: 2.0 and 2.1",
        "openvino: None and 2026",
    ]
    assert flags_of_both(result(), other) == [{"name": "steal", "detail": "second: the hypervisor took 3 %"}]


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"results": {}}', json.dumps({**result(), "results": {"rows": []}})]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        read_benchmark(file)
    with pytest.raises(DataError, match=r"missing\.json"):
        read_benchmark(tmp_path / "missing.json")


def test_a_result_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result()))
    assert read_benchmark(tmp_path / "a.json") == result()


_TIMES = [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), 99),
        (("environment", "packages"), None),
        (("validity", "flags"), None),
        (("validity", "flags"), ["noisy"]),
        (("results", "arms"), None),
        (("results", "arms"), []),
        (("results", "arms"), ["n100"]),
        (("results", "arms"), [{"block_medians_ms": _TIMES}]),
        (("results", "arms"), [{"name": "n1", "block_medians_ms": _TIMES}] * 2),
        *[
            (("results", "arms"), [{"name": "n1", "block_medians_ms": times}])
            for times in (None, [], [[]], [1.0], [[1.0], [1.0, 2.0]], [[0.0]], [[float("nan")]], [["1"]], [[10**400]])
        ],
        (
            ("results", "arms"),
            [{"name": "n1", "block_medians_ms": _TIMES}, {"name": "n2", "block_medians_ms": [[1.0]]}],
        ),
    ],
)
def test_a_damaged_result_is_refused(place: tuple[str, ...], value: object, tmp_path: Path) -> None:
    damaged = result()
    part: dict[str, Any] = damaged
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match=r"a\.json is not the result of a benchmark: "):
        read_benchmark(tmp_path / "a.json")


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="cannot be read"):
        read_benchmark(tmp_path / "a.json")
