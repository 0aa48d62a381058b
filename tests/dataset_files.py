"""Data sets' files as tests make them: the form of the real ones, filled from a body's kinematics and known cameras.

Orders of points are written here as the indices that the field's public code uses, not by the readers' tables.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import KEYPOINT_NAMES

K = np.array([[900.0, 0, 640], [0, 910.0, 360], [0, 0, 1]])
COUNT = 7
# Indices that the field's code writes down, apart from the names that the readers match by.
FACE = [0, 2, 1, 4, 3]  # nose, right eye, left eye, right ear, left ear among our keypoints
SMPL45_OF_OPENPOSE = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]
SMPL_OF_SPIN = {0: 8, 1: 5, 4: 4, 5: 7, 6: 21, 7: 19, 8: 17, 9: 16, 10: 18, 11: 20}  # limb joints
COCO_OF_SPIN = {2: 12, 3: 11, 19: 0, 20: 1, 21: 2, 22: 3, 23: 4}  # hips and face
LIMBS = [k for k in range(5, 17) if "hip" not in KEYPOINT_NAMES[k]]
SURFACE = [*range(5), *range(17, 23)]


def project(points: np.ndarray, k: np.ndarray = K) -> np.ndarray:
    return (points @ k.T)[..., :2] / points[..., 2:]


def matrices(vectors: np.ndarray) -> np.ndarray:
    flat = [cv2.Rodrigues(v)[0] for v in vectors.reshape(-1, 3)]
    return np.array(flat).reshape(*vectors.shape, 3)


def vector(matrix: np.ndarray) -> np.ndarray:
    return cv2.Rodrigues(matrix)[0][:, 0]


@dataclass
class People:
    """Bodies in a world (y up), cameras that move round them, and what they see."""

    pose: np.ndarray  # (K, 24, 3) axis-angle, root to world
    betas: np.ndarray  # (10,)
    trans: np.ndarray  # (K, 3) in the world
    extrinsics: np.ndarray  # (K, 4, 4)
    root: np.ndarray  # (K, 3) axis-angle to the camera's frame
    joints: np.ndarray  # (K, 24, 3) in the camera's frame
    keypoints: np.ndarray  # (K, 23, 3)
    world: np.ndarray  # (K, 24, 3) joints in the world

    @property
    def points45(self) -> np.ndarray:
        """(K, 45, 3) in the order of the smplx package: joints, face, feet, fingers."""
        fingers = np.zeros((len(self.pose), 10, 3)) + (0, 0, 1)
        return np.concatenate((self.joints, self.keypoints[:, FACE], self.keypoints[:, 17:], fingers), axis=1)

    @property
    def pose_cam(self) -> np.ndarray:
        return np.concatenate((self.root, self.pose[:, 1:].reshape(len(self.pose), 69)), axis=1)


def people(body: Body, seed: int = 0, hands: bool = True) -> People:
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.25, (COUNT, 24, 3))
    pose[:, 0] = rng.normal(0, (0.2, 1.5, 0.2), (COUNT, 3))
    if not hands:
        pose[:, 22:] = 0
    betas, trans = rng.normal(0, 1, 10), rng.normal(0, 0.3, (COUNT, 3))
    bearing, pitch = np.linspace(-1.2, 1.5, COUNT), rng.normal(0, 0.1, COUNT)
    turn = matrices(np.stack((pitch, 0 * pitch, 0 * pitch), 1)) @ np.diag((1.0, -1, -1))
    turn = turn @ matrices(np.stack((0 * pitch, bearing, 0 * pitch), 1))
    extrinsics = np.tile(np.eye(4), (COUNT, 1, 1))
    extrinsics[:, :3, :3] = turn
    extrinsics[:, :3, 3] = rng.normal(0, 0.3, (COUNT, 3)) + (0, 0, 4.5)
    world = body.joints(matrices(pose), betas[None], trans)

    def seen(points: np.ndarray) -> np.ndarray:
        return np.einsum("kij,kpj->kpi", turn, points) + extrinsics[:, None, :3, 3]

    root = np.array([vector(r) for r in turn @ matrices(pose[:, 0])])
    keypoints = seen(body.keypoints(matrices(pose), betas[None], trans))
    return People(pose, betas, trans, extrinsics, root, seen(world), keypoints, world)


def camera_translation(truth: People, body: Body) -> np.ndarray:
    """SMPL's translation before the camera: what puts the turned body's pelvis where it is."""
    return truth.joints[:, 0] - body.rest_joints(truth.betas)[0]


def boxes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    return (low + high) / 2, 1.2 * (high - low).max(axis=1) / 200


def label(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate((pixels, np.ones((*pixels.shape[:-1], 1))), axis=-1)


def bedlam(truth: People, body: Body, smplx: bool = True, **changes: object) -> dict:
    joints = truth.points45
    if smplx:  # 22 joints, 33 of jaw, eyes and fingers, face and feet, finger tips, landmarks
        other = np.zeros((COUNT, 33, 3)) + (0, 0, 1)
        joints = np.concatenate((joints[:, :22], other, joints[:, 24:], np.zeros((COUNT, 51, 3)) + (0, 0, 1)), axis=1)
    pixels = project(joints)
    whole, part = camera_translation(truth, body), np.random.default_rng(1).normal(size=(COUNT, 3))
    outside = np.tile(np.eye(4), (COUNT, 1, 1))
    outside[:, :3, :3] = matrices(np.full((COUNT, 3), 0.3))  # within pose_cam already, not to be used
    outside[:, :3, 3] = whole - part
    pose = truth.pose_cam
    if smplx:
        pose = np.concatenate((pose[:, :66], np.random.default_rng(2).normal(size=(COUNT, 99))), axis=1)
    centre, scale = boxes(pixels[:, :22])
    fields = {
        "imgname": [f"seq_00000{k // 4}/seq_00000{k // 4}_{k:04d}.png" for k in range(COUNT)],
        "center": centre,
        "scale": scale,
        "pose_cam": pose,
        "shape": np.tile(np.append(truth.betas, 0.7), (COUNT, 1)),
        "trans_cam": part,
        "cam_ext": outside,
        "cam_int": np.tile(K, (COUNT, 1, 1)),
        "gtkps": label(pixels),
        "gender": ["neutral"] * COUNT,
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def spin(truth: People, body: Body, **changes: object) -> dict:
    limbs, surface = project(truth.joints), project(truth.keypoints)
    part, places = np.zeros((COUNT, 24, 3)), np.zeros((COUNT, 24, 4))
    for source, joint in SMPL_OF_SPIN.items():
        part[:, source] = label(limbs[:, joint])
        places[:, source] = label(truth.joints[:, joint] - truth.joints[:, 0])
    for source, keypoint in COCO_OF_SPIN.items():
        part[:, source] = label(surface[:, keypoint])
    places[:, 14, 3] = 1  # the pelvis, at zero
    openpose = label(project(truth.points45[:, SMPL45_OF_OPENPOSE]))
    openpose[..., 2] = 0.8
    centre, scale = boxes(surface)
    fields = {
        "imgname": [f"images/S1_Directions_1.5413896{k % 2}_{5 * k + 1:06d}.jpg" for k in range(COUNT)],
        "center": centre,
        "scale": scale,
        "part": part,
        "openpose": openpose,
        "pose": truth.pose_cam,
        "shape": np.tile(truth.betas, (COUNT, 1)),
        "has_smpl": np.ones(COUNT),
        "S": places,
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def pw3d(truths: list[People], body: Body, **changes: object) -> dict:
    order = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]  # OpenPose's 18 among our keypoints
    found = []
    for truth in truths:
        points = label(project(truth.keypoints))[:, order]
        points[:, 1, :2] = project(truth.joints[:, 12])
        points[..., 2] = 0.9
        points[0, 4, 2] = 0.1  # hardly found: in the box, no label
        points[1, 5] = 0  # not found
        found.append(points.transpose(0, 2, 1))
    valid = [np.array([1, 1, 1, 1, 1, 0, 1]) for _ in truths]
    fields = {
        "sequence": "downtown_walk_00",
        "poses": [t.pose.reshape(COUNT, 72) for t in truths],
        "betas": [np.append(t.betas, np.zeros(5)) for t in truths],
        "trans": [t.trans for t in truths],
        "jointPositions": [t.world.reshape(COUNT, 72) for t in truths],
        "poses2d": found,
        "campose_valid": valid,
        "cam_poses": truths[0].extrinsics,
        "cam_intrinsics": K,
        "genders": ["m", "f"],
        "img_frame_ids": np.arange(COUNT),
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def emdb(truth: People, body: Body, **changes: object) -> dict:
    pixels = project(truth.joints)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    fields = {
        "gender": "female",
        "name": "P3_31_outdoor_workout",
        "emdb1": True,
        "n_frames": COUNT,
        "good_frames_mask": np.arange(COUNT) != 2,
        "camera": {"intrinsics": K, "extrinsics": truth.extrinsics, "width": 1280, "height": 720},
        "smpl": {
            "poses_root": truth.pose[:, 0],
            "poses_body": truth.pose[:, 1:].reshape(COUNT, 69),
            "trans": truth.trans,
            "betas": truth.betas,
        },
        "kp2d": pixels,
        "bboxes": {"bboxes": np.concatenate((low, high), axis=1), "invalid_idxs": np.array([4])},
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def save(path: Path, fields: dict, protocol: int = 4) -> Path:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(fields, protocol=protocol))
    else:
        np.savez(path, **fields)
    return path
