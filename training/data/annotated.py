"""Labelled people of a data set as sights for a detector: pictures, boxes, and what is known of the bodies."""

from __future__ import annotations

__all__ = ["AnnotatedPeople"]

from pathlib import Path

import cv2
import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera

from .annotations import AnnotationError, Annotations, ambiguous, read_annotations
from .noise import HIDDEN_BY_SELF, OUTSIDE, VISIBLE
from .sights import Sight

_SQUARE = 1.2
"""Side of a data set's square over the longer side of the person's box, as SPIN and those after it have it."""

_ENOUGH = 6  # labelled points that shape a box better than the data set's square


class AnnotatedPeople:
    """People of a data set.

    A shape, and a place with it, belongs to a licensed body. With that body (``--body``) everything is known; with the
    free one shapes are not, and the surface keypoints of people whose pose and place are known are those of its mean
    shape, which is centimetres off.

    Args:
        source: annotations, or the file or folder that holds them.
        folder: of the pictures.
        body: that joints and keypoints are taken from.
        masks: folder of person masks, named as the pictures but ``.png``; zero where nobody is.
        hide: take the ambiguous version (arms and head, legs, head or nothing cut off).
        seed: of what is hidden.

    Raises:
        AnnotationError: the file cannot be used, or pictures are missing.
    """

    def __init__(
        self,
        source: Annotations | str | Path,
        folder: str | Path,
        body: Body,
        masks: str | Path | None = None,
        hide: bool = False,
        seed: int = 0,
    ) -> None:
        people = source if isinstance(source, Annotations) else read_annotations(source)
        people.check_images(folder)
        self.folder, self.masks, self.body = Path(folder), None if masks is None else Path(masks), body
        self.cut = np.tile(np.array([-np.inf, -np.inf, np.inf, np.inf], np.float32), (len(people), 1))
        if hide:
            people, self.cut = ambiguous(people, seed)
        self.people = people
        self.name = people.name
        # SMPL-X has other shapes than SMPL; the free body is neither.
        self.own_body = people.body != "" and people.body == body.name.lower().replace("-", "").split("_")[0]

    def __len__(self) -> int:
        return len(self.people)

    def sight(self, index: int) -> Sight | None:
        """One person, or None where nothing of it is in the picture."""
        people = self.people
        image = people.load_image(index, self.folder)
        height, width = image.shape[:2]
        whole = people.camera(index, width, height)
        x0, y0, x1, y1 = (int(v) for v in np.round(np.clip(self.cut[index], 0, [width, height, width, height])))
        if x1 - x0 < 8 or y1 - y0 < 8:
            return None
        camera = Camera(x1 - x0, y1 - y0, whole.fx, whole.fy, whole.cx - x0, whole.cy - y0)
        labels = people.keypoints[index].copy()
        labels[:, :2] = np.where(labels[:, 2:] > 0, labels[:, :2] - (x0, y0), 0)
        inside = ((labels[:, :2] >= 0) & (labels[:, :2] < (x1 - x0, y1 - y0))).all(axis=1)
        labelled = labels[:, 2] > 0
        box = self._box(index, labels[labelled & inside, :2], np.array([x0, y0]), camera)
        if (box[2:] - box[:2]).min() < 4:
            return None
        truth = self._truth(index)
        # A point without a label may be anywhere; that it is not seen is all that follows.
        truth["state"] = np.where(labelled, np.where(inside, VISIBLE, OUTSIDE), HIDDEN_BY_SELF).astype(np.int8)
        truth["true_keypoints"] = labels
        mask = self._mask(index, (height, width))
        return Sight(
            image=np.ascontiguousarray(image[y0:y1, x0:x1]),
            origin=np.zeros(2),
            scale=1.0,
            camera=camera,
            box=box,
            truth=truth,
            mask=None if mask is None else np.ascontiguousarray(mask[y0:y1, x0:x1]),
            index=index,
            take=str(people.take[index]),
        )

    def _box(self, index: int, points: np.ndarray, corner: np.ndarray, camera: Camera) -> np.ndarray:
        """(4,) box in the cut picture, round the labelled points or, where these are few, the data set's square."""
        if len(points) >= _ENOUGH:
            low, high = points.min(axis=0), points.max(axis=0)
            grow = 0.1 * (high - low).max()
            low, high = low - grow, high + grow
        else:
            half = float(self.people.size[index]) / _SQUARE / 2
            low, high = self.people.centre[index] - half - corner, self.people.centre[index] + half - corner
        limit = np.array([camera.width, camera.height])
        return np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)]).astype(np.float64)

    def _truth(self, index: int) -> dict[str, np.ndarray]:
        people, body = self.people, self.body
        rotations, known = people.rotations[index], people.has_joints[index].copy()
        posed, shaped = bool(people.has_pose[index]), bool(people.has_betas[index]) and self.own_body
        betas = people.betas[index] if shaped else np.zeros(10, np.float32)
        joints, placed = people.joints[index].copy(), bool(people.has_translation[index])
        own = np.asarray(body.joints(rotations, betas, np.zeros(3, np.float32)))
        pelvis = own[0]
        if shaped and placed:
            translation = people.translation[index]
        elif placed and posed and known[0]:
            translation = joints[0] - pelvis
        else:
            translation, placed = np.zeros(3, np.float32), False
        if posed and shaped and (placed or not known.any()):
            joints = np.where(known[:, None], joints, own + translation)
            known[:] = True
        keypoints3d = np.zeros((23, 3), np.float32)
        if posed:
            at = translation if placed else joints[0] * known[0] - pelvis
            keypoints3d = np.asarray(body.keypoints(rotations, betas, at))
        return {
            "rotations": rotations,
            "betas": betas,
            "translation": np.asarray(translation, dtype=np.float32),
            "joints": joints.astype(np.float32),
            "keypoints3d": keypoints3d.astype(np.float32),
            "has_pose": np.bool_(posed),
            "has_betas": np.bool_(shaped),
            "has_joints": known,
            "has_translation": np.bool_(placed),
        }

    def _mask(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        if self.masks is None:
            return None
        path = (self.masks / str(self.people.image[index])).with_suffix(".png")
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        if mask is None or mask.shape != size:
            what = "is missing or no image" if mask is None else f"is {mask.shape[1]}x{mask.shape[0]} pixels"
            raise AnnotationError(
                f"{self.name}: the mask {path} {what}: give a .png of the picture's size {size[1]}x{size[0]}, zero "
                "where nobody is, or leave --masks out"
            )
        return mask > 0
