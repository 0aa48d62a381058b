"""RViz markers: ellipsoids against the distribution they stand for, and what becomes of old markers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from test_conversions import person
from visualization_msgs.msg import Marker, MarkerArray

from hmr_prob_ros.ros.markers import CHI2_95, MarkerBuilder, ellipsoids
from hmr_prob_ros.skeleton import BONES

HEADER = Header(stamp=Time(sec=3), frame_id="camera_optical_frame")


def matrix(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_ellipsoid_rebuilds_the_covariance() -> None:
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(50, 3, 3)) * 0.1
    covariance = factor @ factor.transpose(0, 2, 1)
    covariance[0], covariance[1] = np.eye(3) * 0.01, np.diag([0.04, 0.01, 0.0025])
    diameters, quaternions = ellipsoids(covariance)
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, atol=1e-9)
    for c, d, q in zip(covariance, diameters, quaternions, strict=True):
        r = matrix(q)
        np.testing.assert_allclose(r @ np.diag((d / 2) ** 2 / CHI2_95) @ r.T, c, atol=1e-9)


def test_ellipsoid_holds_95_percent() -> None:
    covariance = np.array([[0.05, 0.01, 0.0], [0.01, 0.02, -0.004], [0.0, -0.004, 0.01]])
    diameters, quaternions = ellipsoids(covariance[None])
    points = np.random.default_rng(1).multivariate_normal(np.zeros(3), covariance, 40000)
    local = points @ matrix(quaternions[0]) / (diameters[0] / 2)
    assert (np.sum(local**2, axis=1) < 1).mean() == pytest.approx(0.95, abs=0.005)


def test_certain_joint_has_no_empty_scale() -> None:
    one = person()
    object.__setattr__(one, "covariance", np.zeros((24, 3, 3), np.float32))
    spheres = [m for m in MarkerBuilder().build([one], HEADER).markers if m.type == Marker.SPHERE]
    assert len(spheres) == 24
    assert all(min(m.scale.x, m.scale.y, m.scale.z) > 0 for m in spheres)


def test_skeletons() -> None:
    one = person(modes=3)
    array = MarkerBuilder(lifetime=0.25).build([one], HEADER)
    back = deserialize_message(serialize_message(array), MarkerArray)
    lines = [m for m in back.markers if m.type == Marker.LINE_LIST]
    assert len(lines) == 3
    for mode, marker in enumerate(lines):
        assert marker.header == HEADER
        assert marker.ns == "person4/modes"
        assert marker.lifetime.nanosec == 250_000_000
        points = np.array([[p.x, p.y, p.z] for p in marker.points]).reshape(-1, 2, 3)
        for (parent, child), (a, b) in zip(BONES, points, strict=True):
            np.testing.assert_allclose(a, one.joints[mode, parent], atol=1e-6)
            np.testing.assert_allclose(b, one.joints[mode, child], atol=1e-6)
    alphas = [m.color.a for m in lines]
    assert alphas == sorted(alphas, reverse=True)


def test_stale_markers_are_deleted_once() -> None:
    builder = MarkerBuilder()
    first = builder.build([person(identity=1, modes=5), person(identity=2)], HEADER)
    assert all(m.action == Marker.ADD for m in first.markers)
    second = builder.build([person(identity=1, modes=3)], HEADER)
    gone = {(m.ns, m.id) for m in second.markers if m.action == Marker.DELETE}
    kept = {(m.ns, m.id) for m in second.markers if m.action == Marker.ADD}
    assert gone == {(m.ns, m.id) for m in first.markers} - kept
    assert ("person1/modes", 4) in gone
    third = builder.build([], HEADER)
    assert {(m.ns, m.id) for m in third.markers} == kept
    assert builder.build([], HEADER).markers == []


def test_untracked_people_do_not_share_markers() -> None:
    markers = MarkerBuilder().build([person(0, identity=-1), person(1, identity=-1)], HEADER).markers
    assert len({(m.ns, m.id) for m in markers}) == len(markers)
