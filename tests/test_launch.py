"""Launch files, parameter file, Fast DDS profile and RViz view: what can be checked with and without ROS' launch."""

from __future__ import annotations

import ast
import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))


def literal(path: Path, name: str) -> ast.expr:
    """The value assigned to a name at the top of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return node.value
    raise AssertionError(f"{path.name} does not assign {name}")


def argument_names(path: Path) -> list[str]:
    names = [e.elts[0].value for e in literal(path, "ARGUMENTS").elts]
    return names + (
        [e.elts[0].value for e in literal(path, "PARAMETERS").elts] if path.name.startswith("estimator") else []
    )


def test_both_launch_files_are_there() -> None:
    assert [p.name for p in LAUNCH_FILES] == ["demo.launch.py", "estimator.launch.py"]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_file_compiles_and_describes_its_arguments(path: Path) -> None:
    compile(path.read_text(), str(path), "exec")
    assert {"input", "rviz"} <= set(argument_names(path)) or {"params_file", "image_topic"} <= set(argument_names(path))
    for element in literal(path, "ARGUMENTS").elts:
        description = element.elts[-1]
        assert isinstance(description, ast.Constant)
        assert len(str(description.value)) > 10


def test_demo_passes_on_only_what_the_estimator_declares() -> None:
    demo, estimator = LAUNCH_FILES
    passed = [e.value for e in literal(demo, "PASSED_ON").elts]
    assert set(passed) <= set(argument_names(estimator))
    assert set(passed) <= set(argument_names(demo))


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda p: p.name)
def test_launch_file_with_real_launch(path: Path) -> None:
    pytest.importorskip("launch_ros", reason="launch and launch_ros come with a ROS installation (apt), not from PyPI")
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        get_package_share_directory("hmr_prob_ros")
    except PackageNotFoundError:
        pytest.skip("the package is not in a sourced workspace: colcon build, then source install/setup.bash")
    from launch import LaunchContext

    spec = importlib.util.spec_from_file_location(path.stem.split(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    context = LaunchContext()
    actions = []
    for entity in description.entities:
        actions += entity.visit(context) or []
    assert actions


def test_parameter_file_is_the_defaults() -> None:
    pytest.importorskip("rclpy", reason="the parameters' descriptors are ROS messages")
    from hmr_prob_ros.ros.parameters import PARAMETERS, Settings

    values = yaml.safe_load((ROOT / "config" / "estimator.yaml").read_text())["/**"]["ros__parameters"]
    assert values == {p.name: p.default for p in PARAMETERS}
    assert {k: type(v) for k, v in values.items()} == {p.name: type(p.default) for p in PARAMETERS}
    settings = Settings(**values)
    settings.check()
    assert settings.topics() == ("camera/image_raw", "camera/image_raw/compressed", "camera/camera_info")


@pytest.mark.parametrize(
    ("image", "info"),
    [
        ("image", "camera_info"),
        ("/image", "/camera_info"),
        ("/a/b/image_rect", "/a/b/camera_info"),
        ("cam/image", "cam/camera_info"),
    ],
)
def test_camera_info_lies_beside_the_image(image: str, info: str) -> None:
    pytest.importorskip("rclpy", reason="the parameters' descriptors are ROS messages")
    from hmr_prob_ros.ros.parameters import PARAMETERS, Settings

    settings = Settings(**{**{p.name: p.default for p in PARAMETERS}, "image_topic": image})
    assert settings.topics() == (image, f"{image}/compressed", info)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 5, "modes": 6}, "lower modes or raise samples"),
        ({"transport": "pigeon"}, "auto, raw or compressed"),
        ({"detector_options": "[1]"}, "YAML mapping"),
        ({"detector_options": "{a: "}, "not YAML"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, object], words: str) -> None:
    pytest.importorskip("rclpy", reason="the parameters' descriptors are ROS messages")
    from hmr_prob_ros.ros.parameters import PARAMETERS, ParameterError, Settings

    settings = Settings(**{**{p.name: p.default for p in PARAMETERS}, **changes})
    with pytest.raises(ParameterError, match=words):
        settings.check()


def test_profile_has_room_for_images_and_a_way_to_other_hosts() -> None:
    tree = ElementTree.parse(ROOT / "config" / "fastdds_images.xml")
    texts = {e.tag.rpartition("}")[2]: e.text for e in tree.iter()}
    assert int(texts["segment_size"]) >= 16 << 20
    assert texts["useBuiltinTransports"] == "false"
    transports = [e for e in tree.iter() if e.tag.endswith("}transport_descriptor")]
    kinds = {c.text for t in transports for c in t if c.tag.endswith("}type")}
    assert kinds == {"SHM", "UDPv4"}


def test_rviz_view_shows_the_topics_in_the_players_frame() -> None:
    view = yaml.safe_load((ROOT / "rviz" / "human.rviz").read_text())["Visualization Manager"]
    topics = {d["Topic"]["Value"] for d in view["Displays"] if "Topic" in d}
    assert topics == {"/human/markers", "/human/mesh", "/human/overlay"}
    assert view["Global Options"]["Fixed Frame"] == "camera_optical_frame"
