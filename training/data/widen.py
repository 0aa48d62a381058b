"""More poses than motion capture holds: mirrored, perturbed, mixed, drawn within limits, and made by hand.

    pose, kind = load_pool("pool.npz", mocap, "train", 400_000)
    sampler = PoseSampler(pose, kind, np.random.default_rng(0))
    pose, kind = sampler.sample(512)            # about 1 ms

A pool is built once, kept in one npz and drawn from at no cost. Every pose that is not captured as it stands has passed
two tests: joints within what a body can do (`limits.plausible`) and no limb inside another (`limits.penetration`).
"""

from __future__ import annotations

__all__ = ["KINDS", "SHARES", "PoseSampler", "balanced_frames", "build_pool", "load_pool", "mirror"]

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES

from .limits import clip_to_range, penetration, plausible
from .mocap import Mocap
from .postures import FAMILIES, make_posture
from .retarget import MocapError
from .rotations import axis_angle_to_matrix, matrix_to_axis_angle

KINDS: tuple[str, ...] = ("captured", "perturbed", "mixed", "limits", "tumbled", *FAMILIES)
"""What a pose of a pool is; `kind` arrays hold indices to it."""

SHARES: dict[str, float] = {
    "captured": 0.36, "perturbed": 0.10, "mixed": 0.12, "limits": 0.03, "tumbled": 0.02,
    "sitting": 0.13, "crouching": 0.06, "bending": 0.04, "standing": 0.06, "reaching": 0.04, "lying": 0.04,
}  # fmt: skip
"""Shares of the kinds in a training pool: half captured in some form, half what homes show and the CMU takes lack."""

_VERSION = 2
_CHUNK = 2048
_DEEP = 0.03  # metres that limbs may press into each other: clothes and flesh
_J = {name: k for k, name in enumerate(JOINT_NAMES)}
_LEGS = [_J[f"{s}_{k}"] for s in ("left", "right") for k in ("hip", "knee", "ankle", "foot")]
_ARMS = {s: [_J[f"{s}_{k}"] for k in ("collar", "shoulder", "elbow", "wrist")] for s in ("left", "right")}
_HEAD = [_J["neck"], _J["head"]]
_TRUNK = [_J[k] for k in ("pelvis", "left_hip", "right_hip", "spine1", "spine2", "spine3", "neck", "head",
                          "left_shoulder", "right_shoulder")]  # fmt: skip


def mirror(pose: np.ndarray) -> np.ndarray:
    """Poses (..., 24, 3), axis-angle, reflected left to right: sides swapped, y and z of each vector negated."""
    return pose[..., list(JOINT_FLIP), :] * np.array([1.0, -1.0, -1.0], dtype=pose.dtype)


def balanced_frames(mocap: Mocap, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw frame numbers (count,): a take's chance grows with the square root of its length, not with its length.

    So the hours of dance do not drown the few seconds of crawling. A recording held twice counts once, since its
    entries share a take.
    """
    sizes = np.bincount(mocap.take, minlength=len(mocap.takes)).astype(np.float64)
    weight = 1.0 / np.sqrt(sizes[mocap.take])
    total = np.cumsum(weight)
    return np.searchsorted(total, rng.random(count) * total[-1]).clip(0, len(mocap) - 1)


def _random_mirror(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flip = rng.random(len(pose)) < 0.5
    out = pose.copy()
    out[flip] = mirror(pose[flip])
    return out


def _spread(mocap: Mocap, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean (69,) and a factor L (69, 69) of the covariance L L^T of the captured joints without the root."""
    rows = mocap.pose[balanced_frames(mocap, min(20000, 4 * len(mocap)), rng), 1:].reshape(-1, 69).astype(np.float64)
    both = np.concatenate(
        [rows, mirror(np.pad(rows.reshape(-1, 23, 3), ((0, 0), (1, 0), (0, 0))))[:, 1:].reshape(-1, 69)]
    )
    value, vector = np.linalg.eigh(np.cov(both.T))
    return both.mean(axis=0), vector * np.sqrt(np.maximum(value, 0.0))


class _Maker:
    """Draws candidates of a kind; `good` tells which of them are bodies."""

    def __init__(self, mocap: Mocap, rng: np.random.Generator, body: Body) -> None:
        if not len(mocap):
            raise MocapError("the split has no frames to draw from: choose another split or add takes")
        self.mocap, self.rng, self.body = mocap, rng, body
        self.mean, self.factor = _spread(mocap, rng)
        self.betas = np.zeros(body.num_betas, dtype=np.float32)

    def captured(self, count: int) -> np.ndarray:
        frames = balanced_frames(self.mocap, count, self.rng)
        return _random_mirror(self.mocap.pose[frames].astype(np.float64), self.rng)

    def draw(self, kind: str, count: int) -> np.ndarray:
        rng = self.rng
        if kind == "captured":
            return self.captured(count)
        if kind == "perturbed":
            pose = self.captured(count)
            size = rng.uniform(0.05, 0.3, (count, 1))
            pose[:, 1:] += (size * rng.standard_normal((count, 69)) @ self.factor.T).reshape(-1, 23, 3)
            pose[:, 0] = self._tilt(pose[:, 0], 6.0)
            return clip_to_range(pose)
        if kind == "mixed":
            pose, torso, head = (self.captured(count) for _ in range(3))
            upper = [j for j in range(1, 22) if j not in _LEGS]
            pose[:, upper] = torso[:, upper]
            pose[:, _HEAD] = head[:, _HEAD]
            arm = rng.random(count) < 0.4  # one arm of a third body
            pose[np.ix_(arm, _ARMS["left"])] = head[np.ix_(arm, _ARMS["left"])]
            return pose
        if kind == "limits":
            # Correlated as captured poses are, half as wide again, cut at what the joints can do.
            pose = self.captured(count)
            wide = self.mean + 1.5 * rng.standard_normal((count, 69)) @ self.factor.T
            pose[:, 1:22] = wide.reshape(-1, 23, 3)[:, :21]
            pose[:, 0] = self._tilt(pose[:, 0], 12.0)
            return clip_to_range(pose)
        if kind == "tumbled":  # falls: any body in any attitude
            pose = self.captured(count)
            turn = rng.standard_normal((count, 4))
            angle = 2.0 * np.arccos(np.clip(np.abs(turn[:, :1]) / np.linalg.norm(turn, axis=1, keepdims=True), 0, 1))
            pose[:, 0] = turn[:, 1:] / np.linalg.norm(turn[:, 1:], axis=1, keepdims=True) * angle
            return pose
        arms = axis_angle_to_matrix(self.captured(count))
        return _random_mirror(matrix_to_axis_angle(make_posture(kind, arms, rng, self.body)), rng)

    def _tilt(self, root: np.ndarray, degrees: float) -> np.ndarray:
        noise = axis_angle_to_matrix(np.radians(degrees) * self.rng.standard_normal(root.shape))
        return matrix_to_axis_angle(noise @ axis_angle_to_matrix(root))

    def good(self, kind: str, pose: np.ndarray) -> np.ndarray:
        """Mask (N,): captured frames all pass."""
        if kind in ("captured", "tumbled"):
            return np.ones(len(pose), dtype=bool)
        joints = self.body.joints(axis_angle_to_matrix(pose.astype(np.float32)), self.betas)
        good = plausible(pose) & (penetration(joints) < _DEEP)
        if kind == "lying":  # nothing hangs through the mattress
            good &= joints[..., 1].min(axis=1) > joints[:, _TRUNK, 1].min(axis=1) - 0.07
        if kind in ("perturbed", "mixed", "limits"):  # upright bodies stay out of the floor they stand on
            captured_like = joints[:, _J["head"], 1] - joints[..., 1].min(axis=1)
            good &= captured_like > 0.2
        return good


def build_pool(
    mocap: Mocap,
    split: str | int,
    count: int,
    seed: int = 0,
    body: Body | None = None,
    shares: Mapping[str, float] | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Build a pool from one split: poses (count, 24, 3) float32 axis-angle and kinds (count,) uint8, in random order.

    `shares` weights the kinds (`SHARES`); ``{"captured": 1.0}`` gives plain frames, balanced over takes and mirrored,
    as test sets want them. Only frames of `split` are used, for arms and covariances too. 2,500 poses a second.
    """
    shares = dict(SHARES if shares is None else shares)
    unknown = [kind for kind in shares if kind not in KINDS]
    if unknown or sum(shares.values()) <= 0:
        raise ValueError(f"shares: kinds {unknown or list(shares)} are not of {', '.join(KINDS)}, or weigh nothing")
    rng = np.random.default_rng(seed)
    body = body or Body.load()
    maker = _Maker(mocap.select(split), rng, body)
    kinds = list(shares)
    edges = np.round(np.cumsum([shares[k] for k in kinds]) / sum(shares.values()) * count).astype(int)
    sizes = np.diff(np.concatenate([[0], edges]))
    pose = np.empty((count, 24, 3), dtype=np.float32)
    code = np.repeat(np.array([KINDS.index(k) for k in kinds], dtype=np.uint8), sizes)
    row = 0
    with tqdm(total=count, desc="building poses", unit="pose", disable=not progress) as bar:
        for kind, size in zip(kinds, sizes):
            end, idle = row + int(size), 0
            while row < end:
                drawn = maker.draw(kind, _CHUNK)
                kept = drawn[maker.good(kind, drawn)][: end - row]
                idle = 0 if len(kept) else idle + 1
                if idle == 20:
                    raise MocapError(f"no pose of kind {kind!r} passes the tests on {body.name}; give it the share 0")
                pose[row : row + len(kept)] = kept
                row += len(kept)
                bar.update(len(kept))
    order = rng.permutation(count)
    return pose[order], code[order]


def load_pool(
    path: str | Path,
    mocap: Mocap | None = None,
    split: str | int = "train",
    count: int = 400_000,
    seed: int = 0,
    body: Body | None = None,
    shares: Mapping[str, float] | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The pool kept at `path`; built and written first where it is absent or was made from something else.

    Without `mocap` the file is read as it is. Raises `MocapError` where it is not a pool.
    """
    key = ""
    if mocap is not None:
        weights = sorted((SHARES if shares is None else shares).items())
        made_of = f"{len(mocap)}/{float(np.abs(mocap.pose).sum(dtype=np.float64)):.3f}"
        text = f"{_VERSION}/{split}/{count}/{seed}/{weights}/{made_of}"
        key = hashlib.sha256(text.encode()).hexdigest()
    if Path(path).is_file():
        try:
            with np.load(path, allow_pickle=False) as data:
                if not key or str(data["key"]) == key:
                    return data["pose"].astype(np.float32), data["kind"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise MocapError(f"{path} is not a pool of poses ({error}): delete it, it will be built again") from error
    if mocap is None:
        raise MocapError(f"there is no pool of poses at {path}: build one with `build_pool` or name the motion capture")
    pose, kind = build_pool(mocap, split, count, seed, body, shares, progress)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        # Half precision is a tenth of a degree at worst, and half the size: 300,000 poses are 43 MB.
        np.savez(stream, pose=pose.astype(np.float16), kind=kind, key=np.asarray(key))
    return pose.astype(np.float16).astype(np.float32), kind


class PoseSampler:
    """Draws poses from a pool, mirrored by chance, at next to no cost.

    :param pose: (P, 24, 3) float32 axis-angle, root = body to world (y up).
    :param kind: (P,) index to `KINDS`.
    :param weights: how often kinds are drawn relative to their number in the pool; kinds not named weigh 1.
    """

    def __init__(
        self, pose: np.ndarray, kind: np.ndarray, rng: np.random.Generator, weights: Mapping[str, float] | None = None
    ) -> None:
        if len(pose) == 0 or pose.shape[1:] != (24, 3) or kind.shape != (len(pose),):
            raise ValueError(f"a pool has poses (P, 24, 3) and kinds (P,), not {pose.shape} and {kind.shape}")
        self.pose, self.kind, self.rng = pose, kind, rng
        self._total: np.ndarray | None = None
        if weights is not None:
            table = np.array([weights.get(name, 1.0) for name in KINDS])
            self._total = np.cumsum(table[kind])

    def __len__(self) -> int:
        return len(self.pose)

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses (count, 24, 3) float32 and kinds (count,) uint8."""
        if self._total is None:
            rows = self.rng.integers(len(self.pose), size=count)
        else:
            rows = np.searchsorted(self._total, self.rng.random(count) * self._total[-1]).clip(0, len(self.pose) - 1)
        pose = self.pose[rows]
        flip = self.rng.random(count) < 0.5
        pose[flip] = mirror(pose[flip])
        return pose, self.kind[rows]
