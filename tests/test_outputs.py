"""Outputs for other packages: rotations against scipy, covariances against a Monte Carlo, messages against values."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")
pytest.importorskip("scipy", reason="needs scipy: pip install scipy")

from builtin_interfaces.msg import Time
from rclpy.context import Context
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from visualization_msgs.msg import Marker

from hmr_prob_ros.body import Body
from hmr_prob_ros.hypotheses import HypothesisSet
from hmr_prob_ros.ros.outputs import OUTPUTS, OutputFrame, open_output
from hmr_prob_ros.ros.outputs.frame import body_axes, pose_covariance, quaternions, rotation_vectors
from hmr_prob_ros.ros.outputs.joint_states import joint_angles, joint_states
from hmr_prob_ros.ros.outputs.mesh import MeshOutput, mesh_marker
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES

HEADER = Header(stamp=Time(sec=3, nanosec=5), frame_id="camera_optical_frame")
FACING_THE_CAMERA = np.diag([1.0, -1, -1])
SPREAD = np.array([0.02, 0.01, 0.15, 0.1, 0.3, 0.05])  # standard deviations, m and rad


def samples_of(body: Body, seed: int, count: int, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (N, 24, 3) and local rotations (N, 24, 3, 3) of bodies round ``turn``, and their covariance (6, 6)."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.normal(size=(6, 6)))[0] * rng.uniform(0.5, 1.5, 6)
    factor = np.diag(SPREAD) @ mix / 1.5
    draws = rng.normal(size=(count, 6)) @ factor.T
    draws[0] = 0
    rotations = Rotation.from_rotvec(0.3 * rng.normal(size=(count * 24, 3))).as_matrix().reshape(count, 24, 3, 3)
    rotations[:, 0] = (Rotation.from_rotvec(draws[:, 3:]) * Rotation.from_matrix(turn)).as_matrix()
    places = np.array([0.3, 0.1, 3.0]) + draws[:, :3]
    joints = body.joints(rotations, np.zeros((count, 10)), places)
    return joints, rotations, factor @ factor.T


def person_of(
    body: Body, seed: int = 0, modes: int = 5, count: int = 400, turn: np.ndarray = FACING_THE_CAMERA, **more: Any
) -> HypothesisSet:
    """A person whose modes are the first samples."""
    joints, rotations, _ = samples_of(body, seed, count, turn)
    rng = np.random.default_rng(seed)
    zeros = np.zeros((modes, 10))
    translation = joints[:modes, 0] - body.rest_joints(np.zeros(10))[0]
    keypoints = np.column_stack([rng.uniform(0, 640, 23), rng.uniform(0, 480, 23), rng.uniform(0, 1, 23)])
    values: dict[str, Any] = {
        "id": 4, "box": np.array([1, 2, 30, 40]), "score": 0.75, "keypoints": keypoints,
        "weights": np.sort(rng.dirichlet(np.ones(modes)))[::-1], "log_density": np.zeros(modes),
        "rotations": rotations[:modes], "betas": zeros, "translation": translation, "joints": joints[:modes],
        "keypoints3d": body.keypoints(rotations[:modes], zeros, translation), "mean": joints.mean(0),
        "covariance": np.einsum("nji,njk->jik", joints - joints.mean(0), joints - joints.mean(0)) / count,
        "visibility": np.ones(24), "samples": joints,
    }  # fmt: skip
    return HypothesisSet(**(values | more))


def random_rotations(count: int = 500) -> np.ndarray:
    """All sorts, with the hard ones: none, half turns and nearly so."""
    axes = np.concatenate([np.eye(3), -np.eye(3), np.random.default_rng(1).normal(size=(20, 3))])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    hard = [a * angle for a in axes for angle in (0, 1e-9, 1e-5, np.pi - 1e-6, np.pi, 2.0)]
    return np.concatenate([Rotation.random(count, random_state=0).as_matrix(), Rotation.from_rotvec(hard).as_matrix()])


def test_quaternions_and_rotation_vectors_are_scipys() -> None:
    matrices = random_rotations()
    found = quaternions(matrices)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-12)
    assert (found[:, 3] >= 0).all()
    np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), matrices, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found * Rotation.from_matrix(matrices).as_quat(), -1)), 1, atol=1e-9)
    vectors = rotation_vectors(matrices)
    np.testing.assert_allclose(Rotation.from_rotvec(vectors).as_matrix(), matrices, atol=1e-8)
    assert np.linalg.norm(vectors, axis=1).max() <= np.pi + 1e-12
    small = np.linalg.norm(vectors, axis=1) < 3
    np.testing.assert_allclose(vectors[small], Rotation.from_matrix(matrices[small]).as_rotvec(), atol=1e-8)
    assert quaternions(matrices.reshape(-1, 2, 3, 3)).shape == (len(matrices) // 2, 2, 4)


def test_joint_angles_are_scipys() -> None:
    matrices = random_rotations()
    angles = joint_angles(matrices)
    np.testing.assert_allclose(Rotation.from_euler("XYZ", angles).as_matrix(), matrices, atol=1e-7)
    plain = np.abs(matrices[:, 0, 2]) < 0.999
    wanted = Rotation.from_matrix(matrices[plain]).as_euler("XYZ")
    np.testing.assert_allclose(np.exp(1j * angles[plain]), np.exp(1j * wanted), atol=1e-7)
    for middle in (np.pi / 2, -np.pi / 2):
        edge = Rotation.from_euler("XYZ", np.column_stack([np.linspace(-3, 3, 20), np.full(20, middle), np.ones(20)]))
        again = Rotation.from_euler("XYZ", joint_angles(edge.as_matrix()))
        np.testing.assert_allclose(again.as_matrix(), edge.as_matrix(), atol=1e-6)


def test_frame_of_somebody_who_faces_the_camera() -> None:
    front, left, up = body_axes(FACING_THE_CAMERA).T
    np.testing.assert_allclose(front, [0, 0, -1])  # to the camera
    np.testing.assert_allclose(left, [1, 0, 0])  # their left is on the right of the image
    np.testing.assert_allclose(up, [0, -1, 0])
    assert np.linalg.det(body_axes(random_rotations())) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_covariance_is_that_of_the_samples(body: Body, seed: int) -> None:
    """Against scipy on the samples, and against the distribution that they were drawn from."""
    turn = Rotation.random(random_state=seed).as_matrix()
    joints, rotations, truth = samples_of(body, seed, 20_000, turn)
    person = person_of(body, seed, count=20_000, turn=turn)
    found = pose_covariance(person)
    assert found.shape == (5, 6, 6)
    for mode in range(5):
        relative = Rotation.from_matrix(rotations[:, 0]) * Rotation.from_matrix(rotations[mode, 0]).inv()
        d = np.concatenate([joints[:, 0] - joints[mode, 0], relative.as_rotvec()], axis=1)
        np.testing.assert_allclose(found[mode], d.T @ d / len(d), atol=2e-4)
        assert np.linalg.eigvalsh(found[mode]).min() > 0
        np.testing.assert_array_equal(found[mode], found[mode].T)
    # The first sample is the mean of the distribution: the order of the axes and the frame are those it was made in.
    scale = np.sqrt(np.diag(truth))
    np.testing.assert_allclose(found[0] / np.outer(scale, scale), truth / np.outer(scale, scale), atol=0.06)


def test_covariance_without_samples(body: Body) -> None:
    """Where the modes are all there is: the same as of samples with the modes' weights."""
    person = person_of(body, modes=40, count=40, samples=None, weights=np.full(40, 1 / 40))
    with_samples = person_of(body, modes=40, count=40, weights=np.full(40, 1 / 40))
    np.testing.assert_allclose(pose_covariance(person), pose_covariance(with_samples), atol=1e-4)
    # What the modes do not show of the posterior is added to the position.
    wider = person_of(body, modes=5, count=20_000, samples=None, weights=np.full(5, 0.2))
    for mode, matrix in enumerate(pose_covariance(wider)):
        offset = wider.mean[0] - wider.joints[mode, 0]
        wanted = wider.covariance[0] + np.outer(offset, offset)
        assert np.linalg.eigvalsh(matrix).min() > 0
        assert np.trace(matrix[:3, :3]) > 0.5 * np.trace(wanted)
    one = person_of(body, modes=1, count=400, samples=None)
    np.testing.assert_allclose(pose_covariance(one)[0, :3, :3], one.covariance[0], atol=1e-5)


def test_covariance_of_a_certain_pose_is_positive(body: Body) -> None:
    joints = person_of(body, modes=1, count=1).joints
    certain = person_of(body, modes=1, count=1, samples=np.repeat(joints, 50, 0))
    assert np.linalg.eigvalsh(pose_covariance(certain)[0]).min() >= 0.9e-6


def test_joint_states_give_the_body_back(body: Body) -> None:
    people = [person_of(body, 0), person_of(body, 1, id=7), person_of(body, 2, id=-1)]
    message = joint_states(OutputFrame(people, HEADER))
    assert message == deserialize_message(serialize_message(message), type(message))
    assert len(message.name) == len(set(message.name)) == 3 * 69
    state = dict(zip(message.name, message.position, strict=True))
    for name, one in zip(("person_4", "person_7", "person__2"), people, strict=True):
        angles = [[state[f"{name}_{joint}_{axis}"] for axis in "xyz"] for joint in JOINT_NAMES[1:]]
        turned = np.concatenate([one.rotations[0, :1], Rotation.from_euler("XYZ", angles).as_matrix()])
        joints = body.joints(turned, one.betas[0], one.translation[0])
        np.testing.assert_allclose(joints, one.joints[0], atol=1e-4)


def test_mesh(body: Body) -> None:
    one = person_of(body, weights=np.array([0.1, 0.1, 0.5, 0.2, 0.1]))
    marker = deserialize_message(mesh_marker(one, HEADER, body, "4", 0.5), Marker)
    assert (marker.ns, marker.type, marker.lifetime.nanosec) == ("person4/mesh", Marker.TRIANGLE_LIST, 500_000_000)
    assert (marker.header, marker.scale.x, marker.pose.orientation.w) == (HEADER, 1.0, 1.0)
    assert marker.color.a > 0.5
    assert (marker.text, list(marker.colors), marker.mesh_resource) == ("", [], "")
    points = np.array([(p.x, p.y, p.z) for p in marker.points]).reshape(-1, 3, 3)
    vertices = body.vertices(one.rotations[2], one.betas[2], one.translation[2])
    np.testing.assert_allclose(points, vertices[body.faces])
    volume = np.einsum("fi,fi->f", points[:, 0], np.cross(points[:, 1], points[:, 2])).sum() / 6
    assert 0.04 < volume < 0.12  # cubic metres, and the outside is outside
    # Every alignment of what stands before the points.
    for length in range(8):
        name, frame = "n" * length, Header(frame_id="f" * (7 - length))
        again = deserialize_message(mesh_marker(one, frame, body, name), Marker)
        assert (len(again.points), again.header.frame_id, again.ns) == (
            len(points) * 3,
            "f" * (7 - length),
            f"person{name}/mesh",
        )
        assert (again.points[-1].x, again.points[-1].z) == tuple(points[-1, -1, [0, 2]])


class Listener:
    """A node with a publisher's sink that keeps what is published."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def publish(self, message: Any) -> None:
        self.got.append(message)

    def get_subscription_count(self) -> int:
        return 1


def test_mesh_rate_and_people_who_are_gone(body: Body, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    output, sink = MeshOutput(node, rate=2.0, body=body), Listener()
    monkeypatch.setattr(output, "_publisher", sink)
    people = [person_of(body), person_of(body, id=9)]
    counts = []
    for step in range(31):  # three seconds at ten a second
        output.publish(OutputFrame(people, Header(stamp=Time(sec=step // 10, nanosec=step % 10 * 10**8))))
        counts.append(len(sink.got))
    assert counts[-1] == 2 * 7
    assert counts[4] == 2
    output.publish(OutputFrame(people[:1], Header(stamp=Time(sec=9))))
    gone, kept = sink.got[-2:]
    assert (gone.ns, gone.action) == ("person9/mesh", Marker.DELETE)
    assert deserialize_message(kept, Marker).ns == "person4/mesh"
    output.publish(OutputFrame(people, Header(stamp=Time(sec=1))))  # the clip begins again
    assert len(sink.got) == 18
    monkeypatch.undo()
    output.close()


@pytest.fixture
def node() -> Iterator[Node]:
    context = Context()
    __import__("rclpy").init(context=context, domain_id=random.SystemRandom().randint(30, 101))
    node = Node("outputs", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_nothing_is_made_while_nobody_listens(body: Body, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmr_prob_ros.ros.outputs.mesh.mesh_marker", None)
    monkeypatch.setattr("hmr_prob_ros.ros.outputs.joint_states.joint_states", None)
    for name in ("joint_states", "mesh"):
        output = open_output(node, name)
        assert not isinstance(output, str)
        assert any(p.topic_name == f"/human/{name}" for p in node.publishers)
        output.publish(OutputFrame([person_of(body)], HEADER))
        output.close()
        assert not any(p.topic_name == f"/human/{name}" for p in node.publishers)


@pytest.mark.parametrize("name", ["detections", "hri", "pelvis_tf"])
def test_missing_package_is_a_reason(node: Node, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, OUTPUTS[name][0], None)
    reason = open_output(node, name)
    assert isinstance(reason, str)
    assert OUTPUTS[name][0] in reason
    assert "apt install" in reason
    assert "\n" not in reason


# Message packages that PyPI does not carry ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Their Python classes, which check what is assigned, made from the definitions in ``message_packages``."""
    pytest.importorskip(
        "rosidl_generator_py", reason="needs the message generators: pip install ros-rosidl-generator-py"
    )
    from message_packages import PACKAGES, generate_classes

    before = set(sys.modules)
    missing = [p for p in PACKAGES if __import__("importlib.util").util.find_spec(p) is None]
    path = str(generate_classes(tmp_path_factory.mktemp("messages"))) if missing else ""
    sys.path.insert(0, path)
    import vision_msgs.msg

    yield vision_msgs.msg
    sys.path.remove(path)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in PACKAGES or name.rpartition(".")[2] in OUTPUTS:
            del sys.modules[name]


def test_detections(body: Body, generated: ModuleType) -> None:
    from hmr_prob_ros.ros.outputs.detections import detections_to_msg

    people = [person_of(body, 0, weights=np.array([0.1, 0.1, 0.5, 0.2, 0.1])), person_of(body, 1, id=8)]
    array = detections_to_msg(OutputFrame(people, HEADER))
    assert array.header == HEADER
    assert [d.id for d in array.detections] == ["4", "8"]
    for detection, one in zip(array.detections, people, strict=True):
        assert detection.header == HEADER
        scores = [r.hypothesis.score for r in detection.results]
        assert {r.hypothesis.class_id for r in detection.results} == {"person"}
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        order = np.argsort(-one.weights, kind="stable")
        covariances = pose_covariance(one)
        for result, mode in zip(detection.results, order, strict=True):
            pose = result.pose.pose
            p, q = pose.position, pose.orientation
            np.testing.assert_allclose([p.x, p.y, p.z], one.joints[mode, 0], atol=1e-6)
            front = Rotation.from_quat([q.x, q.y, q.z, q.w]).apply([1, 0, 0])
            np.testing.assert_allclose(front, one.rotations[mode, 0] @ [0, 0, 1], atol=1e-6)
            # Row-major: entry 6 i + j.
            assert result.pose.covariance[6 * 2 + 4] == covariances[mode, 2, 4]
            np.testing.assert_array_equal(np.reshape(result.pose.covariance, (6, 6)), covariances[mode])
        centre, size = detection.bbox.center.position, detection.bbox.size
        middle, half = np.array([centre.x, centre.y, centre.z]), np.array([size.x, size.y, size.z]) / 2
        inside = np.concatenate([one.joints[order[0]], one.keypoints3d[order[0]]])
        assert (np.abs(inside - middle) <= half + 1e-5).all()
        assert np.abs(np.abs(inside - middle).max(axis=0) - half).max() < 1e-5
    assert detections_to_msg(OutputFrame([], HEADER)).detections == []


def test_pelvis_transforms(body: Body, generated: ModuleType) -> None:
    from hmr_prob_ros.ros.outputs.pelvis_tf import transforms

    one = person_of(body, 3, weights=np.array([0.1, 0.1, 0.5, 0.2, 0.1]))
    (found,) = transforms(OutputFrame([one], HEADER))
    assert (found.header, found.child_frame_id) == (HEADER, "person_4")
    t, q = found.transform.translation, found.transform.rotation
    turn = Rotation.from_quat([q.x, q.y, q.z, q.w])
    # A point a metre above the pelvis, in the person's frame and in the camera's.
    there = turn.apply([0, 0, 1]) + [t.x, t.y, t.z]
    np.testing.assert_allclose(there, one.joints[2, 0] + one.rotations[2, 0] @ [0, 1, 0], atol=1e-6)


def test_skeleton_of_rep_155(body: Body, generated: ModuleType) -> None:
    from hmr_prob_ros.ros.outputs.hri import ORDER, body_id, skeleton_to_msg

    one = person_of(body)
    message = skeleton_to_msg(one, OutputFrame([one], HEADER, (640, 480)))
    assert (message.header, len(message.skeleton), len(ORDER)) == (HEADER, 18, 18)
    for name, point in zip(ORDER, message.skeleton, strict=True):
        if name == "neck":
            continue
        x, y, c = one.keypoints[KEYPOINT_NAMES.index(name)]
        assert (point.x, point.y, point.c) == pytest.approx((x / 640, y / 480, c), rel=1e-6)
    left, right, neck = (message.skeleton[ORDER.index(n)] for n in ("left_shoulder", "right_shoulder", "neck"))
    assert neck.x == pytest.approx((left.x + right.x) / 2)
    assert neck.c == pytest.approx(min(left.c, right.c))
    assert body_id(one, 0).isalnum()
    assert body_id(person_of(body, id=-1), 3).isalnum()
    with pytest.raises(ValueError, match="size of the image"):
        skeleton_to_msg(one, OutputFrame([one], HEADER))


def test_skeleton_of_rep_155_stays_in_the_image(body: Body, generated: ModuleType) -> None:
    """hri_msgs wants coordinates in [0, 1]: what was guessed beyond is on the border and not believed."""
    from hmr_prob_ros.ros.outputs.hri import ORDER, skeleton_to_msg

    one = person_of(body)
    one.keypoints[:, :2] = (100, 100)
    for name, place in (("left_wrist", (-32, 120)), ("right_ankle", (320, 500))):
        one.keypoints[KEYPOINT_NAMES.index(name)] = (*place, 0.4)
    message = skeleton_to_msg(one, OutputFrame([one], HEADER, (640, 480)))
    points = {name: (p.x, p.y, p.c) for name, p in zip(ORDER, message.skeleton, strict=True)}
    assert points["left_wrist"] == pytest.approx((0, 0.25, 0))
    assert points["right_ankle"] == pytest.approx((0.5, 1, 0))
    assert points["left_knee"][2] > 0


@pytest.mark.slow
def test_all_outputs_between_nodes(tmp_path: Path) -> None:
    """The packages compiled, and every output sent over the middleware and received."""
    from message_packages import PACKAGES, build_package

    paths = {str(build_package(name, tmp_path)) for name in PACKAGES}
    stage = tmp_path / "stage"
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([*paths, str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    )
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(stage / "lib"), os.environ.get("LD_LIBRARY_PATH", "")])
    environment["AMENT_PREFIX_PATH"] = os.pathsep.join(
        [str(stage), os.environ.get("AMENT_PREFIX_PATH", "") or sys.prefix]
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "outputs_between_nodes.py")],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all outputs came" in done.stdout
