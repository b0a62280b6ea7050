"""Images at a camera's pace: one record for each, with its header; and what a watchdog is told."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros2")

import rclpy.event_handler
from diagnostic_msgs.msg import DiagnosticStatus
from flss_edge_msgs.msg import Decision
from PIL import Image as Picture
from rclpy.duration import Duration
from rclpy.qos import LivelinessPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from flss_runtime.stream import FrameRecords
from tests.runtime.conftest import TinyModel
from tests.runtime.moody import moody_image

from .robot import ACTIVATE, DEACTIVATE, Robot, image_message, values_of

if TYPE_CHECKING:
    from .robot import NodeProcess

Start = Callable[..., "NodeProcess"]
PICTURES = Path(__file__).parents[2] / "examples" / "cifar10"
HZ = 30


def test_3000_images(robot: Robot, run_node: Start, real_bundle: Path, tmp_path: Path) -> None:
    """At 30 Hz each image that the node received has exactly one record of each kind."""
    pictures = [np.asarray(Picture.open(path).convert("RGB")) for path in sorted(PICTURES.rglob("*.png"))]
    images = [pictures[number % len(pictures)] for number in range(3000)]
    record = tmp_path / "frames.jsonl"
    run_node(bundle_path=str(real_bundle), record_path=str(record), deadline_ms=500.0)
    robot.activate()
    messages = [image_message(image, number) for number, image in enumerate(images)]
    start = time.monotonic()
    for number, message in enumerate(messages):
        robot.sleep(start + number / HZ - time.monotonic())
        robot.camera.publish(message)
    assert time.monotonic() - start == pytest.approx((len(messages) - 1) / HZ, abs=0.5)
    lively = robot.status(lambda each: each.level == DiagnosticStatus.OK, timeout_s=5)
    assert float(values_of(lively)["rate_hz"]) == pytest.approx(HZ, rel=0.15)
    assert robot.change(DEACTIVATE)
    status = robot.status(lambda each: "inactive" in each.message)
    values = values_of(status)
    received = int(values["submitted"])
    robot.until(lambda: len(robot.decisions) >= received and len(robot.classifications) >= received)
    assert len(robot.decisions) == len(robot.classifications) == received and int(values["pending"]) == 0
    assert received >= 0.97 * len(messages), "a queue of one image may lose some on a busy machine"
    assert sorted(decision.frame for decision in robot.decisions) == list(range(received))

    sent = {message.header.stamp.sec: message.header for message in messages}
    seen = Counter(decision.header.stamp.sec for decision in robot.decisions)
    assert max(seen.values()) == 1, "an image has two decisions"
    for decision, classification in zip(robot.decisions, robot.classifications, strict=True):
        assert decision.header == sent[decision.header.stamp.sec] == classification.header
        assert (decision.status == Decision.ACCEPTED) == decision.accepted == bool(decision.label)
        assert [(each.class_id, each.score) for each in classification.results] == (
            [(str(decision.label_index), pytest.approx(decision.vote_share))] if decision.accepted else []
        )
    statuses = Counter(decision.status for decision in robot.decisions)
    assert set(statuses) <= {Decision.ACCEPTED, Decision.LOW_VOTE, Decision.SUPERSEDED, Decision.DEADLINE}
    assert statuses[Decision.ACCEPTED] + statuses[Decision.LOW_VOTE] > 0.9 * received
    counted = {"accepted": Decision.ACCEPTED, "low_vote": Decision.LOW_VOTE, "superseded": Decision.SUPERSEDED}
    assert {name: int(values[name]) for name in counted} == {name: statuses[code] for name, code in counted.items()}

    robot.until(lambda: len(list(FrameRecords(record))) == received, what="the record is complete")
    records = [entry for _, entry in FrameRecords(record)]
    votes = {decision.frame: (decision.votes, decision.counter, decision.top_label) for decision in robot.decisions}
    assert {entry["frame"]: entry["votes"] for entry in records} == {key: value[0] for key, value in votes.items()}
    stamps = {decision.frame: decision.header.stamp for decision in robot.decisions}
    for entry in records:
        stamp = stamps[entry["frame"]]
        assert entry["stamp"] == stamp.sec * 1_000_000_000 + stamp.nanosec


def test_compressed_images(robot: Robot, run_node: Start, real_bundle: Path) -> None:
    run_node(bundle_path=str(real_bundle), image_transport="compressed")
    robot.activate()
    for number, path in enumerate(sorted(PICTURES.rglob("*.png"))[:10]):
        message = CompressedImage(format="rgb8; png compressed bgr8", data=path.read_bytes())
        message.header.stamp.sec = number
        robot.compressed_camera.publish(message)
        robot.until(lambda: robot.decisions and robot.decisions[-1].header == message.header)  # noqa: B023
        assert robot.decisions[-1].status in (Decision.ACCEPTED, Decision.LOW_VOTE)


def test_the_camera_does_not_wait_for_the_network(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    """Of images that come while one is decided, the newest is next; the others are said to be superseded."""
    run_node(bundle_path=str(moody), deadline_ms=0.0)
    robot.activate()
    robot.see(image_message(moody_image(tiny)))
    robot.camera.publish(image_message(moody_image(tiny, work=127), 1))
    for number in range(2, 7):
        robot.sleep(0.02)
        robot.camera.publish(image_message(moody_image(tiny), number))
    robot.until(lambda: robot.decisions[-1].header.stamp.sec == 6, what="the newest is decided")
    codes = {decision.header.stamp.sec: decision.status for decision in robot.decisions}
    answered = Decision.ACCEPTED, Decision.LOW_VOTE
    assert codes.pop(1) in answered and codes.pop(6) in answered
    del codes[0]
    assert codes and set(codes.values()) == {Decision.SUPERSEDED}, "those that the node received"


def test_deadlines(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody), deadline_ms=40)
    robot.activate()
    for number in range(6):
        decision = robot.see(image_message(moody_image(tiny, work=127), number))
        assert decision.status == Decision.DEADLINE and not decision.label
        assert 39.9 < decision.total_ms < 80
    status = robot.status(lambda each: each.level == DiagnosticStatus.ERROR)
    assert status.message == "6 deadlines missed in a row"
    robot.status(lambda each: values_of(each)["late"] != "0")
    answered = Decision.ACCEPTED, Decision.LOW_VOTE
    robot.until(lambda: robot.see(image_message(moody_image(tiny), 7)).status in answered, what="it is in time again")
    robot.status(lambda each: each.level != DiagnosticStatus.ERROR)


def test_the_steady_label(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody), steady_frames=3, steady_needed=2, num_samples=5)
    robot.activate()
    decisions = []
    for seed in range(60):
        decisions.append(robot.see(image_message(moody_image(tiny, seed=seed // 3))))
        labels = [decision.label for decision in decisions[-3:]]
        agreed = [label for label in set(labels) if label and labels.count(label) >= 2]
        assert decisions[-1].steady_label == "".join(agreed)
    assert any(decision.steady_label for decision in decisions)


def test_a_watchdog_is_told_when_no_decision_comes(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    missed: list[object] = []
    alive: list[int] = []
    events = rclpy.event_handler.SubscriptionEventCallbacks(
        deadline=missed.append, liveliness=lambda event: alive.append(event.alive_count)
    )
    qos = QoSProfile(
        depth=1,
        deadline=Duration(seconds=1),
        liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
        liveliness_lease_duration=Duration(seconds=3),
    )
    heard: list[Decision] = []
    robot.node.create_subscription(Decision, "/flss_edge/decision", heard.append, qos, event_callbacks=events)
    node = run_node(bundle_path=str(moody))
    robot.activate()
    for number in range(15):
        robot.see(image_message(moody_image(tiny), number))
        robot.sleep(0.1)
    assert len(heard) == 15 and not missed and alive[-1] == 1
    robot.sleep(4.5)
    assert missed, "nobody was told that decisions stopped"
    assert alive[-1] == 1, "but the node lives"
    node.process.kill()
    robot.until(lambda: alive[-1] == 0, 10, "nobody was told that the node died")


def test_other_readers_need_no_special_quality(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    """The offered deadline and liveliness go with a reader's defaults, and with sensor data's."""
    best: list[Image] = []
    robot.node.create_subscription(Decision, "/flss_edge/decision", best.append, rclpy.qos.qos_profile_sensor_data)
    run_node(bundle_path=str(moody))
    robot.activate()
    robot.see(image_message(moody_image(tiny)))
    robot.until(lambda: best)
    assert robot.change(DEACTIVATE) and robot.change(ACTIVATE)
