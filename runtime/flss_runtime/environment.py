"""What machine and versions a result comes from; no host, user or folder in it."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from flss_runtime import jetson, machine
from flss_runtime.gpu import find_gpus

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13-libs",
    "cuda-python",
    "nvidia-ml-py",
    "torch",
    "onnx",
    "pillow",
)

# Engine -> the distributions it may come in. Looked up, not imported: together they would cost a second and 100 MB.
_ENGINES = {
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "trt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13-libs"),
}


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
    gpus, driver = find_gpus()
    packages = {name: version for name in _PACKAGES if (version := version_of(name))}
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
        "gpus": [asdict(gpu) for gpu in gpus],
        "nvidia_driver": driver.nvidia,
        "cuda_driver": driver.cuda,
        "jetson_linux": jetson.release(),
        "power_mode": jetson.power_mode(),
        "load_average": machine.load_average(),
        "os": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": packages,
        "engines": {
            engine: next((f"{name} {packages[name]}" for name in names if name in packages), None)
            for engine, names in _ENGINES.items()
        },
        "clock_resolution_ns": clock.resolution * 1e9,
    }
