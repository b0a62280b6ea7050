"""The lifecycle node: images in, decisions out, and diagnostics once a second."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from flss_edge_ros.diagnostics import unconfigured_status
from flss_edge_ros.parameters import HEARTBEAT_S, declare, names, read, refusal
from flss_edge_ros.session import Session
from flss_runtime.errors import FLSSError

_RELIABILITY = {
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
    "reliable": ReliabilityPolicy.RELIABLE,
    "system_default": ReliabilityPolicy.SYSTEM_DEFAULT,
}


Transition = Callable[["ClassifierNode", Any], TransitionCallbackReturn]


def told(transition: Transition) -> Transition:
    """Log what a transition raises, which ROS swallows."""

    @wraps(transition)
    def logged(node: ClassifierNode, state: Any) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:
            node._problem = f"{type(error).__name__}: {error}"
            node.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return logged


class ClassifierNode(LifecycleNode):
    """Classifies the newest image or declines to, and says for each image that it received what became of it.

    Configuring verifies the bundle, opens the engine and warms it up; activating subscribes; deactivating unsubscribes
    and waits for the results that are due; cleaning up closes everything. A parameter is read when the node is
    configured, and cannot be set from then until it is cleaned up. An engine that fails is no reason to leave the
    active state: the stream opens it again, and its images have `fault` decisions meanwhile.

    For one thread of an executor: its callbacks are short, and the stream has threads of its own.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("flss_edge", **options)
        declare(self)
        self._ros_change_state = self._service_change_state.callback
        self._service_change_state.callback = self._change_state
        self.add_on_set_parameters_callback(self._judge_parameters)
        self._session: Session | None = None
        self._subscription: Any = None
        self._active_since: float | None = None
        self._problem = ""
        self._finalized = False
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady_clock = Clock(clock_type=ClockType.STEADY_TIME)  # also while a simulation's time stands still
        self._timer = self.create_timer(HEARTBEAT_S, self._beat, clock=steady_clock)

    @told
    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Open everything; a problem of the user's is logged with its fix, and the node stays unconfigured."""
        try:
            self._session = Session(self, read(self))
            self._problem = ""
        except FLSSError as error:
            self._problem = error.problem
            self.get_logger().error(f"{error.problem}; fix: {error.fix}")
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    @told
    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Let the publishers publish, then subscribe."""
        assert self._session is not None
        done = super().on_activate(state)
        self._subscription = self._subscribe(self._session)
        self._active_since = time.monotonic()
        return done

    @told
    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Unsubscribe, and wait for the results that are due before the publishers fall silent; fail if they do not."""
        assert self._session is not None
        active_since = self._active_since
        self._unsubscribe()
        if not self._session.drain():
            self.get_logger().error("not deactivated: an image is still being decided; try again, or shut down")
            self._subscription, self._active_since = self._subscribe(self._session), active_since
            return TransitionCallbackReturn.FAILURE
        return super().on_deactivate(state)

    @told
    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Close everything."""
        done = super().on_cleanup(state)
        self._release()
        return done

    @told
    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Close everything, from whatever state; results that are due are still published."""
        self._finalized = True
        self._release()
        return super().on_shutdown(state)

    @told
    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """Close everything, so that the node can be configured again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def start(self) -> None:
        """Configure and activate, as far as that goes."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def finish(self) -> None:
        """Shut down, unless that was done: ROS knows no shutdown of a finalized node."""
        if not self._finalized:
            self.trigger_shutdown()

    def _change_state(self, request: Any, response: Any) -> Any:
        """Answer that a transition failed which this state does not have; rclpy would end the node instead."""
        try:
            return self._ros_change_state(request, response)
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(str(error))
            response.success = False
            return response

    def _subscribe(self, session: Session) -> Any:
        settings = session.settings
        compressed = settings.image_transport == "compressed"
        topic = f"{settings.image_topic}/compressed" if compressed else settings.image_topic
        qos = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=_RELIABILITY[settings.image_reliability])
        return self.create_subscription(CompressedImage if compressed else Image, topic, session.receive, qos)

    def _unsubscribe(self) -> None:
        self._active_since = None
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None

    def _release(self) -> None:
        self._unsubscribe()
        session, self._session = self._session, None
        if session is not None:
            session.close()
            del session
            gc.collect()  # stream and session know each other, and hold megabytes of noise and a file to record in

    def _judge_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        own = [parameter for parameter in parameters if parameter.name in names()]
        if own and self._session is not None:
            return SetParametersResult(successful=False, reason=f"{own[0].name} is in use: clean the node up first")
        reasons = [reason for parameter in own if (reason := refusal(parameter.name, parameter.value))]
        return SetParametersResult(successful=not reasons, reason="; ".join(reasons))

    def _beat(self) -> None:
        session, since = self._session, self._active_since
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        if session is None:
            array.status = [unconfigured_status(self.get_fully_qualified_name(), self._problem)]
        else:
            array.status = session.statuses(None if since is None else time.monotonic() - since)
            if since is not None:
                session.heartbeat()
        self._diagnostics.publish(array)
