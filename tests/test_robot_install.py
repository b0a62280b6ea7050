"""The robot's environment: the wheel with `[cpu]` in a clean virtual environment, where torch and onnx do not exist."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "scipy", "matplotlib")


def succeed(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the executables of a clean environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("robot")
    quiet = ("--quiet", "--disable-pip-version-check")
    succeed(sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-w", folder / "wheel", ROOT)
    (wheel,) = (folder / "wheel").glob("flss_edge-*.whl")
    venv.create(folder / "venv", with_pip=True)
    executables = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    succeed(executables / "python", "-m", "pip", "install", *quiet, f"{wheel}[cpu]")
    return executables


def test_nothing_of_training_is_installed(robot: Path) -> None:
    code = f"from importlib.util import find_spec; print([name for name in {ABSENT} if find_spec(name)])"
    assert succeed(robot / "python", "-c", code) == "[]\n"


def test_every_runtime_module_is_in_the_wheel_and_imports(robot: Path) -> None:
    files = sorted((ROOT / "runtime/flss_runtime").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT / "runtime").with_suffix("").parts) for file in files]
    imports = "; ".join(f"import {name.removesuffix('.__init__')}" for name in names)
    succeed(robot / "python", "-c", f"{imports}; import flss_edge.cli, flss_edge.data, flss_export")


def test_the_robots_commands_work(
    robot: Path, calibrated_bundle: Path, labelled_pictures: Path, tmp_path: Path
) -> None:
    command = robot / "flss-edge"
    assert succeed(command, "--version").startswith("flss-edge ")
    succeed(command, "doctor", cwd=tmp_path)
    succeed(command, "inspect", calibrated_bundle, cwd=tmp_path)
    few = ("--budget", "0.05")  # its 64 images cannot show less
    verified = json.loads(succeed(command, "verify", calibrated_bundle, *few, "--format", "json", cwd=tmp_path))
    assert verified["results"]["passed"] is True
    measured = json.loads(
        succeed(command, "evaluate", calibrated_bundle, "--data", labelled_pictures, "--format", "json", cwd=tmp_path)
    )
    assert measured["results"]["classifiers"][0]["groups"]["clean"]["n"] == 60
    predicted = succeed(command, "predict", calibrated_bundle, labelled_pictures, "--format", "json", cwd=tmp_path)
    assert {row["status"] for row in json.loads(predicted)["results"]} == {"accepted", "low_vote"}
    replayed = succeed(command, "replay", labelled_pictures, calibrated_bundle, "--format", "json", cwd=tmp_path)
    assert json.loads(replayed)["results"]["frames"] == 60
    quick = ("--profile", "quick", "--allow-invalid", "--format", "json")
    timed = json.loads(succeed(command, "bench", calibrated_bundle, *quick, cwd=tmp_path))
    assert [row["arm"] for row in timed["results"]["overhead"]][:4] == ["n1", "n10", "n100", "n1000"]


def test_training_commands_say_what_to_install(robot: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(robot / "flss-edge"), "export", "model.pt"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 6
    assert "pip install 'flss-edge[train]'" in done.stderr and "Traceback" not in done.stderr
