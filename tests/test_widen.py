"""Widened poses: mirroring, reaching, interpenetration, families, pools and contact sheets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES
from hmr_prob_ros.training.contact_sheet import contact_sheet, main
from hmr_prob_ros.training.data.limits import (
    _segment_distance,
    clip_to_range,
    elbow_bend,
    knee_bend,
    penetration,
    plausible,
)
from hmr_prob_ros.training.data.mocap import Mocap
from hmr_prob_ros.training.data.postures import FAMILIES, make_posture
from hmr_prob_ros.training.data.reach import PLACES, place_arms, reach
from hmr_prob_ros.training.data.retarget import MocapError
from hmr_prob_ros.training.data.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr_prob_ros.training.data.widen import (
    KINDS,
    SHARES,
    PoseSampler,
    balanced_frames,
    build_pool,
    load_pool,
    mirror,
)

J = {name: k for k, name in enumerate(JOINT_NAMES)}


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def mocap() -> Mocap:
    """A made-up motion, so that the tests need no data: arms hang and swing, legs step. Two long takes, one short."""
    rng = np.random.default_rng(0)
    lengths, splits = (900, 90, 300), (0, 0, 2)
    frames = sum(lengths)
    time = np.arange(frames) / 30.0
    pose = np.zeros((frames, 24, 3))
    pose[:, J["left_shoulder"], 2], pose[:, J["right_shoulder"], 2] = -1.1, 1.1
    for side, phase in (("left", 0.0), ("right", np.pi)):
        pose[:, J[f"{side}_hip"], 0] = -0.3 + 0.4 * np.sin(4 * time + phase)
        pose[:, J[f"{side}_knee"], 0] = 0.5 + 0.4 * np.sin(4 * time + phase + 1)
        pose[:, J[f"{side}_elbow"], 1] = (-1 if side == "left" else 1) * (0.6 + 0.4 * np.sin(2 * time))
    pose += 0.05 * rng.standard_normal(pose.shape)
    pose[:, 22:] = 0
    take = np.repeat(np.arange(3), lengths)
    return Mocap(
        pose.astype(np.float32), np.zeros((frames, 3), np.float32), take, ["a", "b", "c"], take, ["a", "b", "c"],
        np.zeros(frames, np.int16), ["made"], np.repeat(splits, lengths).astype(np.uint8), 30.0,
    )  # fmt: skip


def test_mirrored_pose_is_the_mirrored_body(body: Body):
    pose = np.random.default_rng(1).normal(size=(20, 24, 3)) * 0.5
    joints = body.joints(axis_angle_to_matrix(pose), np.zeros(10))
    other = body.joints(axis_angle_to_matrix(mirror(pose)), np.zeros(10))
    expected = joints[:, list(JOINT_FLIP)] * np.array([-1.0, 1.0, 1.0])
    assert np.abs(other - expected).max() < 0.01  # as far as the body itself is symmetric
    assert np.array_equal(mirror(mirror(pose)), pose)


def test_takes_are_balanced(mocap: Mocap):
    train = mocap.select("train")
    rows = balanced_frames(train, 20000, np.random.default_rng(2))
    share = (train.take[rows] == 1).mean()
    assert share == pytest.approx(np.sqrt(90) / (np.sqrt(90) + np.sqrt(900)), abs=0.02)


def test_segment_distance_against_brute_force():
    rng = np.random.default_rng(3)
    a0, a1, b0, b1 = rng.normal(size=(4, 60, 3))
    a1[:5] = a0[:5]  # points
    b1[5:10] = b0[5:10] + 2 * (a1[5:10] - a0[5:10])  # parallel
    s = np.linspace(0, 1, 401)
    p = a0[:, None] + s[:, None] * (a1 - a0)[:, None]
    q = b0[:, None] + s[:, None] * (b1 - b0)[:, None]
    brute = np.array([np.linalg.norm(p[k][:, None] - q[k][None], axis=-1).min() for k in range(60)])
    got = _segment_distance(a0, a1, b0, b1)
    assert np.abs(got - brute).max() < 0.02
    assert (got <= brute + 1e-9).all()


def test_penetration_tells_knots(body: Body):
    pose = np.zeros((3, 24, 3))
    pose[:, J["left_shoulder"], 2], pose[:, J["right_shoulder"], 2] = -1.1, 1.1
    pose[1, J["left_shoulder"]] = (0, -3.0, 0)  # the arm through the other shoulder
    pose[2, J["left_hip"]] = (0, 0, -0.4)  # the legs through each other
    pose[2, J["right_hip"]] = (0, 0, 0.4)
    depth = penetration(body.joints(axis_angle_to_matrix(pose), np.zeros(10)))
    assert depth[0] < 0.02
    assert depth[1] > 0.04
    assert depth[2] > 0.04


def test_reach_brings_the_wrist_to_the_target(body: Body):
    rng = np.random.default_rng(4)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        rotations = np.broadcast_to(np.eye(3), (200, 24, 3, 3)).copy()
        rotations[:, J["spine2"]] = axis_angle_to_matrix(rng.normal(size=(200, 3)) * 0.3)
        shoulder = body.joints(rotations, np.zeros(10))[:, J[f"{side}_shoulder"]]
        target = shoulder + rng.uniform(-1, 1, (200, 3)) * 0.1 + np.array([sign * 0.05, -0.05, 0.32])
        reach(rotations, side, target, np.array([[sign * 0.5, -1.0, -0.2]] * 200), rng.normal(size=200) * 0.3, body)
        joints = body.joints(rotations, np.zeros(10))
        assert np.abs(joints[:, J[f"{side}_wrist"]] - target).max() < 1e-4
        bend, towards = elbow_bend(rotations[:, J[f"{side}_elbow"]], side)
        assert ((bend < 8) | (np.abs(towards - 20) < 12)).all()  # the hinge, up to the forearm's turn
        assert np.allclose(np.linalg.det(rotations), 1.0)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_places_are_mirrored_on_the_right(name: str, body: Body):
    rotations = np.broadcast_to(np.eye(3), (64, 24, 3, 3)).copy()
    for side in ("left", "right"):  # seated, so that thighs point somewhere
        rotations[:, J[f"{side}_hip"]] = axis_angle_to_matrix(np.array([-1.5, 0.0, 0.0]))
    hand = np.full(64, name)
    place_arms(rotations, hand, hand, np.random.default_rng(5), body, True)
    joints = body.joints(rotations, np.zeros(10))
    left = joints[:, J["left_wrist"]].mean(0) * np.array([-1.0, 1.0, 1.0])
    assert np.abs(left - joints[:, J["right_wrist"]].mean(0)).max() < 0.06


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_families_are_mostly_bodies(kind: str, mocap: Mocap, body: Body):
    rng = np.random.default_rng(6)
    arms = axis_angle_to_matrix(mocap.pose[rng.integers(len(mocap), size=300)].astype(np.float64))
    rotations = make_posture(kind, arms, rng, body)
    assert np.allclose(rotations @ np.swapaxes(rotations, -1, -2), np.eye(3), atol=1e-9)
    pose = matrix_to_axis_angle(rotations)
    joints = body.joints(rotations, np.zeros(10))
    good = plausible(pose) & (penetration(joints) < 0.03)
    assert good.mean() > 0.4
    flexion = np.stack([knee_bend(rotations[:, J[f"{s}_knee"]])[0] for s in ("left", "right")])
    assert flexion.min() > -1.0
    up = body.global_rotations(rotations)[:, 0, 1, 1]
    if kind == "lying":
        assert np.abs(up).max() < 0.5
    if kind == "sitting":  # hips no higher above the seat than half a thigh
        thigh = joints[:, [1, 2]] - joints[:, [4, 5]]
        assert np.median(np.abs(thigh[..., 1])) < 0.12
        assert up.min() > 0.3
    if kind == "standing":  # nothing but the feet reaches the floor
        assert np.isin(joints[..., 1].argmin(axis=1), [7, 8, 10, 11]).mean() > 0.98


@pytest.fixture(scope="module")
def pool(mocap: Mocap, body: Body) -> tuple[np.ndarray, np.ndarray]:
    return build_pool(mocap, "train", 1500, 0, body, progress=False)


def test_pool_holds_what_was_asked_for(pool: tuple[np.ndarray, np.ndarray], mocap: Mocap, body: Body):
    pose, kind = pool
    assert pose.shape == (1500, 24, 3)
    assert pose.dtype == np.float32
    assert np.isfinite(pose).all()
    for name, share in SHARES.items():
        assert (kind == KINDS.index(name)).mean() == pytest.approx(share / sum(SHARES.values()), abs=0.002)
    invented = ~np.isin(kind, [KINDS.index("captured"), KINDS.index("tumbled")])
    joints = body.joints(axis_angle_to_matrix(pose[invented]), np.zeros(10))
    assert plausible(pose[invented]).all()
    assert penetration(joints).max() < 0.031
    assert np.abs(pose[:, 22:]).max() == 0.0
    again = build_pool(mocap, "train", 1500, 0, body, progress=False)
    assert np.array_equal(pose, again[0])
    assert np.array_equal(kind, again[1])


def test_plain_pool_of_a_split_is_that_split(mocap: Mocap, body: Body):
    pose, kind = build_pool(mocap, "test", 200, 0, body, {"captured": 1.0}, progress=False)
    frames = mocap.select("test").pose
    known = {row.tobytes() for row in np.round(frames, 4)} | {row.tobytes() for row in np.round(mirror(frames), 4)}
    assert all(row.tobytes() in known for row in np.round(pose, 4))
    assert (kind == 0).all()


def test_pool_is_kept(tmp_path: Path, mocap: Mocap, body: Body):
    path = tmp_path / "pool.npz"
    first = load_pool(path, mocap, "train", 60, 0, body, {"captured": 1.0}, progress=False)
    written = path.stat().st_mtime_ns
    second = load_pool(path, mocap, "train", 60, 0, body, {"captured": 1.0}, progress=False)
    assert np.array_equal(first[0], second[0])
    assert path.stat().st_mtime_ns == written
    assert np.array_equal(load_pool(path)[0], first[0])
    third = load_pool(path, mocap, "train", 60, 1, body, {"captured": 1.0}, progress=False)
    assert not np.array_equal(first[0], third[0])
    with pytest.raises(MocapError, match="no pool"):
        load_pool(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"x")
    with pytest.raises(MocapError, match="delete it"):
        load_pool(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="flying"):
        build_pool(mocap, "train", 10, 0, body, {"flying": 1.0}, progress=False)
    with pytest.raises(MocapError, match="no frames"):
        build_pool(mocap, "validation", 10, 0, body, progress=False)


def test_sampler_draws_fast_and_by_weight(pool: tuple[np.ndarray, np.ndarray]):
    import time

    sampler = PoseSampler(*pool, np.random.default_rng(0), {name: 0.0 for name in KINDS if name != "sitting"})
    pose, kind = sampler.sample(512)
    assert pose.shape == (512, 24, 3)
    assert pose.dtype == np.float32
    assert (kind == KINDS.index("sitting")).all()
    plain = PoseSampler(*pool, np.random.default_rng(0))
    before = pool[0].copy()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        plain.sample(512)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
    assert np.array_equal(pool[0], before)
    with pytest.raises(ValueError, match="pool"):
        PoseSampler(pool[0][:, :22], pool[1], np.random.default_rng(0))


def test_ranges_are_mirrored():
    pose = np.random.default_rng(7).normal(size=(200, 24, 3)) * 2
    pose[:, 0] = 0
    assert np.allclose(mirror(clip_to_range(pose))[:, :22], clip_to_range(mirror(pose))[:, :22])


def test_contact_sheet_shows_left_in_blue(tmp_path: Path, body: Body, pool: tuple[np.ndarray, np.ndarray]):
    pose = np.zeros((2, 24, 3))
    sheet = contact_sheet(pose, tmp_path / "a.png", ["one", "two"], body=body, size=120)
    assert sheet.shape == (120, 2 * 180, 3)
    assert cv2.imread(str(tmp_path / "a.png")).shape == sheet.shape
    front = sheet[:, :90].astype(int)
    blue = np.argwhere(front[..., 2] - front[..., 0] > 60)[:, 1].mean()
    orange = np.argwhere(front[..., 0] - front[..., 2] > 60)[:, 1].mean()
    assert blue > 45 > orange  # facing the camera, the left side is on the right
    matrices = axis_angle_to_matrix(pose)
    upside = np.diag([1.0, -1.0, -1.0]) @ matrices[:, 0]  # the same body in the axes of a camera
    optical = matrices.copy()
    optical[:, 0] = upside
    assert (
        np.abs(
            contact_sheet(optical, tmp_path / "b.png", None, up="-y", body=body, size=120)[20:].astype(int) - sheet[20:]
        ).mean()
        < 1
    )
    joints = body.joints(matrices, np.zeros(10))
    assert contact_sheet(joints, tmp_path / "c.png", kind="joints", columns=1, size=80).shape == (160, 120, 3)
    with pytest.raises(ValueError, match="do not fit"):
        contact_sheet(joints[:, :22], tmp_path / "d.png")
    np.savez(tmp_path / "pool.npz", pose=pool[0].astype(np.float16), kind=pool[1], key="")
    assert (
        main(
            [
                "--pool",
                str(tmp_path / "pool.npz"),
                "--kind",
                "sitting",
                "--count",
                "3",
                "--output",
                str(tmp_path / "e.png"),
            ]
        )
        == 0
    )
    assert (tmp_path / "e.png").is_file()
