r"""Who is who from one frame to the next, and after being hidden for a while.

Each known person moves on at a velocity that fades out; a detection belongs to it if their keypoints agree. Agreement
is COCO's object keypoint similarity between the predicted and the detected points,

.. math:: s = \frac{\sum_k c_k \exp(-d_k^2 / (2 \ell^2 (\kappa_k^2 + \sigma^2 t^2)))}{\sum_k c_k},

with :math:`c` the smaller of both confidences, :math:`\ell^2` the area of the box and :math:`\kappa_k` a wide constant
for each keypoint, so that a fast arm does not change a person's identity; where two people share too few points it is
the overlap of the boxes. The longer somebody has been unseen (:math:`t` seconds), the less is known of where they are,
and the more counts what they wear: with the picture at hand, :math:`s` is multiplied by :math:`w + (1 - w) a`, where
:math:`a` is the likeness of the clothes' colours. Pairs are taken best first: with the handful of people that a camera
sees this agrees with the optimal assignment except where two pairs are as good, and it needs no solver.

Everything is measured in seconds, so that a camera that drops frames changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .camera import Camera
from .hypotheses import Person2D
from .skeleton import KEYPOINT_NAMES

__all__ = ["Tracker", "apparent_distance", "box_iou", "clothing", "keypoint_similarity", "likeness", "nearest"]

# Four times COCO's standard deviations per keypoint (face, shoulder 0.079, elbow 0.072, wrist 0.062, hip 0.107, knee
# 0.087, ankle 0.089): the question is which person, not how exact a point is.
_SIGMA = {"shoulder": 0.32, "elbow": 0.29, "wrist": 0.25, "hip": 0.43, "knee": 0.35, "ankle": 0.36}
_KAPPA = np.array([_SIGMA.get(n.split("_")[-1], 0.36 if "toe" in n or "heel" in n else 0.14) for n in KEYPOINT_NAMES])

_WANDER = 0.6
"""Sizes of the body (square root of the box's area) that a hidden person may stray in a second."""
_USUAL = 0.5
"""Sizes that a body's points lie apart anyhow: from this stray on, the place of somebody hidden counts half."""
_FADE = 2.0
"""Seconds in which the velocity of a hidden person fades to a third."""
_FIRM = 0.3
"""Seconds over which a velocity is averaged."""
_DRESS = 0.5
"""Seconds over which colours are averaged."""
_HUE, _LIGHT = 12.0, 0.4
"""Distance in CIE Lab at which colours are alike to one half, and what lightness, which lamps change, counts."""


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) left, top, right, bottom."""
    overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(overlap.clip(0)))
    union = float(np.prod((a[2:] - a[:2]).clip(0)) + np.prod((b[2:] - b[:2]).clip(0))) - shared
    return shared / union if union > 0 else 0.0


def keypoint_similarity(a: np.ndarray, b: np.ndarray, area: float, stray: float = 0.0) -> float | None:
    """Similarity in [0, 1] of two sets of keypoints (23, 3); None where fewer than three points are in both.

    Args:
        a, b: pixels and confidence.
        area: of the box, in square pixels.
        stray: standard deviation of the whole body's place, in square roots of the area.
    """
    weight = np.minimum(a[:, 2], b[:, 2])
    if (weight > 0.1).sum() < 3 or area <= 0:
        return None
    square = ((a[:, :2] - b[:, :2]) ** 2).sum(-1)
    return float((weight * np.exp(-square / (2 * area * (_KAPPA**2 + stray**2)))).sum() / weight.sum())


def _between(ends: tuple[str, str], shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, 23) of points at ``shares`` of the way between two keypoints, and (23,) which keypoints they need."""
    weights = np.zeros((len(shares), len(KEYPOINT_NAMES)))
    weights[:, KEYPOINT_NAMES.index(ends[0])] = 1 - shares
    weights[:, KEYPOINT_NAMES.index(ends[1])] = shares
    return weights, (weights > 0).any(0)


def _places() -> list[tuple[np.ndarray, np.ndarray]]:
    """Where the clothes are looked at: chest, belly, left and right thigh, left and right shin."""
    left, right = (_between((f"{s}_shoulder", f"{s}_hip"), np.linspace(0.15, 0.85, 6)) for s in ("left", "right"))
    needs = left[1] | right[1]
    across = [(1 - u) * left[0] + u * right[0] for u in (0.3, 0.5, 0.7)]
    out = [(np.concatenate([a[part] for a in across]), needs) for part in (slice(0, 3), slice(3, 6))]
    for upper, lower in (("hip", "knee"), ("knee", "ankle")):
        for side in ("left", "right"):
            out.append(_between((f"{side}_{upper}", f"{side}_{lower}"), np.linspace(0.25, 0.75, 7)))
    return out


_PLACES = _places()
_AT = np.concatenate([weights for weights, _ in _PLACES])
_NEEDS = np.stack([needs for _, needs in _PLACES])
_PART = np.repeat(np.arange(len(_PLACES)), [len(weights) for weights, _ in _PLACES])


def clothing(image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """(6, 3) median CIE Lab colours of chest, belly, thighs and shins; NaN where a part is not seen.

    Args:
        image: (H, W, 3) uint8 RGB.
        keypoints: (23, 3) pixels and confidence.
    """
    places = np.rint(_AT @ keypoints[:, :2].astype(np.float64) - 0.5).clip(-1, 1 << 20).astype(int)
    height, width = image.shape[:2]
    inside = ((places >= 0) & (places < (width, height))).all(-1)
    column, row = np.where(inside[:, None], places, 0).T
    colours = cv2.cvtColor(image[row, column][None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    out = np.full((len(_PLACES), 3), np.nan, np.float32)
    for part, needs in enumerate(_NEEDS):
        take = inside & (part == _PART)
        if take.sum() >= 3 and keypoints[needs, 2].min() > 0.3:
            out[part] = np.median(colours[take], axis=0)
    return out


def likeness(a: np.ndarray, b: np.ndarray) -> float | None:
    """Likeness in [0, 1] of two persons' :func:`clothing`; None where no part is seen of both."""
    apart = (a - b) * (_LIGHT, 1, 1)
    both = np.isfinite(apart).all(-1)
    if not both.any():
        return None
    return float(1 / (1 + np.square(apart[both]).sum(-1).mean() / _HUE**2))


@dataclass
class _Track:
    id: int
    person: Person2D
    time: float
    """When the person was last seen, seconds."""
    velocity: np.ndarray
    """(2,) pixels a second, of the whole body."""
    known: float = 0.0
    """Seconds over which the velocity was observed."""
    colours: np.ndarray | None = None
    """(6, 3), see :func:`clothing`."""

    def predicted(self, now: float) -> Person2D:
        shift = self.velocity * _FADE * (1 - np.exp(-(now - self.time) / _FADE))
        points = self.person.keypoints.copy()
        points[:, :2] += shift
        return Person2D(self.person.box + np.tile(shift, 2), self.person.score, points, self.id)

    def move(self, person: Person2D, now: float) -> None:
        passed = now - self.time
        if passed > 0:
            step = _shift(self.person, person) / passed
            # What was seen first is all there is to know of the velocity.
            share = passed / min(self.known + passed, max(_FIRM, passed))
            self.velocity = (1 - share) * self.velocity + share * step
            self.known += passed
        self.person, self.time = person, now

    def dress(self, colours: np.ndarray, passed: float) -> None:
        if self.colours is None:
            self.colours = colours
            return
        mixed = self.colours + (1 - np.exp(-passed / _DRESS)) * (colours - self.colours)
        mixed = np.where(np.isfinite(mixed), mixed, self.colours)
        self.colours = np.where(np.isfinite(mixed), mixed, colours)


class Tracker:
    """Gives every person an identity that lasts over frames and while the person is hidden for a second or two.

    Args:
        min_similarity: agreement in [0, 1] below which a detection is somebody else.
        max_age: seconds a person may be unseen before the identity is given up.
        rate: frames a second where :meth:`update` is not told the time.
        colours: w, in [0, 1]: what is left of the agreement where the clothes are wholly unlike; 1 ignores them.

    Identities count up from 0 and are not used again until :meth:`reset`.
    """

    def __init__(
        self, min_similarity: float = 0.1, max_age: float = 3.0, rate: float = 30.0, colours: float = 0.3
    ) -> None:
        if not 0 <= min_similarity <= 1 or not 0 <= colours <= 1:
            raise ValueError(f"min_similarity ({min_similarity}) and colours ({colours}) must lie between 0 and 1")
        if not 0 <= max_age < np.inf or not 0 < rate < np.inf:
            raise ValueError(f"max_age ({max_age} s) must be 0 or more and rate ({rate} Hz) above 0, both finite")
        self.min_similarity = min_similarity
        self.max_age = max_age
        self.rate = rate
        self.colours = colours
        self.reset()

    def reset(self) -> None:
        """Forget everybody and count from 0 again: a new clip begins, or time has jumped."""
        self._tracks: list[_Track] = []
        self._next = 0
        self._now: float | None = None

    def update(
        self, people: Sequence[Person2D], stamp: float | None = None, image: np.ndarray | None = None
    ) -> list[Person2D]:
        """The people of the next frame, in the order given, each with an identity.

        Args:
            people: what the detector found.
            stamp: when the frame was taken, seconds; a frame's time after the last one if not given. Where it goes
                back, everybody is forgotten: another run has begun.
            image: (H, W, 3) uint8 RGB, to tell people by their clothes.

        Raises:
            ValueError: the stamp is not finite.
        """
        if stamp is not None and not np.isfinite(stamp):
            raise ValueError(f"the stamp is {stamp}: give seconds, or None where the time is not known")
        now = (self._now or 0.0) + 1 / self.rate if stamp is None else float(stamp)
        if self._now is not None and now < self._now:
            self.reset()
        self._now = now
        self._tracks = [track for track in self._tracks if now - track.time <= self.max_age]
        wear = [clothing(image, p.keypoints) if image is not None and self.colours < 1 else None for p in people]
        scores = []
        for t, track in enumerate(self._tracks):
            expected, stray = track.predicted(now), _WANDER * max(now - track.time - 1 / self.rate, 0.0)
            for i, (person, colours) in enumerate(zip(people, wear, strict=True)):
                agreement = self._agreement(track, expected, stray, person, colours)
                if agreement >= self.min_similarity:
                    # Of two who may be it, the one whose place is better known: the density's height.
                    scores.append((-agreement / (1 + (stray / _USUAL) ** 2), t, i))
        owner: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, t, i in sorted(scores):
            if i not in owner and t not in taken:
                taken.add(t)
                owner[i] = self._tracks[t]

        named = []
        for i, (person, colours) in enumerate(zip(people, wear, strict=True)):
            passed = 0.0
            if i in owner:
                passed = now - owner[i].time
                owner[i].move(person, now)
            else:
                owner[i] = _Track(self._next, person, now, np.zeros(2))
                self._tracks.append(owner[i])
                self._next += 1
            # Of two people in one place the colours may be the other's.
            if colours is not None and not any(j != i and _covers(p, person) for j, p in enumerate(people)):
                owner[i].dress(colours, passed)
            named.append(person.with_id(owner[i].id))
        return named

    def _agreement(
        self, track: _Track, expected: Person2D, stray: float, found: Person2D, colours: np.ndarray | None
    ) -> float:
        area = float(np.prod((expected.box[2:] - expected.box[:2]).clip(0)))
        similarity = keypoint_similarity(expected.keypoints, found.keypoints, area, stray)
        if similarity is None:
            similarity = box_iou(expected.box, found.box)
        alike = likeness(track.colours, colours) if track.colours is not None and colours is not None else None
        return similarity if alike is None else similarity * (self.colours + (1 - self.colours) * alike)


def _covers(other: Person2D, person: Person2D) -> bool:
    """Whether another person's box holds the middle of this one's, or a third of it."""
    overlap = np.minimum(other.box[2:], person.box[2:]) - np.maximum(other.box[:2], person.box[:2])
    area = float(np.prod((person.box[2:] - person.box[:2]).clip(0)))
    return float(np.prod(overlap.clip(0))) > area / 3


def _shift(before: Person2D, after: Person2D) -> np.ndarray:
    """(2,) movement of the body in pixels: median over the points seen in both, else of the box's centre."""
    seen = np.minimum(before.keypoints[:, 2], after.keypoints[:, 2]) > 0.3
    if seen.sum() >= 3:
        return np.asarray(np.median(after.keypoints[seen, :2] - before.keypoints[seen, :2], axis=0))
    return np.asarray((after.box - before.box).reshape(2, 2).mean(0))


_LENGTHS = {
    ("shoulder", "hip"): 0.515,
    ("hip", "knee"): 0.386,
    ("knee", "ankle"): 0.392,
    ("shoulder", "elbow"): 0.261,
    ("elbow", "wrist"): 0.242,
}
"""Metres between keypoints of the package's mean body."""
_BONES = np.array(
    [[KEYPOINT_NAMES.index(f"{side}_{end}") for end in ends] for ends in _LENGTHS for side in ("left", "right")]
)
_METRES = np.repeat(list(_LENGTHS.values()), 2)
_STAY = 0.9
"""Share of the distance at which somebody who was among the nearest counts, so that two as near do not alternate."""


def apparent_distance(keypoints: np.ndarray, camera: Camera) -> float:
    """Depth in metres at which a person of mean size would look like this; infinite where no limb is seen.

    A limb of :math:`L` metres at depth :math:`Z` is at most :math:`L / Z` long in ray units, and shorter where it
    points to the camera: so the depth is the smallest that a limb allows, the second smallest of three or more, since
    one may be guessed wrong. It is for choosing people before the model runs, which knows better.
    """
    seen = (keypoints[_BONES, 2] > 0.3).all(-1)
    if not seen.any():
        return float("inf")
    rays = camera.rays(keypoints[:, :2])
    length = np.linalg.norm(rays[_BONES[seen, 0]] - rays[_BONES[seen, 1]], axis=-1)
    depths = np.sort(_METRES[seen] / np.maximum(length, 1e-6))
    return float(depths[1 if len(depths) > 2 else 0])


def nearest(
    people: Sequence[Person2D], camera: Camera, most: int | None = None, before: frozenset[int] = frozenset()
) -> list[Person2D]:
    """The people by :func:`apparent_distance`, nearest first, at most so many.

    Args:
        most: None for all.
        before: identities of those who were among the nearest in the last frame: they count as a tenth nearer.
    """
    away = [apparent_distance(p.keypoints, camera) * (_STAY if p.id in before else 1.0) for p in people]
    return [people[i] for i in np.argsort(away, kind="stable")[:most]]
