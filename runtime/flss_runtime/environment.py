"""What machine and versions a result comes from, and what `flss-edge doctor` checks; no host, user or folder in it."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from flss_runtime import machine
from flss_runtime.engines import engine_status

_OLDEST_PYTHON = (3, 10)
_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "onnx",
    "pillow",
)
_RUNTIME_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, None if it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit this code runs from, with "-dirty" where it was changed; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not ((root / ".git").exists() and (root / "runtime" / "flss_runtime").is_dir()):
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def describe_environment() -> dict[str, Any]:
    """Record machine, system and versions.

    Returns:
        JSON values; None where the platform does not tell. Memory in MiB. No host name, user name or path.
    """
    clock = time.get_clock_info("perf_counter")
    return {
        "flss_edge": version_of("flss-edge"),
        "git_commit": git_commit(),
        "cpu": machine.cpu_model(),
        "architecture": platform.machine(),
        "virtual": machine.is_virtual(),
        "physical_cores": machine.installed_cores(),
        "logical_cores": machine.logical_cores(),
        "cpu_limit_cores": machine.cgroup_cpu_limit(),
        "cpu_governors": machine.governors(),
        "cpu_mhz": machine.cpu_mhz(),
        "on_battery": machine.on_battery(),
        "memory_mib": machine.memory_mib(),
        "load_average": machine.load_average(),
        "os": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in _PACKAGES if (version := version_of(name))},
        "engines": {name: None if text.startswith("absent") else text for name, text in engine_status().items()},
        "clock_resolution_ns": clock.resolution * 1e9,
    }


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `flss-edge doctor`.

    Attributes:
        status: "fail" means that no image can be classified until `fix` is done.
        fix: what to do, empty when ok.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def diagnose() -> list[Check]:
    """Check whether this machine can classify, and what would make its timings worthless.

    Returns:
        Checks in the order of their weight; nothing is changed or written.
    """
    return [
        _check_python(),
        *_check_packages(),
        *_check_engines(),
        _check_conflicts(),
        _check_training(),
        *_check_processor(),
    ]


def _check_python() -> Check:
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info[:2] >= _OLDEST_PYTHON:
        return Check("python", "ok", text)
    return Check("python", "fail", text, "use Python 3.10 or newer")


def _check_packages() -> Iterator[Check]:
    for package, needed_for in (("numpy", "everything"), ("pillow", "reading picture files")):
        version = version_of(package)
        if version:
            yield Check(package, "ok", version)
        else:
            status: Literal["warn", "fail"] = "fail" if package == "numpy" else "warn"
            yield Check(package, status, f"absent, needed for {needed_for}", f"pip install {package}")


def _check_engines() -> Iterator[Check]:
    found = engine_status()
    usable = [name for name, text in found.items() if not text.startswith("absent")]
    for name, text in found.items():
        if name in usable:
            yield Check(f"engine {name}", "ok", text)
        else:
            reason, _, fix = text.removeprefix("absent: ").rpartition("; ")
            yield Check(f"engine {name}", "warn" if usable else "fail", f"absent: {reason or fix}", fix)


def _check_conflicts() -> Check:
    """Several ONNX Runtime wheels overwrite each other's files: the last one installed wins, silently."""
    found = [f"{name} {version}" for name in _RUNTIME_WHEELS if (version := version_of(name))]
    if len(found) < 2:
        return Check("conflicts", "ok", "none")
    fix = f"pip uninstall {' '.join(text.split()[0] for text in found)}, then install the one extra you need"
    return Check("conflicts", "fail", f"installed over each other: {', '.join(found)}", fix)


def _check_training() -> Check:
    missing = [name for name in ("torch", "torchvision", "onnx") if find_spec(name) is None]
    if not missing:
        return Check("training", "ok", f"torch {version_of('torch')}, onnx {version_of('onnx')}")
    return Check(
        "training", "ok", f"off: {', '.join(missing)} absent; only train, export and what reads a checkpoint need them"
    )


def _check_processor() -> Iterator[Check]:
    physical, logical = machine.installed_cores(), machine.logical_cores()
    yield Check(
        "processor", "ok", f"{machine.cpu_model() or 'unknown'}, {physical or '?'} cores, {logical} usable threads"
    )
    governors = machine.governors()
    if governors and governors != ["performance"]:
        fix = "before timing: sudo cpupower frequency-set -g performance (Jetson: sudo jetson_clocks)"
        yield Check("cpu governor", "warn", ", ".join(governors), fix)
    else:
        yield Check("cpu governor", "ok", "performance" if governors else "no frequency control visible")
    limit = machine.cgroup_cpu_limit()
    if limit is not None and limit < logical:
        fix = "raise the container's limit (docker run --cpus), or pass --threads to match it"
        yield Check("cpu limit", "warn", f"the container may use {limit:g} of {logical} processors", fix)
    else:
        yield Check("cpu limit", "ok", "none" if limit is None else f"{limit:g} processors")
    if machine.on_battery():
        yield Check("power", "warn", "on battery: clocks may drop", "plug the machine in before timing")
