"""GPUs, drivers and a Jetson's clocks, on copies of the files' own layouts and on a stand-in with NVML's own names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flss_runtime import jetson
from flss_runtime.diagnosis import check_gpus, check_jetson
from flss_runtime.gpu import Driver, Gpu, find_gpus, read_gpus

NVPMODEL_CONF = """
# < POWER_MODEL ID=2 NAME=IN_A_COMMENT >
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=0 >
"""
ORIN: dict[str, str] = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": NVPMODEL_CONF,
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/devfreq/15340000.vic/max_freq": "729600000\n",
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_is_read_from_its_files(tmp_path: Path) -> None:
    root = write(tmp_path, ORIN)
    assert jetson.release(root) == "36.4.3"
    assert jetson.power_mode(root) == "MAXN_SUPER"
    assert jetson.gpu_clock(root) == jetson.GpuClock("nvhost_podgov", 306.0, 1020.0, locked=False)
    gpus, driver = read_gpus(None, root)
    assert [gpu.name for gpu in gpus] == ["integrated GPU of NVIDIA Jetson Orin Nano Developer Kit"]
    assert (gpus[0].clock_mhz, gpus[0].max_clock_mhz, gpus[0].clock_locked) == (306.0, 1020.0, False)
    assert driver == Driver()


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({"var/lib/nvpmodel/status": "pmode:0000\n"}, "15W"),
        ({"var/lib/nvpmodel/status": "pmode:0007\n"}, "mode 7"),
        ({"var/lib/nvpmodel/status": ""}, "15W"),  # never changed: the configured default
        ({"etc/nvpmodel.conf": ""}, "mode 2"),
        ({"etc/nvpmodel.conf": "", "var/lib/nvpmodel/status": ""}, None),
    ],
)
def test_power_modes(tmp_path: Path, files: dict[str, str], mode: str | None) -> None:
    assert jetson.power_mode(write(tmp_path, {**ORIN, **files})) == mode


def test_jetson_clocks_is_seen(tmp_path: Path) -> None:
    held = {"sys/class/devfreq/17000000.gpu/min_freq": "1020000000\n"}
    clock = jetson.gpu_clock(write(tmp_path, {**ORIN, **held}))
    assert clock is not None and clock.locked


def test_a_machine_without_anything_of_nvidia(tmp_path: Path) -> None:
    assert (jetson.release(tmp_path), jetson.power_mode(tmp_path), jetson.gpu_clock(tmp_path)) == (None, None, None)
    assert read_gpus(None, tmp_path) == ([], Driver())
    find_gpus(tmp_path)  # whatever NVML says here, it is no error


def test_without_nvml_the_drivers_files_name_the_gpu(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/module/nvidia/version": "535.183.01\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 2080 Ti\nIRQ: 1\n",
        },
    )
    assert read_gpus(None, root) == ([Gpu("NVIDIA GeForce RTX 2080 Ti")], Driver("535.183.01"))


class Nvml:
    """Answers what it was given; every name it is asked for must exist in the real package."""

    def __init__(self, **answers: Any) -> None:
        self._real = pytest.importorskip("pynvml")
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)  # AttributeError: NVML has no such function
        if not callable(real) or isinstance(real, type):
            return real

        def answer(*_arguments: Any) -> Any:
            if name not in self._answers:
                raise self._real.NVMLError_NotSupported
            return self._answers[name]

        return answer


FULL = {
    "nvmlSystemGetDriverVersion": "580.65.06",
    "nvmlSystemGetCudaDriverVersion_v2": 13010,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": object(),
    "nvmlDeviceGetName": b"NVIDIA GeForce RTX 2080 Ti",  # bytes, as in older versions
    "nvmlDeviceGetCudaComputeCapability": (7, 5),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=11264 * 2**20),
    "nvmlDeviceGetClockInfo": 1350,
    "nvmlDeviceGetMaxClockInfo": 2100,
    "nvmlDeviceGetPowerUsage": 55000,
    "nvmlDeviceGetEnforcedPowerLimit": 250000,
    "nvmlDeviceGetTemperature": 41,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4 | 0x40,  # idle counts for nothing
    "nvmlDeviceGetComputeRunningProcesses": [object(), object()],
}


def test_nvml_is_read(tmp_path: Path) -> None:
    gpus, driver = read_gpus(Nvml(**FULL), tmp_path)
    assert driver == Driver("580.65.06", "13.1")
    assert gpus == [
        Gpu(
            "NVIDIA GeForce RTX 2080 Ti", "7.5", 11264, 1350, 2100, None, 55.0, 250.0, 41,
            ("power cap", "heat (hardware)"), 2,
        )
    ]  # fmt: skip
    json.dumps([asdict(gpu) for gpu in gpus], allow_nan=False)


def test_what_nvml_does_not_support_is_none_and_the_files_fill_in(tmp_path: Path) -> None:
    """As on an Orin: NVML counts the GPU and knows little else."""
    answers = {name: FULL[name] for name in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex")}
    gpus, driver = read_gpus(Nvml(**answers, nvmlDeviceGetName="Orin (nvgpu)"), write(tmp_path, ORIN))
    assert gpus == [Gpu("Orin (nvgpu)", clock_mhz=306.0, max_clock_mhz=1020.0, clock_locked=False)]
    assert driver == Driver()


class OldNvml(Nvml):
    """A package from before NVML's "event reasons" and its processes."""

    def __getattr__(self, name: str) -> Any:
        if name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses"):
            raise AttributeError(name)
        return super().__getattr__(name)


def test_an_older_nvml_lacks_functions(tmp_path: Path) -> None:
    (gpu,), _ = read_gpus(OldNvml(**FULL, nvmlDeviceGetCurrentClocksThrottleReasons=0x4), tmp_path)
    assert (gpu.slowed_by, gpu.processes, gpu.power_w) == (("power cap",), None, 55.0)


def statuses(checks: Any) -> dict[str, str]:
    found = list(checks)
    assert all((check.status == "ok") == (check.fix == "") for check in found)
    return {check.name: check.status for check in found}


def test_checks_of_a_gpu() -> None:
    calm = Gpu("A GPU", "8.6", clock_mhz=210.0, max_clock_mhz=2100.0, slowed_by=(), processes=0)
    assert statuses(check_gpus([calm], Driver("580", "13.0"))) == {"gpu 0": "ok", "gpu 0 clock": "ok"}
    hot = Gpu("A GPU", slowed_by=("heat (hardware)",), processes=1)
    assert statuses(check_gpus([hot], Driver())) == {"gpu 0": "ok", "gpu 0 clock": "warn", "gpu 0 load": "warn"}
    assert statuses(check_gpus([Gpu("A GPU")], Driver())) == {"gpu 0": "ok", "gpu 0 clock": "warn"}


@pytest.mark.parametrize(
    ("mode", "locked", "expected"),
    [
        (None, None, {}),
        ("MAXN_SUPER", True, {"power mode": "ok", "gpu clock": "ok"}),
        ("15W", False, {"power mode": "warn", "gpu clock": "warn"}),
    ],
)
def test_checks_of_a_jetson(mode: str | None, locked: bool | None, expected: dict[str, str]) -> None:
    assert statuses(check_jetson(mode, [Gpu("a GPU", clock_locked=locked)])) == expected
