"""Budgets: what we add to the bare engine, as ratios, so that they hold on any machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import FOLDER, PNG, load, start

from flss_runtime.errors import InferenceError

pytest.importorskip("matplotlib", reason="needs the extra plot")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="reads processor time and /proc")
footprint = load("footprint")

# Over importing numpy and onnxruntime, over a bare loop on the same graphs, over the installed engine. Processor time:
# it hardly depends on what else runs.
IMPORT, FIRST_DECISION, MEMORY, WHEEL, ENVIRONMENT = 2.0, 1.8, 1.15, 0.02, 1.4


def ratio(ours: tuple[str, ...], bare: tuple[str, ...]) -> float:
    found: dict[str, Any] = footprint.paired(
        "", "ms", 3, lambda: footprint.cpu_ms(*ours), lambda: footprint.cpu_ms(*bare)
    )
    return float(found["ratio"])


def test_importing_us_adds_little_to_importing_the_engine() -> None:
    assert ratio((footprint.IMPORT_OURS,), (footprint.IMPORT_BARE,)) < IMPORT


def test_the_budget_would_notice_torch() -> None:
    heavy = f"{footprint.IMPORT_OURS}; import torch"
    pytest.importorskip("torch")
    assert ratio((heavy,), (footprint.IMPORT_BARE,)) > IMPORT


def test_the_first_decision_comes_soon_after_a_bare_loops(tiny_bundle: Path) -> None:
    arguments = (str(tiny_bundle), "1", str(FOLDER))
    assert ratio((footprint.OURS, *arguments), (footprint.BARE, *arguments)) < FIRST_DECISION


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_we_need_little_more_memory_than_a_bare_loop(tiny_bundle: Path) -> None:
    arguments = (str(tiny_bundle), "200", str(FOLDER))
    ours = footprint.resident(footprint.OURS, *arguments)
    bare = footprint.resident(footprint.BARE, *arguments)
    assert 0.8 < ours / bare < MEMORY
    wasteful = f"{footprint.OURS}\nkept = np.ones(3_000_000)"  # 24 MB
    assert footprint.resident(wasteful, *arguments) / bare > MEMORY


def test_the_script_writes_every_figure(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--quick", "--repeats", 1, "--allow-invalid", "-o", tmp_path / "footprint.json")
    done = start("footprint", tiny_bundle, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "footprint.json").read_text())["results"]["rows"]
    assert [row["name"] for row in rows] == ["import", "first decision", "memory"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["bare"]) for row in rows)
    assert (tmp_path / "footprint.png").read_bytes()[:8] == PNG


def test_what_a_process_said_is_shown(tmp_path: Path) -> None:
    code = "raise SystemExit('Traceback\\nerror: the bundle is broken\\n  fix: export it again')"
    with pytest.raises(InferenceError) as caught:
        footprint.run_python(code)
    assert caught.value.problem == "a process failed: error: the bundle is broken fix: export it again"


@pytest.mark.slow
def test_wheel_and_environment_are_small(tmp_path: Path) -> None:
    rows = {row["name"]: row["ratio"] for row in footprint.installed(tmp_path)}
    assert rows["wheel"] < WHEEL and 1 < rows["environment"] < ENVIRONMENT
