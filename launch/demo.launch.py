"""Camera, estimator and RViz in one go.

ros2 launch hmr_prob_ros demo.launch.py                       # /dev/video0
ros2 launch hmr_prob_ros demo.launch.py input:=walk.mp4       # a video, a picture or a folder of pictures
ros2 launch hmr_prob_ros demo.launch.py input:=none image_topic:=/front/image_raw    # a camera that runs already
"""

from __future__ import annotations

import os
from shutil import which

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = get_package_share_directory("hmr_prob_ros")

ARGUMENTS = (
    ("input", "/dev/video0", "video, picture, folder of pictures or /dev/videoN to play; none: a camera runs already"),
    ("camera", "", "camera_info yaml of the input; empty: INPUT.yaml beside it, else the focal length is guessed"),
    ("rate", "", "frames a second; empty: the input's own"),
    ("max_size", "640", "longest side of the played frames in pixels; 0: as they are"),
    ("loop", "true", "play the input again and again"),
    ("rviz", "auto", "show RViz: true, false, or auto (where it is installed)"),
    ("rviz_config", os.path.join(SHARE, "rviz", "human.rviz"), "view that RViz opens"),
    ("image_topic", "/camera/image_raw", "raw image of a camera that runs already (with input:=none)"),
    ("detector", "blazepose", "blazepose, mediapipe (one person), rtmlib, or topic (of another node)"),
    ("bundle", "", "folder of a model bundle; empty: the one in the package"),
    ("engine", "", "what runs the model: onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt or auto"),
    ("precision", "", "of the engine: fp32, or on a GPU tf32 or fp16"),
    ("samples", "", "bodies drawn for each person; empty: 100"),
    ("modes", "", "weighted bodies published for each person; empty: 10"),
    ("autostart", "", "start by itself (empty or true), or false: a lifecycle manager configures and activates"),
    ("image_profile", "true", "use the package's Fast DDS profile for images (see estimator.launch.py)"),
)
PASSED_ON = ("detector", "bundle", "engine", "precision", "samples", "modes", "autostart", "image_profile")


def _actions(context: LaunchContext) -> list:
    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    playing = value["input"] not in ("", "none")
    image_topic = "/camera/image_raw" if playing else value["image_topic"]
    # First, so that its environment (the profile for images) holds for the player too.
    actions: list = [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "estimator.launch.py")),
            launch_arguments=[("image_topic", image_topic), *((name, value[name]) for name in PASSED_ON)],
        )
    ]
    if playing:
        options = [
            f"--{name.replace('_', '-')}={value[name]}" for name in ("camera", "rate", "max_size") if value[name]
        ]
        if value["loop"] == "true" and not value["input"].startswith("/dev/"):
            options.append("--loop")
        actions.append(
            Node(
                package="hmr_prob_ros",
                executable="camera_player",
                name="camera_player",
                arguments=[value["input"], "--quiet", *options],
                output="screen",
                emulate_tty=True,
            )
        )
    actions += _rviz(value["rviz"], value["rviz_config"])
    return actions


def _rviz(wanted: str, view: str) -> list:
    if wanted == "false":
        return []
    try:
        get_package_prefix("rviz2")
        found = which("rviz2") is not None
    except PackageNotFoundError:
        found = False
    if wanted == "auto" and not (found and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))):
        return [LogInfo(msg="no RViz or no display here: look at /human/overlay or run RViz on another machine")]
    return [Node(package="rviz2", executable="rviz2", name="rviz2", arguments=["-d", view], output="log")]


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=_actions)])
