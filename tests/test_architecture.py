"""The arrows between the packages, and what importing them costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "scipy"}
HEAVY |= {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings", "cuda", "pynvml", "mcap", "zstandard"}
COMMAND_LINE = {"typer", "rich", "click"}
PACKAGES = {
    "flss_edge": ROOT / "flss_edge",
    "flss_export": ROOT / "export/flss_export",
    "flss_runtime": ROOT / "runtime/flss_runtime",
}
IMPORT_BUDGET_MS = 100


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(imports: str) -> set[str]:
    loaded = json.loads(run_python(f"import sys, json; {imports}; print(json.dumps(sorted(sys.modules)))"))
    return {name.partition(".")[0] for name in loaded}


def runtime_modules() -> list[str]:
    files = sorted(PACKAGES["flss_runtime"].rglob("*.py"))
    names = [".".join(file.relative_to(ROOT / "runtime").with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_imports_follow_the_contracts() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_runtime_module_is_free_of_training_and_command_line_libraries() -> None:
    loaded = modules_after("; ".join(f"import {name}" for name in runtime_modules()))
    assert not loaded & (HEAVY | COMMAND_LINE | {"flss_edge", "flss_export"})


@pytest.mark.parametrize("package", ["flss_edge", "flss_export", "flss_edge.data", "flss_edge.cli"])
def test_imports_without_heavy_libraries(package: str) -> None:
    assert not modules_after(f"import {package}") & HEAVY


def test_every_package_is_typed() -> None:
    assert [name for name, folder in PACKAGES.items() if not (folder / "py.typed").is_file()] == []


def test_importing_the_runtime_costs_little_over_numpy() -> None:
    code = (
        "import numpy, time; start = time.perf_counter(); import flss_runtime; "
        "print((time.perf_counter() - start) * 1e3)"
    )
    times_ms = [float(run_python(code)) for _ in range(7)]
    assert statistics.median(times_ms) < IMPORT_BUDGET_MS, times_ms


def test_the_runtime_offers_its_names_at_the_top() -> None:
    import flss_runtime

    missing = [name for name in flss_runtime.__all__ if not hasattr(flss_runtime, name)]
    assert not missing
