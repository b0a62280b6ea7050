"""The rest of the robot, for a test: a camera, a reader of what the node publishes, and an operator."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rclpy
from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from flss_edge_msgs.msg import Decision
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from vision_msgs.msg import Classification, LabelInfo

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_ALL = QoSProfile(depth=20_000)
_KINDS = {bool: ("bool_value", 1), int: ("integer_value", 2), float: ("double_value", 3), str: ("string_value", 4)}
_domains = count(os.getpid() % 40)


class Robot:
    """Spins in the test's own thread, in `until` and `sleep`: nothing runs beside the test."""

    def __init__(self) -> None:
        self.domain = 20 + next(_domains) % 80
        self.context = Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = Node("robot", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.decisions: list[Decision] = []
        self.classifications: list[Classification] = []
        self.diagnostics: list[dict[str, DiagnosticStatus]] = []
        self.labels: list[String] = []
        self.label_infos: list[LabelInfo] = []
        sent = QoSProfile(depth=50)  # reliable, for a node that asks for it
        create = self.node.create_subscription
        create(Decision, "/flss_edge/decision", self.decisions.append, _ALL)
        create(Classification, "/flss_edge/classification", self.classifications.append, _ALL)
        create(String, "/flss_edge/labels", self.labels.append, _LATCHED)
        create(LabelInfo, "/flss_edge/label_info", self.label_infos.append, _LATCHED)
        create(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self.camera = self.node.create_publisher(Image, "/image", sent)
        self.compressed_camera = self.node.create_publisher(CompressedImage, "/image/compressed", sent)
        self._clients: dict[str, Any] = {
            name: self.node.create_client(kind, f"/flss_edge/{name}")
            for name, kind in {
                "change_state": ChangeState,
                "get_state": GetState,
                "set_parameters": SetParameters,
                "list_parameters": ListParameters,
                "describe_parameters": DescribeParameters,
            }.items()
        }

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def until(self, true: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> None:
        """Spin until a condition holds."""
        end = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < end, f"it does not come true: {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def sleep(self, seconds: float) -> None:
        """Spin for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def call(self, name: str, request: Any, timeout_s: float = 30.0) -> Any:
        """Call one of the node's services."""
        client = self._clients[name]
        self.until(client.service_is_ready, timeout_s, f"{name} is there")
        future = client.call_async(request)
        self.until(future.done, timeout_s, f"{name} answers")
        return future.result()

    def change(self, transition: int) -> bool:
        """Ask for a transition, and return whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call("change_state", request).success)

    def state(self) -> str:
        return str(self.call("get_state", GetState.Request()).current_state.label)

    def set(self, name: str, value: object) -> str:
        """Set a parameter; return why it was refused, empty where it was not."""
        field, kind = _KINDS[type(value)]
        assert kind <= ParameterType.PARAMETER_STRING
        parameter = Parameter(name=name, value=ParameterValue(type=kind, **{field: value}))
        (result,) = self.call("set_parameters", SetParameters.Request(parameters=[parameter])).results
        return "" if result.successful else result.reason

    def activate(self) -> None:
        """Configure and activate, and wait until camera and node, node and reader know each other."""
        assert self.change(CONFIGURE) and self.change(ACTIVATE)
        self.wait_for_node()

    def wait_for_node(self) -> None:
        cameras = self.camera, self.compressed_camera
        self.until(lambda: any(each.get_subscription_count() for each in cameras), 20, "the node subscribed")
        publishers = self.node.count_publishers
        self.until(lambda: publishers("/flss_edge/decision") and publishers("/flss_edge/classification"))
        self.sleep(0.3)  # the node's side has to know the reader, too

    def see(self, message: Image, timeout_s: float = 20.0) -> Decision:
        """Show the node an image, and return its next decision."""
        before = len(self.decisions)
        self.camera.publish(message)
        self.until(lambda: len(self.decisions) > before, timeout_s, "a decision")
        return self.decisions[before]

    def status(self, true: Callable[[DiagnosticStatus], Any], part: str = "stream", timeout_s: float = 20.0) -> Any:
        """Wait for diagnostics of which something is true, and return that status."""
        self.diagnostics.clear()
        found: list[DiagnosticStatus] = []

        def came() -> bool:
            while self.diagnostics:
                status = self.diagnostics.pop(0).get(f"/flss_edge: {part}")
                if status is not None and true(status):
                    found.append(status)
                    return True
            return False

        self.until(came, timeout_s, f"diagnostics of {part}")
        return found[0]

    def _diagnosed(self, array: DiagnosticArray) -> None:
        self.diagnostics.append({status.name: status for status in array.status})


def values_of(status: DiagnosticStatus) -> dict[str, str]:
    """Return the figures of a status."""
    return {pair.key: pair.value for pair in status.values}


def image_message(image: npt.NDArray[np.uint8], number: int = 0) -> Image:
    """Make a message of an RGB image, with a header of its own."""
    height, width, _ = image.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = image.tobytes()
    message.header.stamp.sec, message.header.stamp.nanosec = number, 999_999_999 - number
    message.header.frame_id = f"camera/{number} ä"
    return message


class NodeProcess:
    """The node as ROS starts it: the installed script, with its parameters."""

    def __init__(self, robot: Robot, log: Path, parameters: Mapping[str, object]) -> None:
        self.log = log
        script = Path(get_package_prefix("flss_edge_ros")) / "lib" / "flss_edge_ros" / "flss_edge_node"
        given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={_yaml(value)}")]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(robot.domain), "PYTHONWARNINGS": "default"}
        with log.open("wb") as file:
            command = [str(script), "--ros-args", *given]
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def figures(self) -> tuple[int, int, float]:
        """Return the threads, the open files and the resident MiB of the process."""
        folder = Path(f"/proc/{self.process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        threads, files = len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))
        return threads, files, pages * os.sysconf("SC_PAGESIZE") / 2**20


@contextmanager
def running(robot: Robot, log: Path, **parameters: object) -> Iterator[NodeProcess]:
    """Run a node beside the robot, and see that it ends as it should with the test."""
    node = NodeProcess(robot, log, parameters)
    try:
        yield node
        if node.process.poll() is None:
            assert node.end() == 128 + signal.SIGTERM, node.text
        assert "Traceback" not in node.text, node.text
    finally:
        node.process.kill()
        node.process.wait()
        print(node.text)  # shown where the test failed


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)
