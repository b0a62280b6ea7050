"""From a camera's publish to the node's decision: how long, and what of it is ROS and what is the classifier?

usage: python benchmarks/ros2.py c10.bundle -o ros2.json      # in ROS 2's environment, after colcon build and sourcing

Three arms take turns, a round of frames each, all at the camera's pace: the bare classifier, called in this process;
the stream around it, called in this process; and the node, a process of its own, which this one sends images to as a
camera would and whose decisions it reads. A frame's latency is from the call that hands it over to the decision in
hand, for the node from `publish` to the callback of the decision's subscription: one image message and one decision
over the loopback interface, both in Python. Nothing is drawn.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from command_line import add_result_options, camera_size, require_at_least, run_timing, timing_flags
from flss_edge_msgs.msg import Decision
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image

from flss_runtime.atomic import refuse_existing
from flss_runtime.bundle import Bundle, load_bundle
from flss_runtime.environment import describe_environment
from flss_runtime.errors import EngineUnavailable, InferenceError
from flss_runtime.image_pool import load_images
from flss_runtime.images import fit_image
from flss_runtime.latency import overhead, summarise
from flss_runtime.machine import Snapshot
from flss_runtime.opening import open_classifier
from flss_runtime.stream import open_stream

PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
ARMS = ("bare", "stream", "node")
WARM_UP = 30  # frames of each arm
PATIENCE_S = 5.0  # for one decision
Handed = Callable[[NDArray[np.uint8]], None]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code: 5 not valid, else FLSSError's."""
    return run_timing(
        "ros2.py", arguments, parse=_parse, measure=measure, plot=lambda result, target: None, summary=_summary
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds; return the result's JSON values without the command."""
    bundle, environment = load_bundle(options.bundle), describe_environment()
    pool = load_images(bundle)
    frames = [*(pool.as_frames(camera_size(options.frame)) if options.frame else pool).images[:64]]
    blocks: dict[str, list[list[float]]] = {name: [] for name in ARMS}
    with ExitStack() as stack:
        node = stack.enter_context(_node(bundle, frames, options))
        arms: dict[str, Handed] = {
            "bare": stack.enter_context(_bare(bundle, options)),
            "stream": stack.enter_context(_stream(bundle, options)),
            "node": node,
        }
        for arm in arms.values():
            run_round(arm, frames, WARM_UP, options.hz)
        node.stages.clear()
        before = Snapshot.take()
        for number in range(options.rounds):
            for name in ARMS if number % 2 == 0 else ARMS[::-1]:
                blocks[name].append(run_round(arms[name], frames, options.frames, options.hz))
                print(f"round {number + 1} of {options.rounds}, {name}", file=sys.stderr, flush=True)
        counters = before.until(Snapshot.take())
        stages = np.array(node.stages)
    flags = timing_flags(options, environment, [counters])
    return {
        "artifact": {"bundle": bundle.path.name, "digest": bundle.digest},
        "environment": environment,
        "config": {
            "engine": options.engine,
            "threads": options.threads,
            "hz": options.hz,
            "frame": list(frames[0].shape),
            "frames": options.frames,
            "rounds": options.rounds,
            "rmw": rclpy.get_rmw_implementation_identifier(),
            "ros": os.environ.get("ROS_DISTRO"),
            "dds_profile": Path(profile).name if (profile := os.environ.get(PROFILE)) else None,
        },
        "results": describe(blocks, stages),
        "validity": {"valid": not flags, "flags": flags, "counters": counters},
    }


def describe(blocks: dict[str, list[list[float]]], stages: NDArray[np.float64]) -> dict[str, Any]:
    """Return the latencies of the arms, the costs over the bare classifier, and where the node's time goes.

    Args:
        blocks: arm -> rounds -> milliseconds.
        stages: (n, 4) milliseconds of the node's frames: publish to decision, and of it as the decision says: wait,
            classify, total in the node's stream.
    """
    round_trip, wait, classify, total = np.median(stages, axis=0).tolist()
    medians = {name: [[float(np.median(each)) for each in found]] for name, found in blocks.items()}  # of one process
    return {
        "arms": {name: summarise(np.concatenate([np.array(each) for each in found])) for name, found in blocks.items()},
        "costs": [
            overhead(arm, baseline, medians[arm], medians[baseline]).to_json()
            for arm, baseline in (("stream", "bare"), ("node", "bare"), ("node", "stream"))
        ],
        "node_median_ms": {
            "publish_to_decision": round_trip,
            "wait": wait,
            "classify": classify,
            "in_stream": total,
            "messages": float(np.median(stages[:, 0] - stages[:, 3])),
        },
    }


def run_round(arm: Handed, frames: list[NDArray[np.uint8]], count: int, hz: float) -> list[float]:
    """Hand over frames at a pace, and return the latency of each in milliseconds."""
    latencies = []
    start = time.perf_counter()
    for number in range(count):
        pause = start + number / hz - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        frame = frames[number % len(frames)]
        begun = time.perf_counter_ns()
        arm(frame)
        latencies.append((time.perf_counter_ns() - begun) / 1e6)
    return latencies


class NodeArm:
    """Sends one of the frames to the node and waits for its decision."""

    def __init__(self, node: Node, frames: list[NDArray[np.uint8]]) -> None:
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._decision: Decision | None = None
        self._messages = {id(frame): _message(frame) for frame in frames}  # making them is not what is measured
        self._number = 0
        self.stages: list[tuple[float, float, float, float]] = []
        self.camera = node.create_publisher(Image, "image", qos_profile_sensor_data)
        node.create_subscription(Decision, "/flss_edge/decision", self._decided, QoSProfile(depth=10))

    def __call__(self, frame: NDArray[np.uint8]) -> None:
        """Send a frame and wait.

        Raises:
            InferenceError: The node did not decide it in time.
        """
        message = self._messages[id(frame)]
        self._number += 1
        message.header.stamp.sec = self._number
        self._decision = None
        begun = time.perf_counter_ns()
        self.camera.publish(message)
        end = time.monotonic() + PATIENCE_S
        while self._decision is None:
            self._executor.spin_once(timeout_sec=0.1)
            if time.monotonic() > end:
                size = f"{message.width}x{message.height}"
                raise InferenceError(
                    f"the node gave no decision on frame {self._number} ({size}) within {PATIENCE_S:g} s",
                    "see what it printed; is another one running? Images over 0.5 MB get lost on the way, unless "
                    "FASTRTPS_DEFAULT_PROFILES_FILE names runtime/ros2/flss_edge_ros/config/fast_dds_images.xml",
                )
        taken = (time.perf_counter_ns() - begun) / 1e6
        decision = self._decision
        if decision.status not in (Decision.ACCEPTED, Decision.LOW_VOTE):
            raise InferenceError(f"the node's decision is {decision.status}: {decision.reason}", "see what it printed")
        self.stages.append((taken, decision.wait_ms, decision.classify_ms, decision.total_ms))

    def _decided(self, decision: Decision) -> None:
        if decision.header.stamp.sec == self._number:
            self._decision = decision


def _message(frame: NDArray[np.uint8]) -> Image:
    height, width, _ = frame.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = frame.tobytes()
    return message


@contextmanager
def _node(bundle: Bundle, frames: list[NDArray[np.uint8]], options: argparse.Namespace) -> Iterator[NodeArm]:
    script = Path(get_package_prefix("flss_edge_ros")) / "lib" / "flss_edge_ros" / "flss_edge_node"
    given = {"bundle_path": str(bundle.path.resolve()), "engine": options.engine, "threads": options.threads}
    given |= {"autostart": "true", "deadline_ms": 1000.0}
    parameters = [part for name, value in given.items() for part in ("-p", f"{name}:={value}")]
    rclpy.init()
    process = subprocess.Popen([str(script), "--ros-args", *parameters], stdout=sys.stderr)
    try:
        camera = Node("camera")
        arm = NodeArm(camera, frames)
        end = time.monotonic() + 60
        while not (arm.camera.get_subscription_count() and camera.count_publishers("/flss_edge/decision")):
            if time.monotonic() > end or process.poll() is not None:
                raise EngineUnavailable("the node did not start", "see what it printed")
            time.sleep(0.1)
        time.sleep(1)  # the node has to know this reader, too
        yield arm
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        rclpy.try_shutdown()


@contextmanager
def _bare(bundle: Bundle, options: argparse.Namespace) -> Iterator[Handed]:
    with open_classifier(bundle, options.engine, threads=options.threads) as classifier:
        yield lambda frame: check(classifier.classify(fit_image(frame, bundle.input))[0].top_label)


@contextmanager
def _stream(bundle: Bundle, options: argparse.Namespace) -> Iterator[Handed]:
    with open_stream(bundle, lambda result: None, options.engine, threads=options.threads, deadline_s=1.0) as stream:
        yield lambda frame: check(stream.classify(frame).decision.top_label)


def check(top_label: int | None) -> None:
    """Refuse a frame that was not voted on.

    Raises:
        InferenceError: It was not.
    """
    if top_label is None:
        raise InferenceError("a frame was not voted on", "the machine is too slow for the deadline of a second")


def _summary(result: dict[str, Any]) -> str:
    results = result["results"]
    lines = []
    for name, found in results["arms"].items():
        stated = found["latency_ms"]
        p99 = "insufficient" if stated["p99"] is None else f"{stated['p99']:.2f} ms"
        lines.append(f"{name}: p50 {stated['p50']:.2f} ms, p99 {p99} of {found['n']} frames")
    for cost in results["costs"]:
        lines.append(f"{cost['arm']} over {cost['baseline']}: {cost['difference_ms']:+.2f} ms in the median")
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="ort")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hz", type=int, default=30, help="of the camera")
    parser.add_argument("--frame", help="of the camera, such as 640x480; by default the encoder's size")
    parser.add_argument("--frames", type=int, help="a round; by default 100, with --quick 20")
    parser.add_argument("--rounds", type=int, help="of each arm; by default 30, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="a first look, always flagged")
    add_result_options(parser)
    options = parser.parse_args(arguments)
    options.frames = options.frames or (20 if options.quick else 100)
    options.rounds = options.rounds or (3 if options.quick else 30)
    require_at_least(options, frames=2, rounds=2, threads=1, hz=1)
    if options.frame:
        camera_size(options.frame)
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
