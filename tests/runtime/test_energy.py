"""Energy counters on files as the kernel shows them, and on a device that counts."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flss_runtime import jetson
from flss_runtime.arms import Arm
from flss_runtime.energy import NvmlCounter, RailCounter, RaplCounter, energy_counters, measure_energy
from flss_runtime.gpu import FirstDevice
from flss_runtime.image_pool import ImagePool


def put(root: Path, name: str, value: object) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")
    return file


def package(root: Path, name: str, microjoules: int) -> Path:
    put(root, f"sys/class/powercap/{name}/max_energy_range_uj", 1_000_000)
    return put(root, f"sys/class/powercap/{name}/energy_uj", microjoules)


def rails(root: Path, **watts: tuple[int, int]) -> None:
    put(root, "sys/class/hwmon/hwmon3/name", "ina3221")
    put(root, "sys/class/hwmon/hwmon1/name", "cpu_thermal")
    put(root, "sys/class/hwmon/hwmon1/in1_label", "no rail")
    for channel, (name, (millivolts, milliamperes)) in enumerate(watts.items(), 1):
        put(root, f"sys/class/hwmon/hwmon3/in{channel}_label", name)
        put(root, f"sys/class/hwmon/hwmon3/in{channel}_input", millivolts)
        put(root, f"sys/class/hwmon/hwmon3/curr{channel}_input", milliamperes)
    put(root, "sys/class/hwmon/hwmon3/in7_label", "Sum of shunt voltages")
    put(root, "sys/class/hwmon/hwmon3/in7_input", 100)


def test_packages_are_added_up_and_may_wrap(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 900_000), package(tmp_path, "intel-rapl:1", 0)
    package(tmp_path, "intel-rapl:0:0", 0)  # a part of the first one
    counter = RaplCounter(tmp_path)
    start = counter.joules()
    first.write_text("100000\n")  # past the end of its range: 0.2 J
    second.write_text("500000\n")
    assert counter.joules() - start == pytest.approx(0.7)
    assert counter.joules() - start == pytest.approx(0.7)
    assert counter.boundary.startswith("2 processor package(s)")


def test_rails_are_watts_and_the_input_stands_for_all(tmp_path: Path) -> None:
    assert jetson.power_rails(tmp_path) is None
    rails(tmp_path, VDD_GPU_SOC=(19_000, 500), VDD_CPU_CV=(19_000, 100))
    assert jetson.power_rails(tmp_path) == pytest.approx({"VDD_GPU_SOC": 9.5, "VDD_CPU_CV": 1.9})
    rails(tmp_path, VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 1000))
    assert jetson.power_rails(tmp_path) == {"VDD_IN": 10.0}


def test_rails_are_summed_up_over_time(tmp_path: Path) -> None:
    rails(tmp_path, VDD_IN=(5000, 2000))
    counter = RailCounter(tmp_path)
    try:
        began, start = time.perf_counter(), counter.joules()
        time.sleep(0.2)
        spent, found = time.perf_counter() - began, counter.joules() - start
    finally:
        counter.close()
    assert found == pytest.approx(10.0 * spent, rel=0.05)


def test_a_gpu_counts_millijoules() -> None:
    class Refused(Exception):
        pass

    def refuse(handle: object) -> None:
        raise Refused

    nvml: Any = SimpleNamespace(nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500, NVMLError=Refused)
    assert NvmlCounter(FirstDevice(nvml, 0)).joules() == 2.5
    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    with pytest.raises(OSError, match="does not count"):
        NvmlCounter(FirstDevice(nvml, 0)).joules()
    assert FirstDevice(nvml, 0).energy_j() is None and FirstDevice(nvml, 0).used_mib() is None


def test_a_machine_without_counters_is_no_error(tmp_path: Path) -> None:
    with energy_counters(tmp_path) as found:
        assert [counter.name for counter in found if counter.name != "nvml"] == []
    package(tmp_path, "intel-rapl:0", 5)
    rails(tmp_path, VDD_IN=(5000, 2000))
    with energy_counters(tmp_path) as found:
        assert [counter.name for counter in found][:2] == ["rapl", "hwmon"]


def test_a_frame_takes_as_much_energy_as_it_takes_time() -> None:
    class Lamp:
        """Burns ten watts."""

        name, boundary = "lamp", "all of it"

        def joules(self) -> float:
            return 10 * time.perf_counter()

    def arm(name: str, seconds: float) -> Arm:
        return Arm(name, lambda image: time.sleep(seconds), lambda images: None, lambda: None)

    pool = ImagePool((np.zeros((2, 2, 3), np.uint8),), "none", None)
    (row,) = measure_energy([arm("short", 0.005), arm("long", 0.010)], pool, [0], 0.05, [Lamp()])
    short, long = row["arms"]
    assert row["idle_w"] == pytest.approx(10, rel=0.05) and long["watts"] == pytest.approx(10, rel=0.1)
    assert short["joules_per_frame"] == pytest.approx(10 * short["seconds"] / short["frames"], rel=0.1)
    assert long["joules_per_frame"] == pytest.approx(10 * long["seconds"] / long["frames"], rel=0.1)
    assert long["joules_per_frame"] > short["joules_per_frame"]
    assert measure_energy([arm("short", 0)], pool, [0], 10, []) == []


def test_a_counter_that_fails_in_between_is_left_out(tmp_path: Path) -> None:
    file = package(tmp_path, "intel-rapl:0", 0)
    rails(tmp_path, VDD_IN=(5000, 2000))
    pool = ImagePool((np.zeros((2, 2, 3), np.uint8),), "none", None)
    arm = Arm("arm", lambda image: time.sleep(0.001), lambda images: None, lambda: None)
    with energy_counters(tmp_path) as found:
        counters = [counter for counter in found if counter.name != "nvml"]
        rows = measure_energy([arm], pool, [0], 0.02, counters)
        assert [row["counter"] for row in rows] == ["rapl", "hwmon"]
        file.unlink()
        assert [row["counter"] for row in measure_energy([arm], pool, [0], 0.02, counters)] == ["hwmon"]
        (tmp_path / "sys/class/hwmon/hwmon3/name").unlink()
        assert measure_energy([arm], pool, [0], 0.02, counters) == []
