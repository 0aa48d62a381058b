"""anny's adults seen as SMPL bodies: which bone is which joint, where the joints are, and how anny's pose differs.

Helper of `hmr_prob_ros.training.make_body`; needs ``anny``.
"""

from __future__ import annotations

__all__ = [
    "BONE_OF_JOINT",
    "AnnySource",
    "apply",
    "hip_half_distance",
    "joint_centres",
    "joint_of_bone",
    "rest_rotations",
    "rotations",
    "transpose",
]

import numpy as np

from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES, KEYPOINT_NAMES

# The bone of anny at whose head a joint sits ({} is L or R).
BONE_OF_JOINT: dict[str, str] = {
    "pelvis": "root",
    "spine1": "spine04",
    "spine2": "spine02",
    "spine3": "spine01",
    "neck": "neck01",
    "head": "head",
    "hip": "upperleg01.{}",
    "knee": "lowerleg01.{}",
    "ankle": "foot.{}",
    "foot": "toe2-1.{}",  # replaced by the mean of the five toes, the middle of the ball of the foot
    "collar": "clavicle.{}",
    "shoulder": "upperarm01.{}",
    "elbow": "lowerarm01.{}",
    "wrist": "wrist.{}",
    "hand": "finger3-1.{}",
}

# First match decides which joint moves a bone. Thumb and metacarpals belong to the palm, that is to the wrist.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("upperleg", "hip"),
    ("lowerleg", "knee"),
    ("foot", "ankle"),
    ("toe", "foot"),
    ("spine05", "pelvis"),
    ("spine04", "spine1"),
    ("spine03", "spine1"),
    ("spine02", "spine2"),
    ("spine01", "spine3"),
    ("breast", "spine3"),
    ("clavicle", "collar"),
    ("shoulder", "collar"),
    ("upperarm", "shoulder"),
    ("lowerarm", "elbow"),
    ("wrist", "wrist"),
    ("metacarpal", "wrist"),
    ("finger1", "wrist"),
    ("finger", "hand"),
    ("neck", "neck"),
    ("head", "head"),
    ("eye", "head"),
    ("root", "pelvis"),
    ("pelvis", "pelvis"),
)

# The legs of the T-pose point this far outwards, so that the feet stand a little wider than the hips.
_LEG_SPREAD = np.deg2rad(1.5)


def joint_of_bone(bone: str) -> int:
    """Index of the SMPL joint that moves a bone of anny."""
    name, _, side = bone.partition(".")
    for prefix, joint in _PREFIXES:
        if name.startswith(prefix):
            sided = f"{'left' if side == 'L' else 'right'}_{joint}"
            return JOINT_NAMES.index(sided if sided in JOINT_NAMES else joint)
    raise ValueError(f"bone {bone!r} of anny belongs to no joint: extend _PREFIXES for this version of anny")


def hip_half_distance(hip_above_ankle: np.ndarray) -> np.ndarray:
    """Distance of a hip centre from the midline after Hara et al. 2016, all in metres.

    :param hip_above_ankle: height of the hip centre above the ankle, any shape.
    """
    leg = (hip_above_ankle + 0.009) / (1.0 - 0.078)
    return 0.008 + 0.086 * leg


def _to_body_frame(points: np.ndarray) -> np.ndarray:
    """anny has z up and faces -y; the body frame has y up and faces +z. Left is +x in both."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smallest rotation (..., 3, 3) that takes the direction a to the direction b."""
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    cross, dot = np.cross(a, b), np.sum(a * b, -1)[..., None, None]
    skew = _skew(cross)
    return np.eye(3) + skew + skew @ skew / (1.0 + dot)


def _skew(v: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(v[..., 0])
    rows = [zero, -v[..., 2], v[..., 1], v[..., 2], zero, -v[..., 0], -v[..., 1], v[..., 0], zero]
    return np.stack(rows, -1).reshape(*v.shape[:-1], 3, 3)


def rotations(axis_angle: np.ndarray) -> np.ndarray:
    """Rodrigues' formula, (..., 3) -> (..., 3, 3)."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    k = _skew(axis_angle / np.maximum(angle[..., 0], 1e-12))
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def transpose(m: np.ndarray) -> np.ndarray:
    return np.swapaxes(m, -1, -2)


def apply(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...j->...i", m, v)


class AnnySource:
    """anny's full body in the body frame, with shapes as (B, 6) phenotype rows."""

    def __init__(self) -> None:
        import anny
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.model = anny.Anny(skinning_method="lbs")
        self.keypoints = anny.KeypointsRegressor.coco(self.model, list(KEYPOINT_NAMES)).regression_weights.numpy()
        self.bones = list(self.model.bone_labels)
        joints = np.array([joint_of_bone(bone) for bone in self.bones])
        dense = self.model.dense_vertex_bone_weights.numpy()
        self.weights = np.stack([dense[:, joints == j].sum(1) for j in range(len(JOINT_NAMES))], 1)
        self.faces = self.model.get_triangular_faces().numpy()

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Phenotypes (count, 6) of adults; anny draws men below 0.5 of its gender axis and women above."""
        from anny.shape_distribution import SimpleShapeDistribution

        torch, dtype = self.torch, self.model.dtype
        torch.manual_seed(seed)
        years = torch.distributions.Uniform(torch.tensor(18.0, dtype=dtype), torch.tensor(80.0, dtype=dtype))
        rows = SimpleShapeDistribution(self.model, years).sample(count)[1]
        return torch.stack([rows[k] for k in self.model.phenotype_labels], 1).numpy()

    def shape(self, phenotypes: np.ndarray, vertices: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rest vertices (B, V, 3) of the listed vertices, and the head (B, 3) of every bone by name."""
        from anny.models.phenotype import phenotype_blendshape_weights

        m = self.model
        coeffs = phenotype_blendshape_weights(
            self.torch.as_tensor(phenotypes, dtype=m.dtype),
            m.phenotype_labels,
            m.anchors,
            m.stacked_phenotype_blend_shapes_mask,
            extrapolate=False,
        )
        coeffs = (coeffs @ m.phenotype_blendshape_projection).numpy()
        shapes = m.blendshapes.numpy()[:, vertices]
        rest = m.template_vertices.numpy()[vertices] + np.tensordot(coeffs, shapes, 1)
        heads = m.template_bone_heads.numpy() + np.tensordot(coeffs, m.bone_heads_blendshapes.numpy(), 1)
        heads = _to_body_frame(heads)
        return _to_body_frame(rest), {bone: heads[:, i] for i, bone in enumerate(self.bones)}


def joint_centres(heads: dict[str, np.ndarray]) -> np.ndarray:
    """Joint centres (B, 24, 3) in anny's own pose."""
    joints = []
    for name in JOINT_NAMES:
        side, _, kind = name.partition("_")
        bone = BONE_OF_JOINT[kind or name].format("L" if side == "left" else "R")
        joints.append(heads[bone])
    out = np.stack(joints, 1)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        hip, ankle = JOINT_NAMES.index(f"{side}_hip"), JOINT_NAMES.index(f"{side}_ankle")
        out[:, hip, 0] = sign * hip_half_distance(out[:, hip, 1] - out[:, ankle, 1])
        letter = "L" if side == "left" else "R"
        toes = [heads[f"toe{i}-1.{letter}"] for i in range(1, 6)]
        out[:, JOINT_NAMES.index(f"{side}_foot")] = np.mean(toes, 0)
    middle = [j for j in range(len(JOINT_NAMES)) if JOINT_FLIP[j] == j]
    out[:, middle, 0] = 0.0
    return out


def rest_rotations(joints: np.ndarray, heads: dict[str, np.ndarray]) -> np.ndarray:
    """Global rotations (B, 24, 3, 3) that take the T-pose to anny's rest pose."""
    out = np.broadcast_to(np.eye(3), (*joints.shape[:2], 3, 3)).copy()
    for side, sign in (("left", 1.0), ("right", -1.0)):
        index = {k: JOINT_NAMES.index(f"{side}_{k}") for k in BONE_OF_JOINT if f"{side}_{k}" in JOINT_NAMES}
        at = {k: joints[:, i] for k, i in index.items()}
        letter = "L" if side == "left" else "R"
        across = np.array([sign, 0.0, 0.0])
        forward = heads[f"finger2-1.{letter}"] - heads[f"finger5-1.{letter}"]

        upper = _between(across, at["elbow"] - at["shoulder"])
        lower = upper @ _between(across, apply(transpose(upper), at["wrist"] - at["elbow"]))
        # Palm down: fingers along the arm, the knuckle of the forefinger in front of that of the little finger.
        e1 = at["hand"] - at["wrist"]
        e1 = e1 / np.linalg.norm(e1, axis=-1, keepdims=True)
        e3 = forward - np.sum(forward * e1, -1, keepdims=True) * e1
        e3 = e3 / np.linalg.norm(e3, axis=-1, keepdims=True)
        hand = np.stack([sign * e1, np.cross(e3, sign * e1), e3], -1)
        # Half of the hand's twist is the forearm's (radius and ulna share it).
        relative = transpose(lower) @ hand
        twist = np.arctan2(relative[:, 2, 1] - relative[:, 1, 2], relative[:, 1, 1] + relative[:, 2, 2])
        lower = lower @ rotations(0.5 * twist[:, None] * np.array([1.0, 0.0, 0.0]))

        down = np.array([sign * np.sin(_LEG_SPREAD), -np.cos(_LEG_SPREAD), 0.0])
        thigh = _between(down, at["knee"] - at["hip"])
        shin = thigh @ _between(down, apply(transpose(thigh), at["ankle"] - at["knee"]))
        for kind, rotation in (
            ("shoulder", upper),
            ("elbow", lower),
            ("wrist", hand),
            ("hand", hand),
            ("hip", thigh),
            ("knee", shin),
        ):
            out[:, index[kind]] = rotation
    return out
