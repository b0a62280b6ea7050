"""What lives from configure to cleanup: the stream, where its results go, and what watches them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from flss_edge_msgs.msg import Decision
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from flss_edge_ros import messages
from flss_edge_ros.diagnostics import drift_status, stream_level, stream_status
from flss_edge_ros.parameters import HEARTBEAT_S, Settings
from flss_edge_ros.window import SPAN_S, ResultWindow
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.drift import DriftMonitor, drift_reference
from flss_runtime.errors import DataError
from flss_runtime.noise import SystemNoise
from flss_runtime.ros_images import image_from_compressed, image_from_ros
from flss_runtime.stream import (
    FrameRecorder,
    StreamClassifier,
    StreamHealth,
    StreamResult,
    StreamState,
    TemporalVote,
    open_stream,
)

_PATIENCE_S = 2.5  # of the executor, which does nothing else meanwhile
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Session:
    """Takes image messages and publishes one decision for each.

    Images are handed in by the executor's thread; results are published by the stream's threads, one at a time. That is
    allowed: `rmw_publish` is thread-safe but for the end of the publisher, and these outlive the stream.

    Args:
        node: What the publishers belong to.
        settings: Checked values.

    Raises:
        FLSSError: The bundle, the engine, or a file to record in cannot be opened; nothing is left behind.
    """

    def __init__(self, node: LifecycleNode, settings: Settings) -> None:
        self.settings = settings
        self._node = node.get_fully_qualified_name()
        bundle = load_bundle(settings.bundle_path)
        policy = bundle.policy(settings.num_samples or None, settings.sampling)
        self._bundle = bundle
        self._window = ResultWindow()
        self._losses = deque([(0, 0)], maxlen=1 + round(SPAN_S / HEARTBEAT_S))  # so far, beat by beat
        self._drift = _drift_monitor(bundle, settings)
        self._messages = messages.ResultMessages(bundle.class_names)
        with _recorded_noise(settings.record_key) as (noise, key_name), ExitStack() as undo:
            qos = decision_qos(settings)
            self._decisions = _lifecycle_publisher(node, undo, Decision, "~/decision", qos)
            self._classifications = None
            if messages.Classification is not None:
                self._classifications = _lifecycle_publisher(
                    node, undo, messages.Classification, "~/classification", qos
                )
            record = None
            if settings.record_path:
                record = FrameRecorder(settings.record_path, {"record_key": key_name})
                undo.callback(record.close)
            self._stream = _open_stream(bundle, settings, noise, self._publish, record)
            undo.callback(self._stream.close)  # before the publishers go: what closing delivers is published
            labels = _publisher(node, undo, String, "~/labels", _LATCHED)
            labels.publish(String(data=messages.labels_json(bundle.class_names, policy, self._stream.origin)))
            if messages.LabelInfo is not None:
                infos = _publisher(node, undo, messages.LabelInfo, "~/label_info", _LATCHED)
                now = node.get_clock().now().to_msg()
                infos.publish(messages.label_info(bundle.class_names, policy, now))
            self._undo = undo.pop_all()

    def receive(self, message: Any) -> None:
        """Hand in an image, or what is wrong with it: either has its one result."""
        header = message.header
        try:
            image = _to_image(message)
        except DataError as error:
            image = error
        except Exception as error:  # whatever a damaged message brings about, the node goes on
            image = DataError(f"an image message cannot be read ({type(error).__name__}: {error})", "see who sends it")
        stamp = header.stamp
        self._stream.submit(image, stamp=stamp.sec * 1_000_000_000 + stamp.nanosec, source=header)

    def drain(self) -> bool:
        """Wait until every image that was handed in has its result; return False where that takes too long."""
        begun = beat = time.monotonic()
        while pending := self._stream.health().pending:
            now = time.monotonic()
            if now > begun + _PATIENCE_S:
                break
            if now > beat + HEARTBEAT_S / 2:  # the executor, which beats otherwise, is waiting here
                self.heartbeat()
                beat = now
            time.sleep(0.002)
        return not pending

    def _lately_lost(self, health: StreamHealth) -> dict[str, int]:
        now = health.callback_errors, health.record_lost
        self._losses.append(now)
        names = "unpublished", "unrecorded"
        return {name: max(0, new - old) for name, new, old in zip(names, now, self._losses[0], strict=True)}

    def heartbeat(self) -> None:
        """Tell the readers of decisions that the node lives, unless its stream hangs; each decision does so, too."""
        state = self._stream.health().state
        if self.settings.qos_lease_ms and state in (StreamState.RUNNING, StreamState.FAULTED):
            self._decisions.assert_liveliness()

    def statuses(self, active_s: float | None) -> list[DiagnosticStatus]:
        """Return the diagnostics.

        Args:
            active_s: For how long the node has been active; None where it is not.
        """
        health = self._stream.health()
        window = {**self._window.summary(), **self._lately_lost(health)}
        silent_s = active_s if active_s is None or health.frame_age_s is None else min(active_s, health.frame_age_s)
        level, message = stream_level(health, window, silent_s, self.settings.stale_after_ms / 1000)
        statuses = [stream_status(self._node, level, message, health, window, self._stream.origin)]
        if self._drift is not None:
            statuses.append(drift_status(self._node, self._drift.report(), self._bundle.path.name))
        return statuses

    def close(self) -> None:
        """Close the stream, then its publishers."""
        self._undo.close()

    def _publish(self, result: StreamResult) -> None:
        self._window.add(result)
        if self._drift is not None:
            self._drift.update(result.decision)
        self._decisions.publish(self._messages.decision(result))
        if self._classifications is not None:
            self._classifications.publish(self._messages.classification(result))


def decision_qos(settings: Settings) -> QoSProfile:
    """Return what is offered to the readers of decisions.

    A reader that asks for nothing is compatible with any of it. One that asks for a deadline or a liveliness as long as
    the offered one or longer is told by ROS when no decision came, or when the node is dead or silent. An engine that
    hangs is not among that: its images have decisions in time, and each one that is published is a sign of life.
    """
    qos = QoSProfile(depth=10)
    if settings.qos_deadline_ms:
        qos.deadline = _duration(settings.qos_deadline_ms)
    if settings.qos_lease_ms:
        qos.liveliness = LivelinessPolicy.MANUAL_BY_TOPIC
        qos.liveliness_lease_duration = _duration(settings.qos_lease_ms)
    return qos


@contextmanager
def _recorded_noise(wanted: str) -> Iterator[tuple[SystemNoise | None, str | None]]:
    """Yield noise whose key is in a new file, and that file's name; None and None where no key is wanted.

    Where a file lies there already it is FILE.2, FILE.3 and so on, for each stream has a key of its own: a node may be
    configured and started again. Where what follows fails, the key is of no use, and goes again.
    """
    if not wanted:
        yield None, None
        return
    paths = (Path(wanted if number == 1 else f"{wanted}.{number}") for number in count(1))
    path = next(path for path in paths if not os.path.lexists(path))
    noise = SystemNoise(record_key=path)
    try:
        yield noise, path.name
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _open_stream(
    bundle: Bundle, settings: Settings, noise: SystemNoise | None, on_result: Any, record: FrameRecorder | None
) -> StreamClassifier:
    steady = None
    if settings.steady_frames:
        steady = TemporalVote(settings.steady_frames, settings.steady_needed, settings.steady_max_age_ms / 1000 or None)
    return open_stream(
        bundle,
        on_result,
        settings.engine,
        precision=settings.precision,
        sampling=settings.sampling,
        num_samples=settings.num_samples or None,
        reduced_samples=settings.reduced_samples or None,
        noise=noise,
        threads=settings.threads or None,
        strict=settings.strict,
        deadline_s=settings.deadline_ms / 1000 or None,
        steady=steady,
        record=record,
    )


def _drift_monitor(bundle: Bundle, settings: Settings) -> DriftMonitor | None:
    if not settings.drift_dwell_frames:
        return None
    reference = drift_reference(bundle, settings.num_samples or None, settings.sampling)
    return DriftMonitor(reference, dwell_frames=settings.drift_dwell_frames)


def _to_image(message: Any) -> Any:
    if isinstance(message, CompressedImage):
        return image_from_compressed(message.format, message.data)
    assert isinstance(message, Image)
    return image_from_ros(
        message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data
    )


def _lifecycle_publisher(node: LifecycleNode, undo: ExitStack, kind: Any, topic: str, qos: QoSProfile) -> Any:
    publisher = node.create_lifecycle_publisher(kind, topic, qos)
    undo.callback(partial(node.destroy_lifecycle_publisher, publisher))
    return publisher


def _publisher(node: LifecycleNode, undo: ExitStack, kind: Any, topic: str, qos: QoSProfile) -> Any:
    publisher = node.create_publisher(kind, topic, qos)
    undo.callback(partial(node.destroy_publisher, publisher))
    return publisher


def _duration(milliseconds: float) -> Duration:
    return Duration(nanoseconds=round(milliseconds * 1e6))
