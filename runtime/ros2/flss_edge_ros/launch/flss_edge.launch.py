"""Start the node, configured and active unless autostart:=false.

ros2 launch flss_edge_ros flss_edge.launch.py bundle_path:=/opt/c10.bundle image:=/camera/image_raw
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

PARAMETERS = Path(__file__).resolve().parents[1] / "config" / "params.yaml"


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and the node."""
    arguments = [
        DeclareLaunchArgument("bundle_path", description="the bundle's directory"),
        DeclareLaunchArgument("image", default_value="image", description="topic of the images"),
        DeclareLaunchArgument("image_transport", default_value="raw", description="raw or compressed"),
        DeclareLaunchArgument("params_file", default_value=str(PARAMETERS), description="YAML of the other parameters"),
        DeclareLaunchArgument("autostart", default_value="true", description="configure and activate at once"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
    ]
    given = {
        "bundle_path": ParameterValue(LaunchConfiguration("bundle_path"), value_type=str),
        "image_topic": ParameterValue(LaunchConfiguration("image"), value_type=str),
        "image_transport": ParameterValue(LaunchConfiguration("image_transport"), value_type=str),
        "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
    }
    node = LifecycleNode(
        package="flss_edge_ros",
        executable="flss_edge_node",
        name="flss_edge",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), given],
        output="screen",
    )
    return LaunchDescription([*arguments, node])
