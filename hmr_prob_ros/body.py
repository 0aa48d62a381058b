r"""The body: kinematics, skinning and surface keypoints in numpy.

A body has SMPL's form (Loper et al. 2015): a mean mesh, ten shape directions, a joint regressor and skinning weights.
For joint :math:`k` with global rotation :math:`R_k`, position :math:`p_k` and place at rest :math:`J_k(\beta)`, a
vertex :math:`v` goes to

.. math:: \sum_k W_{vk} \left( R_k (v(\beta) - J_k(\beta)) + p_k \right),
   \qquad v(\beta) = \bar v + S \beta \; (+ P f(R) \text{ where the file has pose correctives}).

Keypoints :math:`\sum_v P_{iv} v'` need no mesh: the sums over the few vertices that a keypoint touches are made once
for every (keypoint, joint) pair,

.. math:: \sum_k R_k \left( B_{ik} + D_{ik} \beta + E_{ik} f(R) - a_{ik} J_k(\beta) \right) + a_{ik} p_k,

which is exact, pose correctives included.

Conventions: metres, y up, facing +z, left side at +x, T-pose at rest. Rotations are local, (..., 24, 3, 3); the root's
maps body axes to the outer frame. ``joints = FK(rotations, betas) + translation``, the root turning about the rest
pelvis, so that pelvis = J_0(betas) + translation. The default body has its pelvis at the origin for every shape; its
mean adult (zero betas) is 1.70 m tall and its soles are at y = -0.908.
"""

from __future__ import annotations

__all__ = ["PARTS", "Body", "BodyError"]

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hmr_prob_ros._unpickle import dense, load_pickle
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS, PARENTS

PARTS: tuple[str, ...] = ("skin", "shirt", "trousers", "shoes", "hair", "eye", "iris", "lips", "brows")
"""Names of the labels in `Body.part`."""

_DEFAULT = Path(__file__).resolve().parent / "assets" / "body.npz"

# Vertices of the SMPL topology that lie on the face and the feet (as smplx publishes them).
_SMPL_VERTICES = {
    "nose": 332,
    "left_eye": 2800,
    "right_eye": 6260,
    "left_ear": 583,
    "right_ear": 4071,
    "left_big_toe": 3216,
    "left_small_toe": 3226,
    "left_heel": 3387,
    "right_big_toe": 6617,
    "right_small_toe": 6624,
    "right_heel": 6787,
}
_SMPL_SIZE = 6890


class BodyError(ValueError):
    """A body file is missing, is not a body, or does not fit; the text says how to mend it."""


def _levels() -> tuple[np.ndarray, ...]:
    """Joints of equal depth below the pelvis, nearest first."""
    depth = [0] * NUM_JOINTS
    for j, p in enumerate(PARENTS):
        depth[j] = 0 if p < 0 else depth[p] + 1
    return tuple(np.flatnonzero(np.array(depth) == d) for d in range(1, max(depth) + 1))


_LEVELS = _levels()


def _apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.matmul(matrices, vectors[..., None])[..., 0]


class Body:
    """A body in SMPL's form; `Body.load` reads one.

    V vertices, F triangles; all arrays float32 unless said otherwise.

    :ivar name: what the file calls itself.
    :ivar parents: parent of each of the 24 joints, -1 for the pelvis.
    :ivar faces: (F, 3) int32.
    :ivar v_template: (V, 3) mean mesh in T-pose.
    :ivar shapedirs: (V, 3, 10).
    :ivar weights: (V, 24), rows sum to one.
    :ivar joint_regressor: (24, V).
    :ivar posedirs: (V, 3, 207) or None.
    :ivar keypoint_regressor: (23, V).
    :ivar part: (V,) uint8 label of every vertex, see `PARTS`; zeros where the file has none.
    :ivar hash: sha256 (hex) of the arrays that decide where joints and keypoints are.

    >>> body = Body.load()
    >>> rotations = np.broadcast_to(np.eye(3, dtype=np.float32), (2, 24, 3, 3))
    >>> body.joints(rotations, np.zeros((2, 10))).shape
    (2, 24, 3)
    """

    num_betas = 10

    def __init__(
        self,
        v_template: np.ndarray,
        shapedirs: np.ndarray,
        joint_regressor: np.ndarray,
        weights: np.ndarray,
        faces: np.ndarray,
        keypoint_regressor: np.ndarray,
        posedirs: np.ndarray | None = None,
        part: np.ndarray | None = None,
        name: str = "body",
    ) -> None:
        def real(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array, dtype=np.float32)

        self.name = name
        self.parents = PARENTS
        self.v_template = real(v_template)
        self.shapedirs = real(shapedirs)
        self.joint_regressor = real(joint_regressor)
        self.weights = real(weights)
        self.faces = np.ascontiguousarray(faces, dtype=np.int32)
        self.keypoint_regressor = real(keypoint_regressor)
        self.posedirs = None if posedirs is None else real(posedirs)
        self.part = np.zeros(len(self.v_template), np.uint8) if part is None else np.asarray(part, np.uint8)
        self._check()
        self.hash = self._digest()
        self._precompute()

    @classmethod
    def load(cls, path: str | Path | None = None) -> Body:
        """Reads a body.

        :param path: an npz with SMPL's keys, or a licensed ``.pkl`` of SMPL (read without running its code); None is
            the body of this package. A file of the SMPL topology (6,890 vertices) needs no ``keypoint_regressor``: its
            face and feet keypoints are then single vertices and its limb keypoints SMPL's own joints, which lie up
            to 3 cm from where a 2D detector sees a hip.
        :raises BodyError: no such file, or not a body with 24 joints.
        """
        file = _DEFAULT if path is None else Path(path)
        return cls.from_arrays(_read(file), file)

    @classmethod
    def from_arrays(cls, data: Mapping[str, Any], source: str | Path = "arrays") -> Body:
        """A body from arrays under SMPL's names (``v_template``, ``shapedirs``, ``J_regressor``, ``weights``, ``f``,
        ``kintree_table``; optional ``posedirs``, ``keypoint_regressor``, ``part``, ``name``).

        :raises BodyError: arrays are missing or do not fit.
        """
        needed = ("v_template", "shapedirs", "J_regressor", "weights", "f", "kintree_table")
        missing = [key for key in needed if key not in data]
        if missing:
            lacks = ", ".join(missing)
            raise BodyError(f"{source} is not a body: it lacks {lacks}; give SMPL_NEUTRAL.pkl or an npz of it")
        try:
            arrays = {k: dense(data[k]) for k in (*needed, "posedirs", "keypoint_regressor", "part") if k in data}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BodyError(f"{source} is not a body: {error}") from error
        tree = arrays["kintree_table"]
        if tree.ndim != 2 or tree.shape != (2, NUM_JOINTS):
            raise BodyError(f"{source}: kintree_table is {tree.shape}, not (2, 24): a body has SMPL's 24 joints")
        if tuple(int(p) for p in tree[0, 1:]) != PARENTS[1:]:
            raise BodyError(f"{source}: kintree_table is not SMPL's tree: order the joints as SMPL does")
        shapes, joints = arrays["shapedirs"], arrays["J_regressor"]
        if shapes.ndim != 3 or shapes.shape[2] < cls.num_betas:
            raise BodyError(f"{source}: shapedirs is {shapes.shape}, not (V, 3, 10 or more)")
        keypoints = arrays.get("keypoint_regressor")
        if keypoints is None:
            if len(arrays["v_template"]) != _SMPL_SIZE or joints.shape != (NUM_JOINTS, _SMPL_SIZE):
                raise BodyError(
                    f"{source} has no keypoint_regressor (23, V), and its {len(arrays['v_template'])} vertices are not "
                    f"SMPL's {_SMPL_SIZE}, for which one is known: add a keypoint_regressor to the file"
                )
            keypoints = _smpl_keypoints(joints)
        return cls(
            v_template=arrays["v_template"],
            shapedirs=shapes[:, :, : cls.num_betas],
            joint_regressor=joints,
            weights=arrays["weights"],
            faces=arrays["f"],
            keypoint_regressor=keypoints,
            posedirs=arrays.get("posedirs"),
            part=arrays.get("part"),
            name=str(data["name"]) if "name" in data else Path(source).stem,
        )

    def __repr__(self) -> str:
        return f"Body({self.name!r}, vertices={len(self.v_template)}, faces={len(self.faces)}, hash={self.hash[:12]})"

    def _check(self) -> None:
        count = len(self.v_template)
        expected = {
            "v_template": (count, 3),
            "shapedirs": (count, 3, self.num_betas),
            "joint_regressor": (NUM_JOINTS, count),
            "weights": (count, NUM_JOINTS),
            "keypoint_regressor": (NUM_KEYPOINTS, count),
            "faces": (len(self.faces), 3),
            "part": (count,),
        }
        if self.posedirs is not None:
            expected["posedirs"] = (count, 3, 9 * (NUM_JOINTS - 1))
        for key, shape in expected.items():
            array = getattr(self, key)
            if array.shape != shape:
                raise BodyError(f"{self.name}: {key} is {array.shape}, not {shape}: the arrays are of different bodies")
            if not np.isfinite(array).all():
                raise BodyError(f"{self.name}: {key} has values that are not finite: the file is damaged")
        if self.faces.size and (self.faces.min() < 0 or self.faces.max() >= count):
            raise BodyError(f"{self.name}: faces name vertices that do not exist (0 to {count - 1} do)")
        if count == 0 or np.abs(self.weights.sum(1) - 1).max() > 1e-3:
            raise BodyError(f"{self.name}: the weights of a vertex must sum to one")

    def _digest(self) -> str:
        digest = hashlib.sha256()
        arrays = [self.v_template, self.shapedirs, self.joint_regressor, self.weights, self.keypoint_regressor]
        if self.posedirs is not None:
            arrays.append(self.posedirs)
        for array in arrays:
            digest.update(str(array.shape).encode())
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    def _precompute(self) -> None:
        """Joints as linear functions of the betas, and the (keypoint, joint) pairs of the module's formula.

        Sums run in float64, so that numpy and torch start from the same float32 numbers.
        """
        regressor = self.joint_regressor.astype(np.float64)
        self.joint_template = (regressor @ self.v_template).astype(np.float32)  # (24, 3)
        self.joint_dirs = np.einsum("jv,vcb->jcb", regressor, self.shapedirs, optimize=True).astype(np.float32)
        rows, joints, mass, base, dirs, correctives = [], [], [], [], [], []
        for i, row in enumerate(self.keypoint_regressor.astype(np.float64)):
            touched = np.flatnonzero(row)
            share = row[touched, None] * self.weights[touched]  # (t, 24)
            for k in np.flatnonzero(np.abs(share).sum(0) > 0):
                s = share[:, k]
                rows.append(i)
                joints.append(k)
                mass.append(s.sum())
                base.append(s @ self.v_template[touched])
                dirs.append(np.tensordot(s, self.shapedirs[touched], 1))
                if self.posedirs is not None:
                    correctives.append(np.tensordot(s, self.posedirs[touched], 1))
        self.pair_joint = np.array(joints, dtype=np.int64)  # (P,)
        self.pair_mass = np.array(mass, dtype=np.float32)  # (P,) a_ik
        self.pair_base = np.array(base, dtype=np.float32)  # (P, 3) B_ik
        self.pair_dirs = np.array(dirs, dtype=np.float32)  # (P, 3, 10) D_ik
        self.pair_posedirs = np.array(correctives, dtype=np.float32) if correctives else None  # (P, 3, 207) E_ik
        self.pair_sum = (np.array(rows) == np.arange(NUM_KEYPOINTS)[:, None]).astype(np.float32)  # (23, P)

    def rest_joints(self, betas: np.ndarray) -> np.ndarray:
        """Joints at rest (..., 24, 3) for betas (..., 10)."""
        return self.joint_template + self._along(self.joint_dirs, np.asarray(betas))

    def global_rotations(self, rotations: np.ndarray) -> np.ndarray:
        """Rotations (..., 24, 3, 3) from each joint's axes to the outer frame, from local ones of the same shape."""
        local = np.asarray(rotations)
        out = np.empty(local.shape, dtype=local.dtype)
        out[..., 0, :, :] = local[..., 0, :, :]
        for level in _LEVELS:
            parents = [PARENTS[j] for j in level]
            out[..., level, :, :] = np.matmul(out[..., parents, :, :], local[..., level, :, :])
        return out

    def joints(self, rotations: np.ndarray, betas: np.ndarray, translation: np.ndarray | float = 0.0) -> np.ndarray:
        """Joints (..., 24, 3) of a posed body.

        :param rotations: (..., 24, 3, 3) local; betas: (..., 10); translation: (..., 3) in the outer frame.
        """
        return self._place(self.global_rotations(rotations), self.rest_joints(betas), translation)

    def keypoints(self, rotations: np.ndarray, betas: np.ndarray, translation: np.ndarray | float = 0.0) -> np.ndarray:
        """Surface keypoints (..., 23, 3) of a posed body, without its mesh. Parameters as in `joints`."""
        betas = np.asarray(betas)
        rest, world = self.rest_joints(betas), self.global_rotations(rotations)
        places = self._place(world, rest, translation)
        mass = self.pair_mass[:, None]
        local = self.pair_base + self._along(self.pair_dirs, betas) - mass * rest[..., self.pair_joint, :]
        if self.pair_posedirs is not None:
            local = local + self._along(self.pair_posedirs, _pose_feature(rotations))
        turned = _apply(world[..., self.pair_joint, :, :], local)
        return self.pair_sum @ (turned + mass * places[..., self.pair_joint, :])

    def vertices(self, rotations: np.ndarray, betas: np.ndarray, translation: np.ndarray | float = 0.0) -> np.ndarray:
        """Mesh (..., V, 3) of a posed body. Parameters as in `joints`."""
        betas = np.asarray(betas)
        rest, world = self.rest_joints(betas), self.global_rotations(rotations)
        offset = self._place(world, rest, translation) - _apply(world, rest)
        mesh = self.v_template + self._along(self.shapedirs, betas)
        if self.posedirs is not None:
            mesh = mesh + self._along(self.posedirs, _pose_feature(rotations))
        linear = self.weights @ world.reshape(*world.shape[:-2], 9)
        return _apply(linear.reshape(*linear.shape[:-1], 3, 3), mesh) + self.weights @ offset

    @staticmethod
    def _along(directions: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Directions (X, 3, C) times coefficients (..., C) -> (..., X, 3)."""
        flat = coefficients @ directions.reshape(-1, directions.shape[-1]).T
        return flat.reshape(*coefficients.shape[:-1], *directions.shape[:-1])

    @staticmethod
    def _place(world: np.ndarray, rest: np.ndarray, translation: np.ndarray | float) -> np.ndarray:
        """Joint positions from global rotations (..., 24, 3, 3) and rest joints (..., 24, 3)."""
        shape = np.broadcast_shapes(world.shape[:-3], rest.shape[:-2])
        out = np.empty((*shape, NUM_JOINTS, 3), dtype=np.result_type(world, rest))
        out[..., 0, :] = rest[..., 0, :]
        for level in _LEVELS:
            parents = [PARENTS[j] for j in level]
            bones = rest[..., level, :] - rest[..., parents, :]
            out[..., level, :] = out[..., parents, :] + _apply(world[..., parents, :, :], bones)
        shift = np.asarray(translation)
        return out if shift.ndim == 0 and shift == 0 else out + (shift if shift.ndim == 0 else shift[..., None, :])


def _pose_feature(rotations: np.ndarray) -> np.ndarray:
    """SMPL's pose feature (..., 207): the entries of R - I of all joints but the root."""
    rotations = np.asarray(rotations)[..., 1:, :, :]
    return (rotations - np.eye(3, dtype=rotations.dtype)).reshape(*rotations.shape[:-3], 9 * (NUM_JOINTS - 1))


def _smpl_keypoints(joint_regressor: np.ndarray) -> np.ndarray:
    """Keypoint regressor (23, 6890) for the SMPL topology: single vertices on face and feet, joints elsewhere."""
    out = np.zeros((NUM_KEYPOINTS, _SMPL_SIZE))
    for i, name in enumerate(KEYPOINT_NAMES):
        if name in _SMPL_VERTICES:
            out[i, _SMPL_VERTICES[name]] = 1.0
        else:
            out[i] = joint_regressor[JOINT_NAMES.index(name)]
    return out


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise BodyError(f"no body at {file}: give SMPL_NEUTRAL.pkl or an npz, or nothing for the default body")
    try:
        if file.suffix.lower() == ".pkl":
            data = load_pickle(file)
        else:
            with np.load(file, allow_pickle=False) as archive:
                data = {key: archive[key] for key in archive.files}
    except pickle.UnpicklingError as error:
        raise BodyError(f"{file} is refused: {error}; give the official pickle or an npz of its arrays") from error
    except (ValueError, TypeError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise BodyError(f"{file} is not a body: {error}; an npz with plain arrays is needed") from error
    if not isinstance(data, Mapping):
        raise BodyError(f"{file} is not a body: it holds a {type(data).__name__}, not named arrays")
    return data
