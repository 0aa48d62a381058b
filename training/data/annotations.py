"""Labelled people of a data set: images, boxes, keypoints, poses, and which of them are known.

    people = read_annotations("3DPW/sequenceFiles/test")      # or one .npz or .pkl
    people.check_images("3DPW")
    hidden, cut = ambiguous(people, seed=0)                   # the protocol of Biggs et al. 2020

The readers are in `datasets`; docs/datasets.md says how to obtain the files.
"""

from __future__ import annotations

__all__ = [
    "AnnotationError",
    "Annotations",
    "ambiguous",
    "ambiguous_groups",
    "cut_rectangles",
    "hide_groups",
    "read_annotations",
]

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.skeleton import KEYPOINT_NAMES, NUM_JOINTS, NUM_KEYPOINTS

from .views import BIGGS_GROUPS, BIGGS_SHARES

BODIES = ("smpl", "smplx", "")
PADDING = 0.1
"""What the ambiguous protocol leaves round the keypoints, on each side, over the longer side of their box."""

_FARTHEST = 300.0  # metres; beyond it somebody wrote millimetres
_HIP_ALONG = 0.55  # a COCO hip lies at about this share of the way from shoulder to knee of a standing person

# Shape behind K, type, and the field that says where values are known.
_FIELDS: dict[str, tuple[tuple[int, ...], type, str]] = {
    "image": ((), np.str_, ""),
    "centre": ((2,), np.float32, ""),
    "size": ((), np.float32, ""),
    "intrinsics": ((4,), np.float32, ""),
    "keypoints": ((NUM_KEYPOINTS, 3), np.float32, ""),
    "rotations": ((NUM_JOINTS, 3, 3), np.float32, "has_pose"),
    "has_pose": ((), np.bool_, ""),
    "betas": ((10,), np.float32, "has_betas"),
    "has_betas": ((), np.bool_, ""),
    "translation": ((3,), np.float32, "has_translation"),
    "has_translation": ((), np.bool_, ""),
    "joints": ((NUM_JOINTS, 3), np.float32, "has_joints"),
    "has_joints": ((NUM_JOINTS,), np.bool_, ""),
    "take": ((), np.str_, ""),
    "quarter_turns": ((), np.uint8, ""),
}
_MENDS = {
    "image": "give the paths of the images below the image folder",
    "size": "give the side of the square round the person in pixels, above 0",
    "centre": "give the middle of the square round the person in pixels",
    "intrinsics": "give fx, fy, cx, cy in pixels, or four NaN where the camera is not known",
    "keypoints": "set the third number of points without a label to 0, of the others to 1",
    "rotations": "set has_pose to False where the pose is not known",
    "betas": "set has_betas to False where the shape is not known",
    "translation": "set has_translation to False where the place is not known",
    "joints": "set has_joints to False where a joint is not known",
}


class AnnotationError(ValueError):
    """A data set's file cannot be used; the text names the file, the field and the mend."""


@dataclass(frozen=True)
class Annotations:
    """K labelled people, checked when they are made. Metres, radians, pixels; optical frame (x right, y down, z ahead).

    Attributes:
        name: of the data set, for messages.
        image: (K,) path of the picture below the image folder, with ``/``.
        centre, size: (K, 2) and (K,) the data set's square round the person, pixels.
        intrinsics: (K, 4) fx, fy, cx, cy in pixels; NaN where unknown (then guessed from the image size when read).
        keypoints: (K, 23, 3) true pixels and 1 where labelled, zeros elsewhere. They may lie outside the picture.
        rotations: (K, 24, 3, 3) local, the root's from body axes to the optical frame; known where ``has_pose`` (K,).
        betas: (K, 10) of the body ``body``; known where ``has_betas`` (K,).
        translation: (K, 3) SMPL's: the pelvis stands at J_0(betas) + translation of the body ``body``; known where
            ``has_translation`` (K,).
        joints: (K, 24, 3) along the camera's axes; known where ``has_joints`` (K, 24). From the camera where
            ``has_translation``, otherwise right up to a shift of the whole person.
        take: (K,) recording, so that a split never parts one.
        body: the licensed body that shape and translation belong to: ``smpl``, ``smplx`` or "" (none known).
        quarter_turns: (K,) how often the stored picture is turned clockwise before the labels fit (see `load_image`).

    What is unknown is zero, or the identity for rotations, whatever was given; fields that are None are unknown.

    Raises:
        AnnotationError: nobody is labelled, a shape is wrong, a known value is not finite, or a unit cannot be right.
    """

    name: str
    image: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    intrinsics: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    rotations: np.ndarray | None = None
    has_pose: np.ndarray | None = None
    betas: np.ndarray | None = None
    has_betas: np.ndarray | None = None
    translation: np.ndarray | None = None
    has_translation: np.ndarray | None = None
    joints: np.ndarray | None = None
    has_joints: np.ndarray | None = None
    take: np.ndarray | None = None
    body: str = ""
    quarter_turns: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.image))
        if count == 0:
            raise AnnotationError(f"{self.name}: holds nobody: give a file with at least one labelled person")
        if self.body not in BODIES:
            raise AnnotationError(f"{self.name}: body {self.body!r} is not one of smpl, smplx or '' (not known)")
        given = {name for name in _FIELDS if getattr(self, name) is not None}
        for name, (tail, kind, _) in _FIELDS.items():
            value = getattr(self, name) if name in given else self._unknown(name, count, given)
            try:
                value = np.asarray(value).astype(kind)
            except (TypeError, ValueError) as error:
                raise AnnotationError(f"{self.name}: {name} is not of type {kind.__name__}: {error}") from error
            if value.shape != (count, *tail):
                mend = _MENDS.get(name, "give one a person")
                raise AnnotationError(f"{self.name}: {name} is {value.shape}, not {(count, *tail)}: {mend}")
            object.__setattr__(self, name, value)
        self._check_values()

    def _unknown(self, name: str, count: int, given: set[str]) -> np.ndarray:
        tail, kind, _ = _FIELDS[name]
        if name in ("image", "centre", "size"):
            raise AnnotationError(f"{self.name}: {name} is missing: {_MENDS[name]}")
        if name.startswith("has_"):  # values without a flag are known
            values = next(k for k, spec in _FIELDS.items() if spec[2] == name)
            return np.full((count, *tail), values in given, bool)
        if name == "intrinsics":
            return np.full((count, 4), np.nan, np.float32)
        if name == "take":
            return np.asarray(self.image)
        return np.zeros((count, *tail), kind)

    def _check_values(self) -> None:
        labelled = self.keypoints[..., 2]
        if not np.isin(labelled, (0, 1)).all():
            raise AnnotationError(f"{self.name}: keypoints have confidences other than 0 and 1: {_MENDS['keypoints']}")
        object.__setattr__(self, "keypoints", np.where(labelled[..., None] > 0, self.keypoints, np.float32(0)))
        for name, (_, kind, flag) in _FIELDS.items():
            value = getattr(self, name)
            if flag:
                known = getattr(self, flag)
                known = known.reshape(known.shape + (1,) * (value.ndim - known.ndim))
                value = np.where(known, value, np.eye(3, dtype=kind) if name == "rotations" else kind(0))
                object.__setattr__(self, name, value)
            if kind is np.float32 and name != "intrinsics" and not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value.reshape(len(self), -1)).all(axis=1))[0, 0])
                raise AnnotationError(
                    f"{self.name}: {name} of person {row} ({self.image[row]}) is not finite: {_MENDS[name]}"
                )
        unknown = np.isnan(self.intrinsics)
        good = np.isfinite(self.intrinsics).all(axis=1) & (self.intrinsics[:, :2] > 0).all(axis=1)
        for name, bad in (("intrinsics", ~(good | unknown.all(axis=1))), ("size", self.size <= 0)):
            if bad.any():
                row = int(np.argmax(bad))
                value = getattr(self, name)[row]
                raise AnnotationError(f"{self.name}: {name} of person {row} is {value}: {_MENDS[name]}")
        turned = self.rotations @ np.swapaxes(self.rotations, -1, -2) - np.eye(3, dtype=np.float32)
        bad = (np.abs(turned).max(axis=(-1, -2)) > 1e-3) | (np.linalg.det(self.rotations) < 0)
        if bad.any():
            row, joint = np.argwhere(bad)[0]
            raise AnnotationError(
                f"{self.name}: rotations of person {row}, joint {joint}, are no rotation matrix: {_MENDS['rotations']}"
            )
        for name in ("joints", "translation"):
            if (far := float(np.abs(getattr(self, name)).max())) > _FARTHEST:
                raise AnnotationError(f"{self.name}: {name} reach {far:.0f} m: give metres, not millimetres")

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"Annotations({self.summary()})"

    def __getitem__(self, index: int | slice | np.ndarray) -> Annotations:
        """The people of a slice, an index array or a mask; one person for a number."""
        index = slice(index, index + 1 or None) if isinstance(index, (int, np.integer)) else index
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Annotations(**{k: v[index] if k in _FIELDS else v for k, v in values.items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Annotations], name: str = "") -> Annotations:
        """All people of several data sets below one image folder.

        Raises:
            AnnotationError: none are given, or shapes and translations belong to different bodies.
        """
        if not parts:
            raise AnnotationError(f"{name or 'concatenation'}: holds nobody: give at least one data set")
        bodies = {p.body for p in parts if p.body and (p.has_betas.any() or p.has_translation.any())}
        if len(bodies) > 1:
            raise AnnotationError(
                f"{', '.join(p.name for p in parts)}: their shapes belong to different bodies "
                f"({', '.join(sorted(bodies))}): make shards of each apart and train on both"
            )
        body = bodies.pop() if bodies else next((p.body for p in parts if p.body), "")
        values = {k: np.concatenate([getattr(p, k) for p in parts]) for k in _FIELDS}
        return cls(name=name or "+".join(dict.fromkeys(p.name for p in parts)), body=body, **values)

    def summary(self) -> str:
        """One line: how many people, pictures and takes, and how many have each target."""
        counts = {
            "keypoints": (self.keypoints[..., 2] > 0).any(axis=1),
            "poses": self.has_pose,
            "shapes": self.has_betas,
            "places": self.has_translation,
            "joints": self.has_joints.any(axis=1),
            "cameras": np.isfinite(self.intrinsics).all(axis=1),
        }
        known = ", ".join(f"{int(v.sum())} {k}" for k, v in counts.items())
        where = f"{len(np.unique(self.image))} pictures of {len(np.unique(self.take))} takes"
        return f"{self.name}: {len(self)} people in {where}, with {known}; body {self.body!r}"

    def camera(self, index: int, width: int, height: int) -> Camera:
        """The camera of one person's picture; guessed from the picture's size where the data set does not know it."""
        values = self.intrinsics[index]
        if np.isnan(values).any():
            return Camera.guess(width, height)
        return Camera(width, height, *(float(v) for v in values))

    def image_path(self, index: int, folder: str | Path) -> Path:
        """Where one person's picture is: at ``image``, or beside it as ``.jpg`` (people repack BEDLAM's ``.png``)."""
        path = Path(folder) / str(self.image[index])
        other = path.with_suffix(".jpg")
        return other if not path.is_file() and other.is_file() else path

    def check_images(self, folder: str | Path) -> None:
        """Look for all pictures before hours of work begin.

        Raises:
            AnnotationError: some are missing; the text says how many and names the first.
        """
        _, rows = np.unique(self.image, return_index=True)
        missing = [str(self.image[r]) for r in rows if not self.image_path(int(r), folder).is_file()]
        if missing:
            raise AnnotationError(
                f"{self.name}: {len(missing)} of {len(rows)} images are missing below {folder}, first {missing[0]}: "
                "give the folder that the paths start from (see docs/datasets.md)"
            )

    def load_image(self, index: int, folder: str | Path) -> np.ndarray:
        """One person's picture as (H, W, 3) uint8 RGB, turned so that the labels fit.

        Pictures with ``quarter_turns`` are turned clockwise, unless the file is upright (higher than wide) already.

        Raises:
            AnnotationError: the file is missing or is no image.
        """
        path = self.image_path(index, folder)
        # The exif turn would move the pixels away from the labels.
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if path.is_file() else None
        if image is None:
            what = "is not an image that OpenCV reads" if path.is_file() else "is missing"
            raise AnnotationError(
                f"{self.name}: image {self.image[index]} {what} below {folder}: copy it again, or give the folder that "
                "the paths start from (see docs/datasets.md)"
            )
        turns = int(self.quarter_turns[index]) % 4
        if turns and image.shape[0] <= image.shape[1]:
            image = np.rot90(image, -turns)
        return np.ascontiguousarray(image[..., ::-1])


def read_annotations(path: str | Path, kind: str = "auto") -> Annotations:
    """Read a data set's file, or all of a folder; see `hmr_prob_ros.training.data.datasets.read`."""
    from .datasets import read  # the readers make Annotations, so they lie above this module

    return read(path, kind)


def ambiguous_groups(annotations: Annotations, seed: int = 0) -> np.ndarray:
    """(K,) index to `BIGGS_GROUPS` of what is hidden of each person, with the probabilities `BIGGS_SHARES`.

    It depends on the seed, the picture and the place of the person in it, and not on who else is in the list.
    """
    draws = np.empty(len(annotations))
    for row, (image, (x, y)) in enumerate(zip(annotations.image, annotations.centre)):
        digest = hashlib.blake2b(f"{seed}|{image}|{x:.2f}|{y:.2f}".encode(), digest_size=8).digest()
        draws[row] = int.from_bytes(digest, "big") / 2.0**64
    return np.searchsorted(np.cumsum(BIGGS_SHARES)[:-1], draws, side="right")


def hide_groups(keypoints: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Keypoints (K, 23, 3) pixels and confidence, with the points of ``BIGGS_GROUPS[groups]`` (K,) set to zeros."""
    hidden = np.array([[name in group for name in KEYPOINT_NAMES] for group in BIGGS_GROUPS])[groups]
    return np.where(hidden[..., None], np.zeros((), keypoints.dtype), keypoints)


def cut_rectangles(keypoints: np.ndarray, groups: np.ndarray, padding: float = PADDING) -> np.ndarray:
    """What is left of each picture when it is cropped round the keypoints that are not hidden.

    The rectangle is the box of the points left and `padding` of its longer side on each side; towards hidden points
    that all lie beyond one side it goes at most half way, so that the padding does not show them again. Hips without a
    label (SMPL's own are no COCO hips) are put between shoulder and knee for this. Points of arms that hang before the
    legs stay in the picture, as they do in the protocol.

    Args:
        keypoints: (K, 23, 3) pixels and confidence before hiding; confidence 0 = not known.
        groups: (K,) index to `BIGGS_GROUPS`.

    Returns:
        (K, 4) x0, y0, x1, y1 in pixels; the whole plane (-inf, inf) where nothing is hidden or fewer than two points
        are left to crop round.
    """
    points, left = _with_hips(keypoints), hide_groups(_with_hips(keypoints), groups)
    seen = left[..., 2] > 0
    hidden = (points[..., 2] > 0) & ~seen
    far = np.full_like(left[..., :2], np.inf)
    low = np.where(seen[..., None], left[..., :2], far).min(axis=1)
    high = np.where(seen[..., None], left[..., :2], -far).max(axis=1)
    enough = (seen.sum(axis=1) >= 2) & ((high - low).max(axis=1) >= 1.0)
    pad = padding * np.where(enough[:, None], high - low, 1.0).max(axis=1, keepdims=True)
    # Gaps from each side to the nearest hidden point; negative where one lies within that side.
    gap_low = np.where(hidden[..., None], low[:, None] - points[..., :2], far).min(axis=1)
    gap_high = np.where(hidden[..., None], points[..., :2] - high[:, None], far).min(axis=1)
    low = low - np.where(gap_low > 0, np.minimum(pad, gap_low / 2), pad)
    high = high + np.where(gap_high > 0, np.minimum(pad, gap_high / 2), pad)
    nothing = np.array([not group for group in BIGGS_GROUPS])[groups] | ~enough
    whole = np.array([-np.inf, -np.inf, np.inf, np.inf])
    return np.where(nothing[:, None], whole, np.concatenate((low, high), axis=1)).astype(np.float32)


def _with_hips(keypoints: np.ndarray) -> np.ndarray:
    out = np.array(keypoints)
    for side in ("left", "right"):
        shoulder, hip, knee = (KEYPOINT_NAMES.index(f"{side}_{part}") for part in ("shoulder", "hip", "knee"))
        fill = (out[:, hip, 2] <= 0) & (out[:, shoulder, 2] > 0) & (out[:, knee, 2] > 0)
        between = out[:, shoulder] + _HIP_ALONG * (out[:, knee] - out[:, shoulder])
        out[:, hip] = np.where(fill[:, None], between, out[:, hip])
    return out


def ambiguous(annotations: Annotations, seed: int = 0) -> tuple[Annotations, np.ndarray]:
    """The ambiguous version of any data set (AH36M, A3DPW: Biggs et al. 2020, section 5).

    Arms and head, the legs, the head or nothing are hidden (probabilities 0.3, 0.3, 0.3, 0.1; the definition that
    the synthetic examples share, `views.BIGGS_GROUPS`), and the square is placed anew round what is left. The targets
    in 3D stay whole: they are what is asked for. People with fewer than two labelled points left are not touched.

    Returns:
        The people with their keypoints, centre and size changed, and (K, 4) x0, y0, x1, y1 in pixels of the part of
        the picture that stays; blank what lies outside before a detector or a network sees it. Infinite numbers mean
        that nothing is cut there: ``np.clip(cut, 0, (W, H, W, H))`` gives pixels.
    """
    groups = ambiguous_groups(annotations, seed)
    cut = cut_rectangles(annotations.keypoints, groups)
    done = np.isfinite(cut).all(axis=1)
    finite = np.where(done[:, None], cut, np.float32(0))
    values: dict[str, Any] = {f.name: getattr(annotations, f.name) for f in fields(annotations)}
    values["keypoints"] = np.where(
        done[:, None, None], hide_groups(annotations.keypoints, groups), annotations.keypoints
    )
    values["centre"] = np.where(done[:, None], (finite[:, :2] + finite[:, 2:]) / 2, annotations.centre)
    values["size"] = np.where(done, (finite[:, 2:] - finite[:, :2]).max(axis=1), annotations.size)
    values["name"] = f"{annotations.name} (ambiguous)"
    return Annotations(**values), cut
