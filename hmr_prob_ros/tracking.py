r"""Who is who from one frame to the next.

Each known person moves on at constant velocity; a detection belongs to it if their keypoints agree. Agreement is
COCO's object keypoint similarity between the predicted and the detected points,

.. math:: s = \frac{\sum_k c_k \exp(-d_k^2 / (2 \ell^2 \kappa_k^2))}{\sum_k c_k},

with :math:`c` the smaller of both confidences, :math:`\ell^2` the area of the box and :math:`\kappa_k` a wide
constant for each keypoint, so that a fast arm does not change a person's identity; where two people share too few
points it is the overlap of the boxes. Pairs are taken best first: with the handful of people that a camera sees this
agrees with the optimal assignment except where two pairs are as good, and it needs no solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .hypotheses import Person2D
from .skeleton import KEYPOINT_NAMES

__all__ = ["Tracker", "box_iou", "keypoint_similarity"]

# Four times COCO's standard deviations per keypoint (face, shoulder 0.079, elbow 0.072, wrist 0.062, hip 0.107, knee
# 0.087, ankle 0.089): the question is which person, not how exact a point is.
_SIGMA = {"shoulder": 0.32, "elbow": 0.29, "wrist": 0.25, "hip": 0.43, "knee": 0.35, "ankle": 0.36}
_KAPPA = np.array([_SIGMA.get(n.split("_")[-1], 0.36 if "toe" in n or "heel" in n else 0.14) for n in KEYPOINT_NAMES])


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) left, top, right, bottom."""
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(overlap.clip(0)))
    union = float(np.prod((a[2:] - a[:2]).clip(0)) + np.prod((b[2:] - b[:2]).clip(0))) - shared
    return shared / union if union > 0 else 0.0


def keypoint_similarity(a: np.ndarray, b: np.ndarray, area: float) -> float | None:
    """Similarity in [0, 1] of two sets of keypoints (23, 3); None where fewer than three points are in both."""
    weight = np.minimum(a[:, 2], b[:, 2])
    if (weight > 0.1).sum() < 3 or area <= 0:
        return None
    square = ((a[:, :2] - b[:, :2]) ** 2).sum(-1)
    return float((weight * np.exp(-square / (2 * area * _KAPPA**2))).sum() / weight.sum())


@dataclass
class _Track:
    id: int
    person: Person2D
    velocity: np.ndarray
    """(2,) pixels a frame, of the whole body."""
    frames: int = 1
    missed: int = 0

    def predicted(self) -> Person2D:
        shift = self.velocity * (self.missed + 1)
        points = self.person.keypoints.copy()
        points[:, :2] += shift
        return Person2D(self.person.box + np.tile(shift, 2), self.person.score, points, self.id)


class Tracker:
    """Gives every person an identity that lasts over frames and short gaps.

    Args:
        min_similarity: agreement in [0, 1] below which a detection is somebody else.
        max_missed: frames a person may be unseen before the identity is given up.
        momentum: share of the old velocity that is kept at each frame.

    Identities count up from 0 and are not used again until :meth:`reset`.
    """

    def __init__(self, min_similarity: float = 0.25, max_missed: int = 15, momentum: float = 0.5) -> None:
        if not 0 <= min_similarity <= 1 or not 0 <= momentum <= 1 or max_missed < 0:
            raise ValueError("min_similarity and momentum lie between 0 and 1, max_missed is 0 or more")
        self.min_similarity = min_similarity
        self.max_missed = max_missed
        self.momentum = momentum
        self.reset()

    def reset(self) -> None:
        """Forget everybody and count from 0 again: a new clip begins, or time has jumped."""
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, people: Sequence[Person2D]) -> list[Person2D]:
        """The people of the next frame, in the order given, each with an identity."""
        expected = [track.predicted() for track in self._tracks]
        scores = sorted(
            ((_similarity(e, p), t, i) for t, e in enumerate(expected) for i, p in enumerate(people)),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        owner: dict[int, _Track] = {}
        taken: set[int] = set()
        for score, t, i in scores:
            if score < self.min_similarity:
                break
            if i not in owner and t not in taken:
                taken.add(t)
                owner[i] = self._tracks[t]

        for t, track in enumerate(self._tracks):
            if t not in taken:
                track.missed += 1
        named = []
        for i, person in enumerate(people):
            if i in owner:
                self._move(owner[i], person)
            else:
                owner[i] = _Track(self._next, person, np.zeros(2, dtype=np.float32))
                self._tracks.append(owner[i])
                self._next += 1
            named.append(person.with_id(owner[i].id))
        self._tracks = [track for track in self._tracks if track.missed <= self.max_missed]
        return named

    def _move(self, track: _Track, person: Person2D) -> None:
        step = _shift(track.person, person) / (track.missed + 1)
        # The first step is all there is to know of the velocity.
        keep = self.momentum if track.frames > 1 else 0.0
        track.velocity = keep * track.velocity + (1 - keep) * step
        track.person = person
        track.frames += 1
        track.missed = 0


def _similarity(expected: Person2D, found: Person2D) -> float:
    area = float(np.prod((expected.box[2:] - expected.box[:2]).clip(0)))
    similarity = keypoint_similarity(expected.keypoints, found.keypoints, area)
    return box_iou(expected.box, found.box) if similarity is None else similarity


def _shift(before: Person2D, after: Person2D) -> np.ndarray:
    """(2,) movement of the body in pixels: median over the points seen in both, else of the box's centre."""
    seen = np.minimum(before.keypoints[:, 2], after.keypoints[:, 2]) > 0.3
    if seen.sum() >= 3:
        return np.asarray(np.median(after.keypoints[seen, :2] - before.keypoints[seen, :2], axis=0))
    return np.asarray((after.box - before.box).reshape(2, 2).mean(0))
