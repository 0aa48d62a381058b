"""What detectors do on rendered people whose keypoints are known: the observations that noise tables are fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmr_prob_ros.detectors import PoseDetector
from hmr_prob_ros.skeleton import NUM_KEYPOINTS

from .noise import OUTSIDE, VISIBLE, person_scale

__all__ = ["Observations", "observe"]

SHARD = 100
MATCH = 0.35
"""Largest median error of the visible points, in person sizes, for a detection to be of the person at all."""


@dataclass
class Observations:
    """True points ``true`` (N,23,2) px with ``state`` (N,23), image ``size`` (N,2), and what the detector ``found``
    (N,23,3); rows of NaN where it found nobody."""

    true: np.ndarray
    state: np.ndarray
    size: np.ndarray
    found: np.ndarray

    @property
    def matched(self) -> np.ndarray:
        """(N,) bool: the detection is of this person."""
        return ~np.isnan(self.found[:, 0, 0])

    def __getitem__(self, rows: np.ndarray) -> Observations:
        return Observations(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def load(cls, shards: Sequence[Path], detector: str) -> Observations:
        parts = []
        for shard in shards:
            with np.load(shard, allow_pickle=False) as data:
                parts.append((data["true"], data["state"], data["size"], data[f"found_{detector}"]))
        return cls(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _poses(mocap: Sequence[Path], cache: Path, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Poses (24,3) and shapes (10,) of the training takes; a tenth of the bodies lies on the floor."""
    from hmr_prob_ros.body import Body

    from .mocap import load_mocap

    # Every frame of the training split is as likely as any other.
    motion = load_mocap([str(path) for path in mocap], Body.load(), cache).select(0)
    rng = np.random.default_rng(seed)
    for frame in rng.integers(len(motion.pose), size=count):
        pose = motion.pose[frame].copy()
        if rng.random() < 0.1:
            pose[0] = _lie_down(pose[0], rng)
        yield pose, rng.normal(size=10).clip(-2, 2).astype(np.float32)


def _lie_down(root: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import cv2

    tilt = np.array([rng.choice([-1, 1]), 0, 0]) * rng.uniform(1.2, 1.6)
    turned = cv2.Rodrigues(tilt)[0] @ cv2.Rodrigues(root.astype(np.float64))[0]
    return np.asarray(cv2.Rodrigues(turned)[0][:, 0])


def _detect(detector: PoseDetector, image: np.ndarray, true: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(23,3) keypoints of the detection that is of this person, NaN where there is none."""
    if detector.name in ("mediapipe", "blazepose"):
        # As while tracking: a blank picture loses the last person, then the region comes from the person's own points.
        if detector.detect(np.zeros_like(image)):
            detector.reset()
        detector.detect(image)
    judged = state == VISIBLE if (state == VISIBLE).sum() >= 3 else state != OUTSIDE
    scale = person_scale(true[None], image.shape[1::-1])[0]
    best, found = MATCH, np.full((NUM_KEYPOINTS, 3), np.nan, dtype=np.float32)
    for person in detector.detect(image):
        points = person.keypoints
        near = np.linalg.norm(points[:, :2] - true, axis=-1)[judged & (points[:, 2] > 0)] / scale
        if len(near) and np.median(near) < best:
            best, found = float(np.median(near)), points
    return found


def observe(
    shards: Path,
    detectors: dict[str, PoseDetector],
    mocap: Sequence[Path],
    count: int,
    seed: int,
    pictures: Path | None = None,
) -> list[Path]:
    """Render ``count`` people and let the detectors look at them; returns the shard files, old and new."""
    from .render import Renderer
    from .scenes import load_backgrounds, random_scene

    shards.mkdir(parents=True, exist_ok=True)
    poses = list(_poses(mocap, shards / "mocap.npz", count + 1, seed))
    backgrounds = load_backgrounds(pictures) if pictures else []
    files = []
    with tqdm(total=count, desc="detector noise", unit="picture", mininterval=5) as bar:
        for shard, start in enumerate(range(0, count, SHARD)):
            file = shards / f"{'_'.join(sorted(detectors))}_{seed}_{start:06d}.npz"
            files.append(file)
            rows = range(start, min(start + SHARD, count))
            if file.is_file():
                bar.update(len(rows))
                continue
            records: dict[str, list[np.ndarray]] = {}
            with Renderer(*((480, 640) if shard % 4 == 3 else (640, 480))) as renderer:  # one in four is upright
                for i in rows:
                    # Near enough for the detectors to find most people: what they do not find teaches nothing here.
                    scene = random_scene(
                        seed * 1_000_003 + i, *poses[i], renderer,
                        distance=(1.0, 5.0), fov=(50.0, 95.0), occluded=0.35, truncated=0.25,
                        others=[poses[i + 1]] if i % 8 == 0 else [], pictures=backgrounds,
                    )  # fmt: skip
                    records.setdefault("true", []).append(scene.keypoints_px)
                    records.setdefault("state", []).append(scene.state)
                    records.setdefault("size", []).append(np.array(scene.image.shape[1::-1]))
                    for name, detector in detectors.items():
                        found = _detect(detector, scene.image, scene.keypoints_px, scene.state)
                        records.setdefault(f"found_{name}", []).append(found)
                    bar.update()
            part = file.with_suffix(".part.npz")
            np.savez_compressed(part, **{key: np.stack(value) for key, value in records.items()})
            part.rename(file)
    return files
