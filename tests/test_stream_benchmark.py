"""The stream's benchmark counts what it says it counts, and refuses a result that came too late."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_scripts import PNG, load, start

from flss_runtime.errors import CheckFailed

pytest.importorskip("matplotlib", reason="needs the extra plot")
stream = load("stream")
MS = 10**6


def test_missing_results_late_ones_and_second_ones_are_counted() -> None:
    submitted = np.arange(10, dtype=np.int64) * 33 * MS
    called, calls = submitted + 5 * MS, np.ones(10, np.int64)
    called[3] += 6 * MS  # 1 ms after a deadline of 10
    calls[4], called[4], calls[5] = 0, 0, 2
    found = stream.describe(submitted, called, calls, 10.0)
    assert (found["missing"], found["twice"], found["latency"]["n"]) == (1, 1, 9)
    assert found["later_than_ms"] == {"1": 0, "5": 0}
    assert stream.describe(submitted, called, calls, 9.5)["later_than_ms"] == {"1": 1, "5": 0}
    assert found["past_deadline"]["max_ms"] == pytest.approx(1.0) and found["latency"]["max_ms"] == pytest.approx(11.0)


def test_what_the_stream_adds_is_found() -> None:
    draw = np.random.default_rng(0)
    bare = draw.gamma(400, 0.01, 1000)
    found = stream.compare(bare + 0.05, bare)["overhead"]
    assert found["difference_ms"] == pytest.approx(0.05) and found["blocks"] == 10


def row(load: str, over_ms: float, missing: int = 0, twice: int = 0) -> dict[str, Any]:
    return {
        "load": load,
        "deadline": "tight",
        "missing": missing,
        "twice": twice,
        "past_deadline": {"max_ms": over_ms},
        "latency": {"n": 3000},
        "later_than_ms": {"1": 7, "5": 2},
    }


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("quiet", 1.2)], "quiet, tight deadline: 7 of 3000 results came up to 1.20 ms late"),
        ([row("quiet", 0.9), row("busy", 5.1)], "busy, tight deadline: 2 of 3000 results came up to 5.10 ms"),
        ([row("busy", 0.0, missing=1)], "1 frames without result"),
        ([row("busy", 0.0, twice=2)], "2 with more than one"),
    ],
)
def test_what_was_promised_is_judged(rows: list[dict[str, Any]], words: str) -> None:
    result = {"results": {"runs": rows, "limit_ms": stream.LIMIT_MS}}
    with pytest.raises(CheckFailed, match=words):
        stream.judge(result)
    stream.judge({"results": {"runs": [row("quiet", 0.9), row("busy", 4.9)], "limit_ms": stream.LIMIT_MS}})
    stream.judge({"results": {"runs": [row("quiet", 50.0)], "limit_ms": None}})


def test_a_machine_whose_timers_are_late_is_flagged() -> None:
    rows = [{**row(load, 0.0), "timer_late": {"max_ms": 2.5}} for load in ("quiet", "busy")]
    (found,) = stream.timer_flags(rows)
    assert found["name"] == "timer" and "2.50 ms late (quiet, tight deadline)" in found["detail"]


def test_a_classifier_that_does_not_keep_up_has_no_latency() -> None:
    assert stream.keeps_up({"accepted": 70, "low_vote": 29, "deadline": 1})
    assert not stream.keeps_up({"accepted": 98, "deadline": 2}) and not stream.keeps_up({"superseded": 100})


def test_cores_are_busy_while_it_lasts() -> None:
    with stream.busy_cores(True):
        pass
    done = subprocess.run([sys.executable, "-c", stream.BUSY, "1"], timeout=30, check=False)
    assert done.returncode == 0, "without its parent it ends"


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="Linux alone has real-time priorities")
def test_the_busy_processes_have_no_real_time_priority() -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(3))
    except PermissionError:
        pytest.skip("real-time priorities are not allowed here")
    try:
        assert stream.scheduling() == "SCHED_FIFO 3"
        child = subprocess.Popen([sys.executable, "-c", stream.BUSY, str(os.getpid())])
        end = time.monotonic() + 20
        while (os.sched_getscheduler(child.pid), os.getpriority(os.PRIO_PROCESS, child.pid)) != (os.SCHED_OTHER, 10):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.sched_setscheduler(0, *before)
    child.kill()
    child.wait()


@pytest.mark.skipif(not os.access(stream.WAKE_UP, os.R_OK | os.W_OK), reason="no such device, or not for this user")
def test_the_cores_are_kept_awake_while_it_lasts() -> None:
    def longest_us() -> int:
        return int(struct.unpack("i", stream.WAKE_UP.read_bytes())[0])

    before = longest_us()
    if before == 0:
        pytest.skip("somebody keeps them awake already")
    with stream.awake_cores(False):
        assert longest_us() == before
    with stream.awake_cores(True):
        assert longest_us() == 0
    assert longest_us() == before


def test_a_machine_that_cannot_keep_them_awake_says_so(
    calibrated_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place in ("none", "file"):  # the latter is what root's shell makes of a device that is not there
        monkeypatch.setattr(stream, "WAKE_UP", tmp_path / place)
        assert stream.main([str(calibrated_bundle), "--quick", "--awake", "-o", str(tmp_path / "a.json")]) == 2
        assert "--awake needs" in capsys.readouterr().err and not (tmp_path / "a.json").exists()
    assert not (tmp_path / "none").exists()


def test_the_script_writes_what_it_found(calibrated_bundle: Path, tmp_path: Path) -> None:
    options = ("--quick", "--frames", 200, "--rate", 100, "-n", 20, "--frame", "64x48", "--allow-invalid")
    done = start("stream", calibrated_bundle, *options, "-o", tmp_path / "stream.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "stream.json").read_text())
    assert result["config"]["scheduling"] == stream.scheduling()
    runs = result["results"]["runs"]
    assert [(each["load"], each["deadline"]) for each in runs] == [
        (load, deadline) for load in ("quiet", "busy") for deadline in ("roomy", "tight")
    ]
    for each in runs:
        assert 0 <= each["timer_late"]["max_ms"] < 10_000 and each["timer_late"]["n"] == 200
        assert sum(each["statuses"].values()) == each["latency"]["n"] == 200 and not each["missing"] + each["twice"]
    assert "overhead" not in runs[1]
    keeps_up = stream.keeps_up(runs[0]["statuses"])
    assert ("overhead" in runs[0]) == keeps_up == all(each["name"] != "slow" for each in result["validity"]["flags"])
    assert result["command"].startswith("python benchmarks/stream.py tiny.bundle --frames 200 --rate 100.0")
    assert (tmp_path / "stream.png").read_bytes()[:8] == PNG
    assert ("over the bare classifier" in done.stdout) == keeps_up
    assert start("stream", calibrated_bundle, *options, "-o", tmp_path / "stream.json", folder=tmp_path).returncode == 7
