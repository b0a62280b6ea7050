"""The node through its states, by ROS's own services, and what it holds in each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: make test-ros2")

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from flss_edge_ros import session
from flss_edge_ros.node import ClassifierNode
from flss_runtime.noise import read_key
from flss_runtime.stream import FrameRecords
from tests.runtime.conftest import TinyModel
from tests.runtime.moody import moody_image

from .robot import ACTIVATE, CLEANUP, CONFIGURE, DEACTIVATE, Robot, image_message, values_of

if TYPE_CHECKING:
    from .robot import NodeProcess

Start = Callable[..., "NodeProcess"]


def test_the_states(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody))
    assert robot.state() == "unconfigured"
    assert not robot.change(ACTIVATE) and robot.state() == "unconfigured", "it is no such transition's end"
    assert robot.status(lambda status: status.level == DiagnosticStatus.STALE).message == "not configured"
    assert robot.change(CONFIGURE) and robot.state() == "inactive"
    assert robot.camera.get_subscription_count() == 0
    assert robot.status(lambda status: "inactive" in status.message).level == DiagnosticStatus.STALE
    assert robot.change(ACTIVATE) and robot.state() == "active"
    robot.wait_for_node()
    assert robot.see(image_message(moody_image(tiny))).frame == 0
    assert robot.change(DEACTIVATE) and robot.state() == "inactive"
    robot.until(lambda: robot.camera.get_subscription_count() == 0)
    assert robot.change(ACTIVATE)
    robot.wait_for_node()
    assert robot.see(image_message(moody_image(tiny))).frame == 1, "the stream goes on"
    assert robot.change(DEACTIVATE) and robot.change(CLEANUP) and robot.state() == "unconfigured"
    assert robot.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN) and robot.state() == "finalized"


def test_an_image_that_is_still_being_decided_keeps_the_node_active(
    robot: Robot, moody: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_PATIENCE_S", 0.02)
    values = {"bundle_path": str(moody), "deadline_ms": 0.0, "threads": 1}
    given = [Parameter(name, value=value) for name, value in values.items()]
    node = ClassifierNode(context=robot.context, parameter_overrides=given)
    try:
        node.start()
        robot.wait_for_node()
        node._session.receive(image_message(moody_image(tiny, work=127)))
        assert node.trigger_deactivate() == TransitionCallbackReturn.FAILURE
        robot.until(lambda: robot.camera.get_subscription_count() == 1, what="it goes on")
        robot.until(lambda: node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS)
        robot.until(lambda: len(robot.decisions) == 1, what="no decision is lost")
    finally:
        node.finish()
        node.destroy_node()


def test_shutdown_of_an_active_node_answers_what_it_received(
    robot: Robot, run_node: Start, moody: Path, tiny: TinyModel
) -> None:
    run_node(bundle_path=str(moody), deadline_ms=0.0)
    robot.activate()
    robot.see(image_message(moody_image(tiny)))
    robot.camera.publish(image_message(moody_image(tiny, work=127)))
    robot.sleep(0.05)
    assert robot.change(Transition.TRANSITION_ACTIVE_SHUTDOWN) and robot.state() == "finalized"
    robot.until(lambda: len(robot.decisions) == 2)


def test_labels_are_there_for_who_comes_late(robot: Robot, run_node: Start, moody: Path) -> None:
    run_node(bundle_path=str(moody))
    assert robot.change(CONFIGURE)
    robot.until(lambda: robot.labels and robot.label_infos)
    labels = json.loads(robot.labels[-1].data)
    assert labels["class_names"] == [f"class {index}" for index in range(5)]
    assert (labels["num_samples"], labels["min_votes"], labels["engine"]) == (40, 17, "ort")
    info = robot.label_infos[-1]
    assert [each.class_name for each in info.class_map] == labels["class_names"]
    assert [each.class_id for each in info.class_map] == list(range(5))
    assert info.threshold == pytest.approx(17 / 40)


def test_autostart(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody), autostart=True)
    robot.wait_for_node()
    assert robot.state() == "active"
    assert robot.see(image_message(moody_image(tiny))).status in (0, 1)


def test_what_cannot_be_configured_is_said_and_can_be_mended(
    robot: Robot, run_node: Start, moody: Path, tmp_path: Path
) -> None:
    node = run_node(deadline_ms="soon", autostart=True)
    assert robot.state() == "unconfigured", "it lives on"
    assert "bundle_path is not set" in robot.status(lambda each: each.level == DiagnosticStatus.ERROR).message
    assert not robot.set("bundle_path", str(tmp_path / "no.bundle"))
    assert not robot.change(CONFIGURE) and robot.state() == "unconfigured"
    assert "deadline_ms is 'soon'" in node.text and "a number from 0" in node.text
    assert not robot.set("deadline_ms", 50), "a whole number is a number"
    assert not robot.change(CONFIGURE)
    status = robot.status(lambda each: each.level == DiagnosticStatus.ERROR and "no.bundle" in each.message)
    assert status.message.startswith("not configured")
    broken = Path(shutil.copytree(moody, tmp_path / "broken.bundle"))
    (broken / "head.onnx").write_bytes(b"no graph")
    assert not robot.set("bundle_path", str(broken))
    assert not robot.change(CONFIGURE) and "head.onnx" in node.text
    assert not robot.set("bundle_path", str(moody))
    assert not robot.set("num_samples", 33)
    assert not robot.change(CONFIGURE) and "not calibrated for N = 33" in node.text
    assert not robot.set("num_samples", 20)
    assert robot.change(CONFIGURE) and robot.state() == "inactive"


def test_each_stream_has_a_key_of_its_own(
    robot: Robot, run_node: Start, moody: Path, tiny: TinyModel, tmp_path: Path
) -> None:
    record, key = tmp_path / "drive.jsonl", tmp_path / "drive.key"
    run_node(bundle_path=str(moody), record_path=str(record), record_key=str(key), reduced_samples=33)
    assert not robot.change(CONFIGURE) and not key.exists(), "it has no use"
    assert not robot.set("reduced_samples", 0)
    for _ in range(2):
        robot.activate()
        robot.see(image_message(moody_image(tiny)))
        assert robot.change(DEACTIVATE) and robot.change(CLEANUP)
    assert [header["record_key"] for header, _ in FrameRecords(record)] == ["drive.key", "drive.key.2"]
    assert read_key(key) != read_key(tmp_path / "drive.key.2") and not list(tmp_path.glob("*.key.3"))


def test_parameters_are_refused_when_they_are_wrong_and_when_they_are_in_use(
    robot: Robot, run_node: Start, moody: Path
) -> None:
    run_node(bundle_path=str(moody))
    for name, value in (
        ("deadline_ms", -1.0),
        ("deadline_ms", "soon"),
        ("num_samples", 2.5),
        ("precision", "fp8"),
        ("image_transport", "theora"),
        ("autostart", 1),
        ("engine", 7),
    ):
        assert name in robot.set(name, value)
    assert not robot.set("precision", "fp16")
    assert not robot.set("precision", "fp32")
    assert robot.change(CONFIGURE)
    assert "clean the node up" in robot.set("precision", "fp32")
    assert robot.change(CLEANUP)
    assert not robot.set("precision", "fp32")


def test_nothing_is_left_behind_in_twenty_cycles(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    node = run_node(bundle_path=str(moody))
    figures = []
    for cycle in range(20):
        robot.activate()
        for number in range(3):
            robot.see(image_message(moody_image(tiny), number))
        assert robot.change(DEACTIVATE) and robot.change(CLEANUP)
        assert len(robot.decisions) == 3 * (cycle + 1)
        figures.append(node.figures())
    threads, files, resident = zip(*figures, strict=True)
    assert threads[-1] == threads[4] and files[-1] <= files[4], figures
    assert resident[-1] - resident[4] < 8, figures


def test_the_figures_of_the_diagnostics(robot: Robot, run_node: Start, moody: Path, tiny: TinyModel) -> None:
    run_node(bundle_path=str(moody))
    robot.activate()
    for number in range(20):
        robot.see(image_message(moody_image(tiny, seed=number), number))
    status = robot.status(lambda each: values_of(each).get("submitted") == "20")
    values = values_of(status)
    assert status.level == DiagnosticStatus.OK and "decisions a second" in status.message
    rejected = sum(decision.status == 1 for decision in robot.decisions)
    assert (int(values["accepted"]), int(values["low_vote"])) == (20 - rejected, rejected)
    assert float(values["reject_rate"]) == pytest.approx(rejected / 20)
    assert 0 < float(values["latency_p50_ms"]) <= float(values["latency_p99_ms"]) < 1000
    assert (values["state"], values["engine"], values["bundle"]) == ("running", "ort", "moody.bundle")
    silent = robot.status(lambda each: each.level == DiagnosticStatus.STALE)
    assert silent.message.startswith("no image for")
    drift = robot.status(lambda each: True, "drift")
    assert drift.level == DiagnosticStatus.WARN and "flss-edge calibrate" in drift.message, "no reference in the bundle"
