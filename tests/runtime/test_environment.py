"""The record of the machine and its disturbances, on copies of the kernel's own file layouts."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flss_runtime import machine, validity
from flss_runtime.environment import describe_environment
from flss_runtime.machine import Snapshot

QUIET: dict[str, float | None] = {
    "wall_s": 10.0,
    "own_cpu_cores": 1.0,
    "other_cpu_share": 0.01,
    "steal_share": 0.0,
    "quota_throttles": 0.0,
    "thermal_throttles": 0.0,
    "mhz_start": 3000.0,
    "mhz_end": 2990.0,
}
STEADY: dict[str, Any] = {
    "cpu_governors": ["performance"],
    "on_battery": False,
    "cpu_limit_cores": None,
    "logical_cores": 4,
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def names(flags: list[dict[str, str]]) -> list[str]:
    return [flag["name"] for flag in flags]


def test_record_is_json_and_names_no_host_user_or_path() -> None:
    text = json.dumps(describe_environment(), allow_nan=False)
    words = re.findall(r"[\w.-]+", text)
    assert platform.node() not in words and getpass.getuser() not in words
    assert str(Path.home()) not in text and os.getcwd() not in text
    assert "numpy" in describe_environment()["packages"]
    assert describe_environment()["engines"]["ort"].startswith("onnxruntime")


def test_the_record_imports_no_engine() -> None:
    code = (
        "import sys; from flss_runtime.environment import describe_environment; describe_environment(); "
        "print([name for name in ('onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx_bindings', 'cuda') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_machine_without_any_counter_gives_none_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    readers = (machine.cpu_model, machine.installed_cores, machine.memory_mib, machine.governors, machine.cpu_mhz)
    for read in (*readers, machine.is_virtual, machine.on_battery, machine.cgroup_cpu_limit):
        assert read(tmp_path) is None, read.__name__
    counters = Snapshot.take(tmp_path).until(Snapshot.take(tmp_path))
    missing = {name for name, value in counters.items() if value is None}
    assert missing == {"other_cpu_share", "steal_share", "quota_throttles", "thermal_throttles", "mhz_start", "mhz_end"}
    assert validity.run_flags([counters], None, 4) == []


def test_processor_files_are_read(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: Some CPU\ncpu MHz\t\t: 2400.5\nflags\t\t: fpu hypervisor sse\n",
            "proc/meminfo": "MemTotal:       2097152 kB\n",
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,2\n",
            "sys/devices/system/cpu/cpu1/topology/thread_siblings_list": "1,3\n",
            "sys/devices/system/cpu/cpu2/topology/thread_siblings_list": "0,2\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/class/power_supply/AC/type": "Mains\n",
            "sys/class/power_supply/AC/online": "0\n",
        },
    )
    assert machine.cpu_model(root) == "Some CPU"
    assert machine.installed_cores(root) == 2
    assert machine.memory_mib(root) == 2048
    assert machine.cpu_mhz(root) == 2400.5
    assert machine.is_virtual(root) is True
    assert machine.governors(root) == ["powersave"]
    assert machine.on_battery(root) is True


def test_an_arm_board_names_itself(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": "processor : 0\n", "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"})
    assert machine.cpu_model(root) == "NVIDIA Jetson Orin Nano"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/robot/node\n",
                "sys/fs/cgroup/robot/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/robot/node/cpu.max": "300000 100000\n",
            },
            1.0,
        ),
    ],
)
def test_the_tightest_container_limit_counts(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    assert machine.cgroup_cpu_limit(write(tmp_path, files)) == limit


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the length of a tick is asked of the system")
def test_other_load_and_steal_are_told_from_own_work(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    before = Snapshot(0.0, 5.0, (100, 0, 0, 900, 0, 0, 0, 0), 3, None, 3000.0)
    # 10 s on 2 processors: 8 s busy, of which 6 s were ours, 2 s stolen, 10 s idle
    after = Snapshot(10.0, 11.0, (100 + 8 * tick, 0, 0, 900 + 10 * tick, 0, 0, 0, 2 * tick), 5, None, 2000.0)
    counters = before.until(after)
    assert counters["other_cpu_share"] == pytest.approx(0.1)
    assert counters["steal_share"] == pytest.approx(0.1)
    assert counters["own_cpu_cores"] == pytest.approx(0.6)
    assert counters["quota_throttles"] == 2 and counters["thermal_throttles"] is None
    assert names(validity.run_flags([QUIET, counters], 9.0, 2)) == [
        "other_load",
        "steal",
        "quota_throttled",
        "clock_changed",
    ]


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_own_work_is_not_other_load() -> None:
    before = Snapshot.take()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    counters = before.until(Snapshot.take())
    assert counters["own_cpu_cores"] is not None and counters["own_cpu_cores"] > 0.2
    assert counters["other_cpu_share"] is not None and 0 <= counters["other_cpu_share"] <= 1


def test_a_quiet_machine_has_no_flag_and_load_average_counts_only_without_better() -> None:
    assert validity.run_flags([QUIET], 100.0, 4) == []
    blind = {**QUIET, "other_cpu_share": None}
    assert validity.run_flags([blind], 1.0, 4) == []
    assert names(validity.run_flags([blind], 3.0, 4)) == ["other_load"]


@pytest.mark.parametrize(
    ("change", "threads", "expected"),
    [
        ({}, 2, []),
        ({"cpu_governors": None, "on_battery": None}, 2, []),
        ({"cpu_governors": ["performance", "powersave"]}, 2, ["cpu_governor"]),
        ({"on_battery": True}, 2, ["battery"]),
        ({"cpu_limit_cores": 1.5}, 2, ["cpu_limit"]),
        ({"cpu_limit_cores": 1.5}, 1, []),
        ({}, 5, ["oversubscribed"]),
    ],
)
def test_machine_flags(change: dict[str, Any], threads: int, expected: list[str]) -> None:
    assert names(validity.machine_flags({**STEADY, **change}, threads)) == expected


def test_result_flags() -> None:
    calm = {"name": "n1", "variation": 0.01, "first_counted": 1.04}
    warm = {"arm": "n1", "stable": True}
    assert validity.result_flags([calm], [warm]) == []
    assert validity.result_flags([{**calm, "variation": None}], []) == []
    assert names(validity.result_flags([{**calm, "variation": 0.03}], [warm])) == ["variation"]
    assert names(validity.result_flags([{**calm, "interleaved_over_alone": 1.2}], [warm])) == ["baseline_shift"]
    assert names(validity.result_flags([calm], [{**warm, "stable": False}])) == ["warm_up"]
    assert names(validity.result_flags([{**calm, "first_counted": 1.3}], [warm])) == ["settling"]


def test_profile_flags() -> None:
    assert validity.profile_flags("standard") == []
    assert names(validity.profile_flags("quick")) == ["quick_profile"]
