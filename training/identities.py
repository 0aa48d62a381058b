r"""How well identities last: what a tracker said against who was there.

A detection belongs to the true person whose seen keypoints it lies on, at most one each: the assignment with the least
sum of median distances, none above a fifth of the person's height. An **identity switch** is counted, as in CLEAR MOT
(Bernardin and Stiefelhagen 2008), where a true person is found under another identity than when last found. IDF1
(Ristani et al. 2016) asks who was right for how long: with each true person given one identity,

.. math:: \mathrm{IDF1} = \frac{2\,\mathrm{IDTP}}{2\,\mathrm{IDTP} + \mathrm{IDFP} + \mathrm{IDFN}}.
"""

from __future__ import annotations

__all__ = ["IdentityScores", "score_identities"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from hmr_prob_ros.hypotheses import Person2D

SEEN = 0.5
"""Share of a person's keypoints that must be seen for the person to count as there."""


@dataclass(frozen=True)
class IdentityScores:
    """Counts over one clip, which add up over clips.

    Args:
        switches: identity switches.
        present: pairs of frame and true person of whom at least half is seen.
        found: how many of these a detection belongs to.
        ghosts: detections that belong to nobody, of those in frames where everybody is seen.
        right: frames in which a person has the identity that fits best over the whole clip (IDTP).
        reported: detections that belong to somebody.
    """

    switches: int = 0
    present: int = 0
    found: int = 0
    ghosts: int = 0
    right: int = 0
    reported: int = 0

    def __add__(self, other: IdentityScores) -> IdentityScores:
        return IdentityScores(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def idf1(self) -> float:
        """IDF1 in [0, 1]; ghosts, of which tracking is innocent, are left out."""
        return 2 * self.right / max(self.present + self.reported, 1)


def score_identities(
    keypoints: np.ndarray, state: np.ndarray, frames: Sequence[Sequence[Person2D]], least: float = SEEN
) -> IdentityScores:
    """Compare the people reported in T frames with the truth.

    Args:
        keypoints: (T, P, 23, 2) true keypoints in pixels.
        state: (T, P, 23) 0 visible, 1 hidden by the person's own body, 2 by another thing, 3 outside.
        frames: the people of each frame, with their identities.
        least: share of keypoints in the states 0 and 1 from which a person counts as there.
    """
    last: dict[int, int] = {}
    together: dict[tuple[int, int], int] = {}
    switches = found = ghosts = 0
    seen = state < 2
    there = seen.mean(axis=-1) >= least
    for t, people in enumerate(frames):
        pairs = _match(keypoints[t], seen[t], there[t], people)
        for p, i in pairs:
            switches += last.get(p, i) != i
            last[p] = i
            together[p, i] = together.get((p, i), 0) + 1
        found += len(pairs)
        if there[t].all():
            ghosts += len(people) - len(pairs)
    ids = sorted({i for _, i in together})
    table = np.array([[together.get((p, i), 0) for i in ids] for p in range(keypoints.shape[1])]).reshape(-1, len(ids))
    rows, columns = linear_sum_assignment(-table)
    right = int(table[rows, columns].sum())
    return IdentityScores(switches, int(there.sum()), found, ghosts, right, found)


def _match(
    keypoints: np.ndarray, seen: np.ndarray, there: np.ndarray, people: Sequence[Person2D]
) -> list[tuple[int, int]]:
    """(true person, identity) of each detection that belongs to somebody."""
    who = np.flatnonzero(there)
    if len(who) == 0 or len(people) == 0:
        return []
    apart = np.full((len(who), len(people)), np.inf)
    for row, p in enumerate(who):
        tall = np.ptp(keypoints[p, :, 1])
        for column, person in enumerate(people):
            both = seen[p] & (person.keypoints[:, 2] > 0)
            if both.sum() >= 3:
                away = np.linalg.norm(person.keypoints[both, :2] - keypoints[p, both], axis=-1)
                apart[row, column] = np.median(away) / tall
    rows, columns = linear_sum_assignment(np.minimum(apart, 10.0))
    return [(int(who[r]), people[c].id) for r, c in zip(rows, columns, strict=True) if apart[r, c] < 0.2]
