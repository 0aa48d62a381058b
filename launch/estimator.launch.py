"""The estimator node on the topics of a camera that runs already.

ros2 launch hmr_prob_ros estimator.launch.py image_topic:=/front/image_raw
ros2 launch hmr_prob_ros estimator.launch.py namespace:=front          # one for each camera, topics below /front
ros2 launch hmr_prob_ros estimator.launch.py autostart:=false          # a lifecycle manager configures and activates
"""

from __future__ import annotations

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = get_package_share_directory("hmr_prob_ros")
PROFILE = os.path.join(SHARE, "config", "fastdds_images.xml")

ARGUMENTS = (
    ("namespace", "", "namespace of the node, for several cameras"),
    ("name", "human_estimator", "name of the node"),
    ("params_file", os.path.join(SHARE, "config", "estimator.yaml"), "file with the node's parameters"),
    (
        "image_profile",
        "true",
        "use the package's Fast DDS profile for images, without which most best-effort images are lost (the camera "
        "needs it too), unless the environment names one already; false: never",
    ),
)
# Parameters of the node; an empty one is left to params_file.
PARAMETERS = (
    ("autostart", "configure and activate at the start: true, or false to leave both to a lifecycle manager"),
    ("use_sim_time", "take the time from /clock: true or false"),
    ("image_topic", "raw image (sensor_msgs/Image); empty: as in params_file, camera/image_raw"),
    ("camera_info_topic", "camera info; empty: camera_info beside the image"),
    ("transport", "raw, compressed or auto (both)"),
    ("detector", "blazepose, mediapipe (one person), rtmlib, or topic (another node's keypoints)"),
    ("bundle", "folder of a model bundle; empty: the one in the package"),
    ("engine", "onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt or auto"),
    ("precision", "fp32, or on a GPU tf32 or fp16"),
    ("samples", "bodies drawn for each person"),
    ("modes", "weighted bodies published for each person"),
)
NUMBERS = ("samples", "modes")
SWITCHES = ("autostart", "use_sim_time")


def _profile() -> list:
    """Older Fast DDS knows another name for the variable, and newer ones complain about it."""
    old = os.environ.get("ROS_DISTRO") in ("foxy", "galactic", "humble", "iron")
    name = "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"
    return [] if os.environ.get(name) else [SetEnvironmentVariable(name, PROFILE)]


def _typed(name: str, text: str) -> object:
    if name in NUMBERS:
        return int(text)
    return text.lower() in ("true", "1", "yes") if name in SWITCHES else text


def _actions(context: LaunchContext) -> list:
    value = {name: LaunchConfiguration(name).perform(context) for name, *_ in (*ARGUMENTS, *PARAMETERS)}
    given = {name: _typed(name, value[name]) for name, _ in PARAMETERS if value[name]}
    node = Node(
        package="hmr_prob_ros",
        executable="estimator_node",
        name=value["name"],
        namespace=value["namespace"],
        parameters=[value["params_file"], given],
        output="screen",
        emulate_tty=True,
    )
    return [*(_profile() if value["image_profile"] == "true" else []), node]


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS]
    declared += [DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS]
    return LaunchDescription([*declared, OpaqueFunction(function=_actions)])
