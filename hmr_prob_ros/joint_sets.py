r"""The joints that papers measure on: 24 of SMPL, 17 of Human3.6M, 14 of LSP, each a fixed linear map of the body.

The papers take the H36M and LSP joints from SMPL's mesh through a regressor file (17, 6890), which is licensed with
SMPL: :meth:`JointSet.from_regressor` reads it and gives the papers' protocol exactly. For any other body the sets are
maps of its 24 joints and 23 surface keypoints, :math:`x_j = \sum_i W_{ji} p_i` with rows that sum to one. What is
approximated there:

* Human3.6M's **hips** are those of its motion capture, 27 cm apart: SMPL's hips, moved 1.45 times as far outwards. The
  **pelvis** is the middle of both, as in the dataset.
* **spine** (between spine1 and spine2) and **thorax** (between spine3 and the neck) lie as far up the back as in that
  motion capture's skeleton; **neck** is the neck, a tenth of the way to the nose; **head** is the middle of the ears,
  because the dataset's head is not the top of the skull.
* **shoulders** lie 15 % of the way to the collars; knees, ankles, elbows and wrists are SMPL's.

With all lengths divided by the leg's, that skeleton's are met within 15 %. Estimate and truth go through the same map,
so an error differs from the papers' by far less; but figures of another body and of SMPL do not belong in one column.
The 14 LSP joints are rows of the 17, as in the evaluation code that the field shares (Kolotouros et al., SPIN, ICCV
2019), with the H36M pelvis as their root.

>>> joint_set("lsp").names[:3]
('right_ankle', 'right_knee', 'right_hip')
"""

from __future__ import annotations

__all__ = ["H36M_NAMES", "JOINT_SETS", "LSP_NAMES", "JointSet", "JointSetError", "joint_set"]

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .body import Body
from .skeleton import JOINT_NAMES, KEYPOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS

H36M_NAMES: tuple[str, ...] = (
    "pelvis",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "spine",
    "thorax",
    "neck",
    "head",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
)
"""The 17 joints in the dataset's order. Two regressor files go round: one in this order, one with the legs swapped."""

LSP_NAMES: tuple[str, ...] = (
    "right_ankle",
    "right_knee",
    "right_hip",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_wrist",
    "right_elbow",
    "right_shoulder",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "neck",
    "head",
)
"""The 14 joints in LSP's order; ``neck`` is H36M's thorax and ``head`` its head."""

JOINT_SETS = ("smpl", "h36m", "lsp")

_LSP_OF_H36M = tuple(H36M_NAMES.index("thorax" if name == "neck" else name) for name in LSP_NAMES)
_LEGS, _ARMS = (slice(1, 4), slice(4, 7)), (slice(14, 17), slice(11, 14))  # right, left
_WIDER = 0.225  # hips 1 + 2 * 0.225 times as far apart

_Row = tuple[tuple[int, float], ...]


def _point(name: str) -> int:
    """Place among the 47 points: a joint, or with a leading ``*`` a surface keypoint."""
    return NUM_JOINTS + KEYPOINT_NAMES.index(name[1:]) if name.startswith("*") else JOINT_NAMES.index(name)


def _row(parts: Mapping[str, float]) -> _Row:
    return tuple((_point(name), weight) for name, weight in parts.items())


def _h36m_rows() -> tuple[_Row, ...]:
    rows: dict[str, _Row] = {
        "pelvis": _row({"left_hip": 0.5, "right_hip": 0.5}),
        "spine": _row({"spine1": 0.22, "spine2": 0.78}),
        "thorax": _row({"spine3": 0.59, "neck": 0.41}),
        "neck": _row({"neck": 0.9, "*nose": 0.1}),
        "head": _row({"*left_ear": 0.5, "*right_ear": 0.5}),
    }
    for side, other in (("left", "right"), ("right", "left")):
        rows[f"{side}_hip"] = _row({f"{side}_hip": 1 + _WIDER, f"{other}_hip": -_WIDER})
        rows[f"{side}_shoulder"] = _row({f"{side}_shoulder": 0.85, f"{side}_collar": 0.15})
        for limb in ("knee", "ankle", "elbow", "wrist"):
            rows[f"{side}_{limb}"] = _row({f"{side}_{limb}": 1.0})
    return tuple(rows[name] for name in H36M_NAMES)


class JointSetError(ValueError):
    """An unknown joint set, or a regressor that cannot be used; the text names the mend."""


@dataclass(frozen=True, eq=False)
class JointSet:
    """J joints as sparse maps of 47 points: the body's 24 joints and its 23 surface keypoints.

    Args:
        name: ``smpl``, ``h36m`` or ``lsp``.
        names: of the J joints.
        rows: for each joint the points and their weights, which sum to one.
        root: the row of the root, which errors are taken relative to.
        body: for a set that comes through a regressor: the body with the 17 regressed joints in place of its first 17
            keypoints, which is what :meth:`__call__` must be given then. None: any body.
        regressor: (17, V), in the order of ``H36M_NAMES``, or None.

    >>> joints, keypoints = np.zeros((5, 24, 3)), np.zeros((5, 23, 3))
    >>> joint_set("h36m")(joints, keypoints).shape
    (5, 17, 3)
    """

    name: str
    names: tuple[str, ...]
    rows: tuple[_Row, ...]
    root: _Row
    body: Body | None = None
    regressor: np.ndarray | None = None
    _index: np.ndarray = field(init=False, repr=False)
    _weight: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = (*self.rows, self.root)
        width = max(len(row) for row in rows)
        # Short rows are filled with their own first point at weight 0, so that no other point's NaN gets in.
        filled = [row + ((row[0][0], 0.0),) * (width - len(row)) for row in rows]
        object.__setattr__(self, "_index", np.array([[i for i, _ in row] for row in filled]))
        object.__setattr__(self, "_weight", np.array([[w for _, w in row] for row in filled], np.float32)[..., None])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"JointSet({self.name!r}, {len(self)} joints{', regressed' if self.body is not None else ''})"

    def __call__(self, joints: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Joints (..., J, 3) of body joints (..., 24, 3) and keypoints (..., 23, 3); NaN where a point they need is."""
        return self._map(joints, keypoints, slice(None, -1))

    def origin(self, joints: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """The root (..., 3) of the same."""
        return self._map(joints, keypoints, slice(-1, None))[..., 0, :]

    def rooted(self, joints: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Joints (..., J, 3) relative to the root."""
        both = self._map(joints, keypoints, slice(None))
        return both[..., :-1, :] - both[..., -1:, :]

    def _map(self, joints: np.ndarray, keypoints: np.ndarray, rows: slice) -> np.ndarray:
        points = np.concatenate([joints, keypoints], axis=-2)
        if points.shape[-2:] != (NUM_JOINTS + NUM_KEYPOINTS, 3):
            raise JointSetError(
                f"{self.name} is a map of joints (..., 24, 3) and keypoints (..., 23, 3), "
                f"not of {np.shape(joints)} and {np.shape(keypoints)}"
            )
        return (points[..., self._index[rows], :] * self._weight[rows]).sum(axis=-2)

    def of_h36m(self, joints: np.ndarray) -> np.ndarray:
        """Joints (..., J, 3) of Human3.6M's (..., 17, 3), for methods that know no body, only those.

        Raises:
            JointSetError: the set is no part of the 17.
        """
        if self.name == "smpl" or joints.shape[-2] != len(H36M_NAMES):
            raise JointSetError(
                f"{self.name} cannot be made of {joints.shape[-2]} joints: a method that only gives Human3.6M's 17 is "
                "measured on the joint sets h36m or lsp"
            )
        return joints if self.name == "h36m" else joints[..., _LSP_OF_H36M, :]

    def of_vertices(self, vertices: np.ndarray) -> np.ndarray:
        """Joints (..., J, 3) of a mesh (..., V, 3), through the regressor.

        Raises:
            JointSetError: the set has no regressor, or it is one of another mesh.
        """
        if self.regressor is None:
            raise JointSetError(f"{self.name} has no regressor: make it with JointSet.from_regressor")
        if vertices.shape[-2] != self.regressor.shape[1]:
            raise JointSetError(
                f"the regressor is for {self.regressor.shape[1]} vertices, not {vertices.shape[-2]}: "
                "use the body that it was made for"
            )
        return self.of_h36m(self.regressor @ vertices)

    @classmethod
    def from_regressor(cls, path: str | Path, body: Body, name: str = "h36m") -> JointSet:
        """The ``h36m`` or ``lsp`` joints of a mesh through a file of the field.

        Args:
            path: ``.npy`` or ``.npz`` (dense, or as scipy saves a sparse matrix) with 17 rows, one for each joint, and
                a column for each vertex. The files that go round differ in which leg comes first; the body's own left
                side decides.
            body: the body whose vertices it is for, for example a licensed SMPL.
            name: ``h36m`` or ``lsp``.

        Raises:
            JointSetError: no such file, or not a regressor of this body.
        """
        if name not in ("h36m", "lsp"):
            raise JointSetError(f"{name!r} comes without a regressor: use one of h36m, lsp with it")
        matrix = _read_regressor(Path(path))
        if matrix.shape != (17, len(body.v_template)):
            raise JointSetError(
                f"{path} is {matrix.shape}, but the {len(body.v_template)} vertices of {body.name} need "
                f"(17, {len(body.v_template)}): give the body and the regressor of the same mesh"
            )
        sums = matrix.sum(axis=1)
        if not np.isfinite(matrix).all() or np.abs(sums - 1).max() > 0.05:
            raise JointSetError(f"{path} is no joint regressor: each row must be finite and sum to one, not {sums}")
        across = matrix @ body.v_template[:, 0]  # the left side is at +x
        for right, left in (_LEGS, _ARMS):
            if across[right].mean() > across[left].mean():
                matrix[right], matrix[left] = matrix[left].copy(), matrix[right].copy()
        padded = np.zeros((NUM_KEYPOINTS, matrix.shape[1]), np.float32)
        padded[:17] = matrix
        regressed = Body(
            v_template=body.v_template,
            shapedirs=body.shapedirs,
            joint_regressor=body.joint_regressor,
            weights=body.weights,
            faces=body.faces,
            keypoint_regressor=padded,
            posedirs=body.posedirs,
            name=f"{body.name} with {name} joints",
        )
        rows = range(17) if name == "h36m" else _LSP_OF_H36M
        return cls(
            name=name,
            names=H36M_NAMES if name == "h36m" else LSP_NAMES,
            rows=tuple(((NUM_JOINTS + row, 1.0),) for row in rows),
            root=((NUM_JOINTS, 1.0),),
            body=regressed,
            regressor=matrix,
        )


def joint_set(name: str) -> JointSet:
    """The joints of any body: ``smpl``, ``h36m`` or ``lsp``.

    Raises:
        JointSetError: there is no such set.
    """
    if name == "smpl":
        return JointSet("smpl", JOINT_NAMES, tuple(((j, 1.0),) for j in range(NUM_JOINTS)), ((0, 1.0),))
    rows = _h36m_rows()
    if name == "h36m":
        return JointSet("h36m", H36M_NAMES, rows, rows[0])
    if name == "lsp":
        return JointSet("lsp", LSP_NAMES, tuple(rows[j] for j in _LSP_OF_H36M), rows[0])
    raise JointSetError(f"there is no joint set {name!r}: use one of {', '.join(JOINT_SETS)}")


def _read_regressor(path: Path) -> np.ndarray:
    mend = "give SPIN's J_regressor_h36m.npy or a file like it"
    if not path.is_file():
        raise JointSetError(f"there is no regressor {path}: {mend}")
    try:
        data = np.load(path, allow_pickle=False)
        if isinstance(data, np.ndarray):
            return np.array(data, np.float32)
        with data:
            if {"data", "indices", "indptr", "shape"} <= set(data.files):
                return _from_sparse(data)
            for name in data.files:
                if data[name].ndim == 2 and len(data[name]) == 17:
                    return np.array(data[name], np.float32)
    except (OSError, ValueError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise JointSetError(f"{path} cannot be read ({error}): {mend}") from error
    raise JointSetError(f"{path} holds no matrix with 17 rows: {mend}")


def _from_sparse(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """A matrix that ``scipy.sparse.save_npz`` wrote, in CSR or CSC form."""
    rows, columns = (int(n) for n in data["shape"])
    indices, counts = data["indices"], np.diff(data["indptr"])
    by_column = bytes(data["format"].item()) == b"csc" if "format" in data else len(counts) == columns
    major = np.repeat(np.arange(len(counts)), counts)
    out = np.zeros((rows, columns), np.float32)
    np.add.at(out, (indices, major) if by_column else (major, indices), data["data"])
    return out
