"""The node's parameters: one table that declares, describes and checks them."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name

from flss_runtime.errors import UsageError

_KINDS = {"str": str, "bool": bool, "int": int, "float": float}
_LONGEST_MS = 3_600_000.0
_MOST_SAMPLES = 1_000_000
HEARTBEAT_S = 1.0  # of the diagnostics and of the liveliness


def _text(default: str, meaning: str, *choices: str) -> Any:
    return field(default=default, metadata={"meaning": meaning, "choices": choices})


def _number(default: float, meaning: str, most: float) -> Any:
    return field(default=default, metadata={"meaning": meaning, "most": most})


def _switch(default: bool, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """The values that a configured node works with.

    Every number is at least 0, and 0 switches its feature off or leaves the choice to the bundle.

    Raises:
        UsageError: A value is of another type, outside its range, or does not go with another one.
    """

    bundle_path: str = _text("", "directory of the bundle; required")
    engine: str = _text("ort", "inference engine, ENGINE[:DEVICE], as flss-edge's --engine")
    precision: str = _text("fp32", "precision of the graphs", "fp32", "fp16", "int8")
    sampling: str = _text("latent", "what is sampled", "latent", "logit", "deterministic")
    threads: int = _number(0, "threads of the engine; 0: the physical cores", 4096)
    strict: bool = _switch(True, "refuse to run on another device or in another precision than was asked for")
    num_samples: int = _number(
        0, "samples that vote on an image, calibrated for; 0: the bundle's number", _MOST_SAMPLES
    )
    reduced_samples: int = _number(
        0, "samples where time is short, calibrated for; 0: always num_samples", _MOST_SAMPLES
    )
    deadline_ms: float = _number(100.0, "longest time from the decoded image to its decision; 0: none", _LONGEST_MS)
    image_topic: str = _text("image", "topic of the images; of compressed ones without /compressed")
    image_transport: str = _text("raw", "sensor_msgs/Image, or CompressedImage on /compressed", "raw", "compressed")
    image_reliability: str = _text(
        "best_effort", "of the image subscription", "best_effort", "reliable", "system_default"
    )
    steady_frames: int = _number(0, "frames that the temporal vote looks back; 0: no temporal vote", 10_000)
    steady_needed: int = _number(0, "how many of them must agree, more than half", 10_000)
    steady_max_age_ms: float = _number(
        500.0, "frames older than this do not count; 0: any age, also while the engine hangs", _LONGEST_MS
    )
    drift_dwell_frames: int = _number(
        30, "frames after which the camera sees something independent; 0: no drift monitor", 1_000_000
    )
    record_path: str = _text("", "file that a record of every frame is appended to, JSON lines; empty: none")
    record_key: str = _text(
        "", "file for the key of the noise, which repeats a record's votes; where it exists, FILE.2, …; empty: none"
    )
    stale_after_ms: float = _number(
        3000.0, "diagnostics say STALE when no image came for so long; 0: never", _LONGEST_MS
    )
    qos_deadline_ms: float = _number(1000.0, "offered between two decisions, for watchdogs; 0: none", _LONGEST_MS)
    qos_lease_ms: float = _number(3000.0, "offered liveliness lease of ~/decision; 0: none", _LONGEST_MS)
    autostart: bool = _switch(False, "configure and activate at once; read when the node starts")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each, getattr(self, each.name))
        try:
            validate_full_topic_name(expand_topic_name(self.image_topic, "node", "/"))
        except (InvalidTopicNameException, ValueError) as error:
            raise UsageError(f"image_topic is {self.image_topic!r}: {error}", "set it to a topic's name") from error
        if 0 < self.qos_lease_ms < 2 * HEARTBEAT_S * 1000:
            raise UsageError(
                f"qos_lease_ms is {self.qos_lease_ms:g}, but the node says once in {HEARTBEAT_S:g} s that it is alive",
                f"set qos_lease_ms to at least {2 * HEARTBEAT_S * 1000:g}, or to 0",
            )
        if self.reduced_samples and not self.deadline_ms:
            raise UsageError(
                f"reduced_samples is {self.reduced_samples} without a deadline: time is never short",
                "set deadline_ms, or reduced_samples to 0",
            )


def names() -> frozenset[str]:
    """Return the names of the parameters."""
    return frozenset(each.name for each in fields(Settings))


def declare(node: Node) -> None:
    """Declare every parameter, with what it means and which values it takes.

    Typed dynamically: ROS would end the node with a traceback for `deadline_ms: 50` instead of 50.0, and for everything
    that is worse. `Settings` refuses instead, in the words of this package, when the node is configured.
    """
    for each in fields(Settings):
        descriptor = ParameterDescriptor(
            description=each.metadata["meaning"], additional_constraints=_constraint(each), dynamic_typing=True
        )
        node.declare_parameter(each.name, each.default, descriptor)


def read(node: Node) -> Settings:
    """Read and check the values.

    Raises:
        UsageError: As `Settings`; or there is no bundle.
    """
    values = {each.name: node.get_parameter(each.name).value for each in fields(Settings)}
    if not values["bundle_path"]:
        raise UsageError(
            "bundle_path is not set",
            "ros2 param set /flss_edge bundle_path /opt/c10.bundle, or bundle_path:= at launch",
        )
    return Settings(**values)


def refusal(name: str, value: object) -> str:
    """Say why a value cannot be taken by itself, or nothing; an unknown name is none of this package's.

    What does not go with another parameter is said when the node is configured: they are set one after the other.
    """
    found = next((each for each in fields(Settings) if each.name == name), None)
    if found is None:
        return ""
    try:
        _check(found, value)
    except UsageError as error:
        return f"{error.problem}; {error.fix}"
    return ""


def _check(each: Field[Any], value: object) -> None:
    kind = _KINDS[str(each.type)]
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    most, choices = each.metadata.get("most"), each.metadata.get("choices", ())
    if fits and most is not None:
        assert isinstance(value, (int, float))
        fits = math.isfinite(value) and 0 <= value <= most
    if not fits or (choices and value not in choices):
        raise UsageError(f"{each.name} is {value!r}", f"set {each.name} to {_constraint(each)}")


def _constraint(each: Field[Any]) -> str:
    if choices := each.metadata.get("choices", ()):
        return " or ".join(choices)
    kind = {"str": "a text", "bool": "true or false", "int": "a whole number", "float": "a number"}[str(each.type)]
    return f"{kind} from 0 to {each.metadata['most']:g}" if "most" in each.metadata else kind
