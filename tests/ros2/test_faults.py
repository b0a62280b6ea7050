"""What goes wrong on a robot: damaged images, bundles that vanish, an engine that fails, floods, signals."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros2")

from diagnostic_msgs.msg import DiagnosticStatus
from flss_edge_msgs.msg import Decision
from sensor_msgs.msg import CompressedImage, Image

from flss_runtime.stream import FrameRecords
from tests.runtime import moody as moody_module
from tests.runtime.conftest import TinyModel
from tests.runtime.moody import moody_image

from .robot import ACTIVATE, Robot, image_message, values_of

if TYPE_CHECKING:
    from .robot import NodeProcess

Start = Callable[..., "NodeProcess"]
ANSWERED = Decision.ACCEPTED, Decision.LOW_VOTE

BAD_IMAGES = {
    "no pixels": Image(encoding="rgb8"),
    "an unknown encoding": Image(height=2, width=2, encoding="xyz9", step=6, data=bytes(12)),
    "no encoding": Image(height=2, width=2, step=6, data=bytes(12)),
    "distances": Image(height=2, width=2, encoding="32FC1", step=8, data=bytes(16)),
    "too few bytes": Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(11)),
    "too many bytes": Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(13)),
    "a step below a row": Image(height=2, width=2, encoding="rgb8", step=5, data=bytes(10)),
    "a size beyond memory": Image(height=2**31, width=2**31, encoding="mono8", step=2**31, data=bytes(8)),
    "half a mosaic": Image(height=1, width=1, encoding="bayer_rggb8", step=1, data=bytes(1)),
}
GOOD_ENCODINGS = {"bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2, "bayer_rggb8": 1, "yuv422_yuy2": 2}


def test_damaged_images_are_invalid_and_said_to_be(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody))
    robot.activate()
    for number, (what, message) in enumerate(BAD_IMAGES.items()):
        message.header.stamp.sec, message.header.frame_id = number, what
        decision = robot.see(message)
        assert decision.status == Decision.INVALID_INPUT, what
        assert decision.reason and not decision.label and decision.votes == 0
        assert decision.header == message.header
    assert "'xyz9'" in robot.decisions[1].reason
    assert robot.see(image_message(moody_image(tiny))).status in ANSWERED, "the node goes on"
    status = robot.status(lambda each: values_of(each).get("invalid_input") == str(len(BAD_IMAGES)))
    assert values_of(status)["restarts"] == "0"


def test_every_common_encoding_is_decided(robot: Robot, run_node: Start, moody: Path) -> None:
    run_node(bundle_path=str(moody))
    robot.activate()
    for encoding, size in GOOD_ENCODINGS.items():
        message = Image(height=8, width=8, encoding=encoding, step=8 * size + 4, data=bytes((8 * size + 4) * 8))
        assert robot.see(message).status in ANSWERED, encoding


def test_damaged_files_are_invalid(robot: Robot, run_node: Start, moody: Path) -> None:
    run_node(bundle_path=str(moody), image_transport="compressed")
    robot.activate()
    for number, (format, data) in enumerate(
        (("jpeg", b""), ("jpeg", b"\xff\xd8\xff\xe0 no more"), ("16UC1; compressedDepth png", bytes(40)))
    ):
        robot.compressed_camera.publish(CompressedImage(format=format, data=data))
        robot.until(lambda: len(robot.decisions) > number)  # noqa: B023
        assert robot.decisions[-1].status == Decision.INVALID_INPUT and robot.decisions[-1].reason


def test_an_engine_that_fails_is_opened_again(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody))
    robot.activate()
    assert robot.see(image_message(moody_image(tiny))).status in ANSWERED
    fault = robot.see(image_message(moody_image(tiny, fails=True), 1))
    assert fault.status == Decision.FAULT and "out of" in fault.reason and fault.header.stamp.sec == 1
    statuses = []
    for number in range(2, 100):
        statuses.append(robot.see(image_message(moody_image(tiny), number)).status)
        if statuses[-1] in ANSWERED:
            break
        robot.sleep(0.05)
    assert statuses[-1] in ANSWERED and set(statuses[:-1]) <= {Decision.FAULT}
    assert robot.state() == "active", "nobody had to do anything"
    status = robot.status(lambda each: values_of(each).get("restarts") == "1")
    assert status.level == DiagnosticStatus.OK


def test_a_bundle_that_vanishes_is_missed_when_the_engine_fails(
    robot: Robot, run_node: Start, moody: Path, tiny: TinyModel, tmp_path: Path
) -> None:
    import shutil

    own = Path(shutil.copytree(moody, tmp_path / "own.bundle"))
    run_node(bundle_path=str(own))
    robot.activate()
    own.rename(tmp_path / "away")
    assert robot.see(image_message(moody_image(tiny))).status in ANSWERED, "it was loaded"
    assert robot.see(image_message(moody_image(tiny, fails=True), 1)).status == Decision.FAULT
    status = robot.status(lambda each: each.level == DiagnosticStatus.ERROR and "own.bundle" in each.message)
    assert status.message.startswith("faulted")
    decision = robot.see(image_message(moody_image(tiny), 2))
    assert decision.status == Decision.FAULT and "engine restarts" in decision.reason
    (tmp_path / "away").rename(own)
    robot.until(lambda: robot.see(image_message(moody_image(tiny), 3)).status in ANSWERED, 30, "it recovers")


def test_a_flood_has_one_record_an_image_and_takes_no_memory(
    robot: Robot, run_node: Start, moody: Path, tiny: TinyModel
) -> None:
    node = run_node(bundle_path=str(moody), deadline_ms=0.0, image_reliability="best_effort")
    robot.activate()
    busy = moody_image(tiny, work=10)
    message = image_message(np.tile(busy, (60, 80, 1)))
    before: tuple[int, int, float] | None = None
    sent, start = 0, time.monotonic()
    while (now := time.monotonic() - start) < 6:
        while sent < 500 * now:
            message.header.stamp.sec = sent
            robot.camera.publish(message)
            sent += 1
        robot.executor.spin_once(timeout_sec=0)
        if before is None and now > 2:
            before = node.figures()
    status = robot.status(lambda each: values_of(each)["pending"] == "0")
    received = int(values_of(status)["submitted"])
    robot.until(lambda: len(robot.decisions) >= received)
    assert sorted(decision.frame for decision in robot.decisions) == list(range(received))
    codes = Counter(decision.status for decision in robot.decisions)
    assert set(codes) <= {*ANSWERED, Decision.SUPERSEDED} and codes[Decision.SUPERSEDED] > 0
    assert received > 20  # of 3,000: on one busy core most are lost on the way
    after = node.figures()
    assert before is not None and after[0] == before[0] and after[2] - before[2] < 24, (before, after)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_mid_frame_leaves_whole_records(
    robot: Robot, run_node: Start, moody: Path, tiny: TinyModel, tmp_path: Path, number: int
) -> None:
    record = tmp_path / "frames.jsonl"
    node = run_node(bundle_path=str(moody), deadline_ms=0.0, record_path=str(record))
    robot.activate()
    for sent in range(5):
        robot.see(image_message(moody_image(tiny), sent))
    robot.camera.publish(image_message(moody_image(tiny, work=127), 5))
    robot.sleep(0.05)
    robot.camera.publish(image_message(moody_image(tiny), 6))
    robot.sleep(0.03)
    assert len(robot.decisions) == 5, "the engine works, and an image waits"
    assert node.end(number) == 128 + number, node.text
    records = FrameRecords(record)
    frames = [entry["frame"] for _, entry in records]
    assert sorted(frames) == list(range(len(frames))) and records.cut == 0
    robot.until(lambda: len(robot.decisions) >= len(frames))
    last = {decision.header.stamp.sec: decision.status for decision in robot.decisions[5:]}
    assert last.pop(5) in ANSWERED
    assert last in ({6: Decision.SUPERSEDED}, {}), "the one that waited, where the node had received it"


def test_a_signal_while_the_engine_hangs(
    robot: Robot, run_node: Start, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, but not for ever; the process neither waits for its thread nor is aborted by it."""
    monkeypatch.setattr(moody_module, "_TRIPS", 20_000)  # a minute for the image below
    bundle = moody_module.write_moody(tmp_path / "hanging.bundle", tiny)
    record = tmp_path / "frames.jsonl"
    node = run_node(bundle_path=str(bundle.path), deadline_ms=0.0, record_path=str(record))
    robot.activate()
    robot.see(image_message(moody_image(tiny)))
    robot.camera.publish(image_message(moody_image(tiny, work=127), 1))
    assert robot.status(lambda each: each.level == DiagnosticStatus.ERROR).message.startswith("stalled")
    assert node.end(signal.SIGTERM) == 128 + signal.SIGTERM, node.text
    robot.until(lambda: len(robot.decisions) == 2)
    assert robot.decisions[1].status == Decision.FAULT and "left behind" in node.text
    assert [entry["status"] for _, entry in FrameRecords(record)][1:] == ["fault"]


def test_a_signal_while_it_is_configured(robot: Robot, run_node: Start, moody: Path) -> None:
    node = run_node(bundle_path=str(moody), autostart=True)
    robot.until(lambda: robot.node.count_publishers("/flss_edge/decision") or node.process.poll() is not None)
    assert node.end(signal.SIGTERM) == 128 + signal.SIGTERM, node.text


def test_a_second_signal_ends_it_at_once(
    robot: Robot, run_node: Start, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that hangs while it is warmed up cannot be interrupted."""
    monkeypatch.setattr(moody_module, "_TRIPS", 20_000)
    monkeypatch.setattr(moody_module, "_GREY", 1)  # the grey of the warm-up is work for a minute
    bundle = moody_module.write_moody(tmp_path / "hanging.bundle", tiny)
    node = run_node(bundle_path=str(bundle.path), autostart=True)
    robot.until(lambda: robot.node.count_publishers("/flss_edge/decision"), what="it is being configured")
    robot.sleep(0.5)
    node.process.send_signal(signal.SIGINT)
    robot.sleep(1)
    assert node.process.poll() is None, "the first one lets it end in order"
    start = time.monotonic()
    assert node.end(signal.SIGTERM) == 128 + signal.SIGTERM, node.text
    assert time.monotonic() - start < 5


def test_an_image_topic_that_ros_does_not_know(robot: Robot, run_node: Start, moody: Path) -> None:
    node = run_node(bundle_path=str(moody), image_topic="no topic!", autostart=True)
    assert robot.state() == "unconfigured" and "image_topic is 'no topic!'" in node.text
    assert not robot.change(ACTIVATE)
