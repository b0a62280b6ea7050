"""Start the node with the parameters of params_file, before which go those of the arguments that are given.

ros2 launch flss_edge_ros flss_edge.launch.py bundle_path:=/opt/c10.bundle image:=/camera/image_raw
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription

PARAMETERS = Path(__file__).resolve().parents[1] / "config" / "params.yaml"


class Argument(NamedTuple):
    """An argument of the launch that sets a parameter of the node."""

    name: str
    parameter: str
    kind: type
    meaning: str


ARGUMENTS = (
    Argument("bundle_path", "bundle_path", str, "the bundle's directory"),
    Argument("image", "image_topic", str, "topic of the images"),
    Argument("image_transport", "image_transport", str, "raw or compressed"),
    Argument("autostart", "autostart", bool, "true: configure and activate at once"),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the node; an empty argument was not given."""
    declared = [DeclareLaunchArgument(each.name, default_value="", description=each.meaning) for each in ARGUMENTS]
    return LaunchDescription(
        [
            *declared,
            DeclareLaunchArgument("params_file", default_value=str(PARAMETERS), description="YAML of the parameters"),
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
            OpaqueFunction(function=start),
        ]
    )


def start(context: LaunchContext) -> list[LifecycleNode]:
    """Make the node with the arguments that were given."""
    values = {each: LaunchConfiguration(each.name) for each in ARGUMENTS}
    given = {
        each.parameter: ParameterValue(value, value_type=each.kind)
        for each, value in values.items()
        if value.perform(context)
    }
    node = LifecycleNode(
        package="flss_edge_ros",
        executable="flss_edge_node",
        name="flss_edge",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), *([given] if given else [])],
        output="screen",
    )
    return [node]
