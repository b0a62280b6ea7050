"""Results as messages: every field as a replay writes it; and the diagnostics and parameters around them."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros2")

import yaml
from flss_edge_msgs.msg import Decision as DecisionMessage
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

import flss_edge
from flss_edge_ros.diagnostics import (
    ERROR,
    OK,
    STALE,
    WARN,
    drift_status,
    stream_level,
    stream_status,
    unconfigured_status,
)
from flss_edge_ros.messages import ResultMessages, label_info
from flss_edge_ros.parameters import Settings
from flss_edge_ros.window import ResultWindow
from flss_runtime.decision import Decision, SmoothingPolicy, Status
from flss_runtime.errors import UsageError
from flss_runtime.replay.decision_message import STATUS_CODES, decision_values, encode_decision
from flss_runtime.stream import Origin, StreamHealth, StreamResult, StreamState, Timing

ROS2 = Path(__file__).parents[2] / "runtime" / "ros2"
NAMES = ("cat", "dög", "fox")
ORIGIN = Origin("ort", "fp32", "latent", "c10.bundle", "ab" * 32, 2.0)
SECOND = 1_000_000_000


def header() -> Header:
    made = Header(frame_id="caméra")
    made.stamp.sec, made.stamp.nanosec = 12, 345
    return made


def result(decision: Decision, delivered: int = 13_000_000, steady: int | None = None) -> StreamResult:
    voted = decision.top_label is not None
    timing = Timing(0, 1_000_000, 2_000_000, 12_000_000 if voted else None, delivered)
    return StreamResult(7, 12 * SECOND + 345, header(), decision, steady, 100 if voted else 0, timing, ORIGIN)


def read(message: bytes) -> str:
    """Show a serialised message: text, because no NaN is equal to another."""
    return repr(deserialize_message(message, DecisionMessage))


ACCEPTED = result(Decision(1, 1, 93, 0.93, Status.ACCEPTED, counter=2**62), steady=1)
REJECTED = result(Decision(None, 2, 51, 0.51, Status.LOW_VOTE, counter=0))
GATED = result(Decision(0, 0, 12, 0.12, Status.ACCEPTED, counter=5, gated=True))
FAULT = result(Decision(None, None, 0, 0.0, Status.FAULT, reason="the engine's gone"))


@pytest.mark.parametrize("each", [ACCEPTED, REJECTED, GATED, FAULT])
def test_a_decision_is_what_a_replay_writes(each: StreamResult) -> None:
    message = serialize_message(ResultMessages(NAMES).decision(each))
    written = encode_decision(decision_values(each, NAMES), 12 * SECOND + 345, "caméra")
    assert len(message) == len(written)  # but ROS leaves what was there in the bytes between the fields
    assert read(message) == read(written)


def test_the_message_is_used_again_without_traces() -> None:
    messages = ResultMessages(NAMES)
    messages.decision(ACCEPTED)
    again = messages.decision(FAULT)
    assert again.label == "" == again.steady_label == again.top_label and not again.accepted
    assert not again.has_counter and math.isnan(again.classify_ms)
    fresh = ResultMessages(NAMES).decision(FAULT)
    assert read(serialize_message(again)) == read(serialize_message(fresh))


def test_a_rejected_image_has_no_results() -> None:
    messages = ResultMessages(NAMES)
    accepted = messages.classification(ACCEPTED)
    assert [(each.class_id, each.score) for each in accepted.results] == [("1", 0.93)]
    info = label_info(NAMES, SmoothingPolicy(100), header().stamp)
    names = {str(each.class_id): each.class_name for each in info.class_map}
    assert names[accepted.results[0].class_id] == "dög", "whoever reads both has the name"
    assert list(messages.classification(REJECTED).results) == [] == list(messages.classification(FAULT).results)
    assert accepted.header == header()


def test_the_codes_are_those_of_the_message() -> None:
    assert {status: getattr(DecisionMessage, status.name) for status in Status} == STATUS_CODES


def test_without_vision_msgs_there_is_our_own_message() -> None:
    code = "import sys; sys.modules['vision_msgs'] = None; import flss_edge_ros.messages as m; print(m.Classification)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_the_readme_lists_the_parameters() -> None:
    table = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", (ROS2 / "README.md").read_text("utf-8"), re.MULTILINE)
    assert table == [(each.name, f"`{_shown(each.default)}`", each.metadata["meaning"]) for each in fields(Settings)]


def test_the_shipped_files_name_parameters_that_there_are() -> None:
    package = ROS2 / "flss_edge_ros"
    values = yaml.safe_load((package / "config" / "params.yaml").read_text("utf-8"))["/**"]["ros__parameters"]
    assert Settings(**values).deadline_ms == 100
    launch = (package / "launch" / "flss_edge.launch.py").read_text("utf-8")
    launched = re.findall(r'Argument\("\w+", "(\w+)", (\w+)', launch)
    assert len(launched) == 4 and set(launched) <= {(each.name, str(each.type)) for each in fields(Settings)}
    assert re.findall("default_value=(.+?),", launch) == ['""', "str(PARAMETERS)", '""'], "else it beats the file"


def test_there_is_one_version() -> None:
    files = ROS2 / "flss_edge_msgs/package.xml", ROS2 / "flss_edge_ros/package.xml", ROS2 / "flss_edge_ros/setup.py"
    found = [re.search(r'<version>(.+)</version>|version="(.+)",', file.read_text("utf-8")) for file in files]
    assert [match and (match[1] or match[2]) for match in found] == [flss_edge.__version__] * 3


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"deadline_ms": math.nan}, "deadline_ms"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"qos_lease_ms": 500.0}, "qos_lease_ms"),
        ({"reduced_samples": 20, "deadline_ms": 0.0}, "reduced_samples"),
        ({"threads": -1}, "threads"),
        ({"image_topic": "a//b"}, "image_topic"),
        ({"bundle_path": None}, "bundle_path"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Settings(**{"bundle_path": "b", **values})  # type: ignore[arg-type]


def health(**values: object) -> StreamHealth:
    made: dict[str, object] = dict.fromkeys((each.name for each in fields(StreamHealth)), 0)
    made |= {"state": StreamState.RUNNING, "reason": "", "results": {}, "frame_age_s": 0.1, **values}
    return StreamHealth(**made)  # type: ignore[arg-type]


WINDOW = {
    "answer_hz": 29.9,
    "latency_p50_ms": 12.3,
    "missed_share": 0.0,
    "superseded_share": 0.05,
    "unpublished": 0,
    "unrecorded": 0,
}


@pytest.mark.parametrize(
    ("state", "window", "silent_s", "level", "words"),
    [
        ({}, {}, 0.1, OK, "29.9 decisions a second, 12.3 ms"),
        ({}, {}, None, STALE, "inactive"),
        ({}, {}, 3.5, STALE, "no image for 4 s"),
        ({"state": StreamState.FAULTED, "reason": "no graph"}, {}, None, ERROR, "faulted: no graph"),
        ({"state": StreamState.STALLED, "reason": "hangs"}, {}, 9.0, ERROR, "stalled: hangs"),
        ({"deadline_streak": 5}, {}, 0.1, ERROR, "5 deadlines"),
        ({"callback_errors": 2}, {}, 0.1, OK, "29.9 decisions a second"),
        ({}, {"unpublished": 2}, 0.1, WARN, "2 results not published"),
        ({}, {"unrecorded": 3}, 0.1, WARN, "3 frames not recorded"),
        ({}, {"missed_share": 0.2}, 0.1, WARN, "20% of the images missed their deadline"),
        ({}, {"superseded_share": 0.5}, 0.1, WARN, "50% of the images were superseded"),
        ({}, {"latency_p50_ms": None}, 0.1, OK, "no image decided"),
    ],
)
def test_levels(
    state: dict[str, object], window: dict[str, object], silent_s: float | None, level: bytes, words: str
) -> None:
    found = stream_level(health(**state), {**WINDOW, **window}, silent_s, 3.0)
    assert found[0] == level and words in found[1]


def test_drift_is_a_warning_and_too_few_frames_are_none() -> None:
    share = {"now": 0.4, "interval": [0.3, 0.5], "reference": 0.1, "reference_interval": [0.05, 0.2]}
    report = {"state": "drifting", "reason": "more rejected", "fix": "", "shares": {"rejected": share}, "evidence": 1.0}
    status = drift_status("/flss_edge", report, "c10.bundle")
    assert (status.level, status.message) == (WARN, "drifting: more rejected")
    assert {pair.key: pair.value for pair in status.values}["rejected, now"] == "0.4"
    assert drift_status("/n", {**report, "state": "insufficient"}, "b").level == OK
    assert drift_status("/n", {**report, "state": "insufficient", "fix": "calibrate"}, "b").level == WARN


def test_two_nodes_can_be_told_apart() -> None:
    report = {"state": "ok", "reason": "", "fix": "", "shares": {}}
    made = [
        status
        for node in ("/left/flss_edge", "/right/flss_edge")
        for status in (
            stream_status(node, OK, "", health(), WINDOW, ORIGIN),
            unconfigured_status(node, ""),
            drift_status(node, report, "c10.bundle"),
        )
    ]
    names = ["stream", "stream", "drift"]
    assert [each.name for each in made[:3]] == [f"/left/flss_edge: {name}" for name in names]
    assert [each.name for each in made[3:]] == [f"/right/flss_edge: {name}" for name in names]


def test_the_window_counts_what_is_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100 * SECOND
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    window = ResultWindow()
    assert window.summary()["reject_rate"] is None and window.summary()["rate_hz"] == 0
    window.add(result(ACCEPTED.decision, delivered=now - 11 * SECOND))  # too old
    for index in range(20):
        window.add(result((REJECTED if index % 4 == 0 else ACCEPTED).decision, delivered=now - index * SECOND // 4))
    window.add(result(Decision(None, None, 0, 0.0, Status.SUPERSEDED), delivered=now))
    summary = window.summary()
    assert summary["rate_hz"] == pytest.approx(2.1) and summary["answer_hz"] == pytest.approx(2.0)
    assert summary["reject_rate"] == pytest.approx(0.25)
    assert summary["superseded_share"] == pytest.approx(1 / 21)
    young = ResultWindow()
    for index in range(60):
        young.add(result(ACCEPTED.decision, delivered=now - 2 * SECOND + index * SECOND // 30))
    assert young.summary()["rate_hz"] == pytest.approx(30), "it is not thought to be ten seconds old"
    for _ in range(5000):  # more than it keeps
        window.add(result(ACCEPTED.decision, delivered=now - SECOND))
    assert window.summary()["rate_hz"] == pytest.approx(4096)
