"""Render people who cross and hide each other, with their true identities: what a tracker is judged by.

    python -m hmr_prob_ros.training.make_crossings --mocap PATH... --out FOLDER [--seeds 0 1 2 3]

Each scene is a clip (mp4) with its truth (npz) beside it: keypoints in pixels, how much of each person is seen, and
the distances. The motions are the same for every seed; clothes, shapes, room, light, side and depths are drawn anew.
Every fourth seed dresses all people alike, so that colours cannot tell them apart.
"""

from __future__ import annotations

__all__ = ["FPS", "SCENES", "Crossing", "Scene", "Person", "make_crossing", "main", "walking_cycle"]

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.video import VideoError, VideoWriter, require_h264

from .data.mocap import Mocap, load_mocap
from .data.render import BodyMesh, Renderer, RenderError, Solid, box
from .data.retarget import MocapError
from .data.rooms import random_colour, random_outfit, random_room
from .data.rotations import axis_angle_to_matrix
from .data.scenes import HIDDEN_BY_OBJECT, keypoint_states, look_at, place_body, random_light

FPS = 30

Person = tuple[tuple[float, float, float], ...]
"""Corners of a way on the floor: (seconds, metres to the right, metres away from the camera)."""


@dataclass(frozen=True)
class Scene:
    """Who walks where, for how many seconds, and whether a cupboard stands in the middle."""

    seconds: float
    people: tuple[Person, ...]
    cupboard: bool = False


SCENES: dict[str, Scene] = {
    "pass": Scene(4.0, (((0, -1.5, 2.9), (4, 2.4, 2.9)), ((0, 2.2, 4.1), (4, -2.2, 4.1)))),
    "wait": Scene(
        5.5,
        (
            ((0, -1.4, 2.7), (1.3, 0, 2.7), (4.2, 0, 2.7), (5.5, 1.4, 2.7)),
            ((0, 2.0, 4.0), (1.9, 0, 4.0), (2.7, 0, 4.0), (4.7, -2.0, 4.0), (5.5, -2.3, 4.0)),
        ),
    ),
    "return": Scene(
        5.5,
        (
            ((0, 0, 2.7), (4.4, 0, 2.7), (5.5, -1.3, 2.7)),
            ((0, 2.0, 4.0), (1.9, 0, 4.0), (2.7, 0, 4.0), (4.7, 2.0, 4.0), (5.5, 2.3, 4.0)),
        ),
    ),
    "cupboard": Scene(
        5.0,
        (((0, -2.0, 3.4), (5, 2.2, 3.4)), ((0, 2.4, 4.4), (5, -2.4, 4.4))),
        cupboard=True,
    ),
    "hide": Scene(
        5.5,
        (
            ((0, -1.8, 3.3), (1.6, 0, 3.3), (2.6, 0, 3.3), (4.2, -1.8, 3.3), (5.5, -2.0, 3.3)),
            ((0, 2.4, 4.6), (5.5, -2.0, 4.6)),
        ),
        cupboard=True,
    ),
    "three": Scene(
        5.5,
        (
            ((0, -1.4, 2.7), (2.2, 0.9, 2.7), (3.2, 0.9, 2.7), (5.5, -1.3, 2.7)),
            ((0, 2.0, 3.6), (5.5, -2.0, 3.6)),
            ((0, -2.4, 4.6), (5.5, 2.4, 4.6)),
        ),
    ),
}
"""Two who pass; one who waits a second behind another and goes on, or turns back; two who pass behind a cupboard; one
who hides behind it for a second and comes back where he went while another passes; three at three depths."""


@dataclass(frozen=True)
class Crossing:
    """A rendered scene of T frames with P people.

    Args:
        images: T pictures (H, W, 3) uint8 RGB.
        camera: their intrinsics.
        keypoints: (T, P, 23, 2) true surface keypoints in pixels.
        state: (T, P, 23) int8, 0 visible; see :func:`~hmr_prob_ros.training.data.scenes.keypoint_states`.
        distance: (T, P) metres of the pelvis along the optical axis.
    """

    images: list[np.ndarray]
    camera: Camera
    keypoints: np.ndarray
    state: np.ndarray
    distance: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """(T, P) share of each person's keypoints that neither another thing nor the picture's border hides."""
        return (self.state < HIDDEN_BY_OBJECT).mean(axis=-1)


def walking_cycle(mocap: Mocap, clip: str = "") -> np.ndarray:
    """(T, 24, 3, 3) rotations of a recorded walk, turned so that it always faces +z; of the first clip by default.

    Raises:
        ValueError: the motion capture has no such recording.
    """
    clip = clip or mocap.clips[0]
    if clip not in mocap.clips:
        raise ValueError(f"the motion capture has no recording {clip!r}: it has {', '.join(mocap.clips[:8])}")
    rotations = axis_angle_to_matrix(mocap.pose[mocap.clip == mocap.clips.index(clip)].astype(np.float64))
    forward = rotations[:, 0, :, 2]
    rotations[:, 0] = _about_y(-np.arctan2(forward[:, 0], forward[:, 2])) @ rotations[:, 0]
    return rotations


def _about_y(angle: np.ndarray) -> np.ndarray:
    vector = np.zeros((len(angle), 3))
    vector[:, 1] = angle
    return axis_angle_to_matrix(vector)


def _smooth(values: np.ndarray, frames: int) -> np.ndarray:
    """Mean over ``frames`` (odd) frames of (T, d) values."""
    half = frames // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, np.ones(frames) / frames, mode="valid") for column in padded.T], axis=1)


def _walk(cycle: np.ndarray, person: Person, seconds: float, fps: int, phase: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (T, 24, 3, 3) and floor positions (T, 2) of somebody on their way, facing where they go."""
    at, *corners = np.array(person, dtype=np.float64).T
    time = np.arange(round(seconds * fps)) / fps
    floor = _smooth(np.stack([np.interp(time, at, corner) for corner in corners], axis=1), fps // 3 | 1)
    speed = np.gradient(floor, 1 / fps, axis=0)
    moving = np.linalg.norm(speed, axis=1, keepdims=True) > 0.15
    # Standing people look where they went; nobody turns in less than half a second.
    facing = np.where(moving, speed, 0.0)
    last = np.maximum.accumulate(np.where(moving[:, 0], np.arange(len(time)), 0))
    facing = _smooth(facing[last] + (0.0, -1e-3), fps // 2 | 1)
    gait = np.cumsum(np.linalg.norm(speed, axis=1)) / fps / 1.25  # seconds of a walk at 1.25 m/s
    rotations = cycle[(np.rint(gait * 30).astype(int) + phase) % len(cycle)].copy()
    rotations[:, 0] = _about_y(np.arctan2(facing[:, 0], -facing[:, 1])) @ rotations[:, 0]
    return rotations, floor


def make_crossing(
    scene: Scene, cycle: np.ndarray, body: Body, seed: int = 0, size: tuple[int, int] = (640, 480), fps: int = FPS
) -> Crossing:
    """Render a scene.

    Args:
        scene: the ways of the people.
        cycle: (T, 24, 3, 3) a walk at 30 Hz, :func:`walking_cycle`.
        body: the body of all people; their shapes differ.
        seed: of everything but the ways; every fourth one dresses all alike.
        size: width and height in pixels.
        fps: frames a second.

    Raises:
        RenderError: moderngl or EGL is missing.
    """
    rng = np.random.default_rng(seed)
    camera = Camera.from_fov(*size, 65.0)
    eye = np.array([0.0, rng.uniform(0.8, 1.4), 0.0])
    view = look_at(eye, np.array([0.0, 0.9, -3.3]))
    side, farther = rng.choice([-1.0, 1.0]), rng.uniform(-0.1, 0.25)
    solids = random_room(rng, eye, np.array([0.0, 0.9, -6.5]))
    if scene.cupboard:
        wood = random_colour(rng, 0.1, 0.6)
        solids.insert(0, Solid(box((0.0, 1.05, -2.3), (0.7, 2.1, 0.4)), wood, style=3, scale=1.3, occluder=True))
    outfits = [random_outfit(rng) for _ in scene.people]
    if seed % 4 == 3:
        outfits = outfits[:1] * len(outfits)
    shapes = rng.normal(0, 0.7, (len(scene.people), 10)).astype(np.float32)
    light = random_light(rng)
    walks = [_walk(cycle, way, scene.seconds, fps, int(rng.integers(len(cycle)))) for way in scene.people]
    images, kept = [], []
    with Renderer(*size, body) as renderer:
        for t in range(len(walks[0][0])):
            meshes, points, away = [], [], []
            for (rotations, floor), betas, outfit in zip(walks, shapes, outfits, strict=True):
                ground = np.asarray(body.vertices(rotations[t].astype(np.float32), betas, np.zeros(3, np.float32)))
                offset = np.array([side * floor[t, 0], -ground[:, 1].min(), -floor[t, 1] - farther])
                turned = rotations[t].copy()
                if side < 0:
                    turned[0] = np.diag([-1.0, 1.0, 1.0]) @ turned[0] @ np.diag([-1.0, 1.0, 1.0])
                _, _, joints, vertices, keypoints3d = place_body(body, turned, betas, offset, view)
                meshes.append(BodyMesh(vertices, outfit))
                points.append(keypoints3d)
                away.append(joints[0, 2])
            frame = renderer.render(camera, meshes, solids, view, light)
            state = [keypoint_states(frame, camera, k, renderer.reach, p) for p, k in enumerate(points)]
            images.append(np.clip(frame.image + rng.normal(0, 2.0, frame.image.shape), 0, 255).astype(np.uint8))
            kept.append((np.stack([camera.project(k) for k in points]), np.stack(state), away))
    keypoints, states, distance = (np.asarray(values) for values in zip(*kept, strict=True))
    return Crossing(images, camera, keypoints.astype(np.float32), states, distance)


def main(arguments: Sequence[str] | None = None) -> int:
    """Render the scenes and write them with their truths."""
    parser = argparse.ArgumentParser(prog="python -m hmr_prob_ros.training.make_crossings", description=__doc__)
    parser.add_argument("--mocap", nargs="+", required=True, help="folders or files of motion capture")
    parser.add_argument("--recording", default="", help="the walk to use (default: the first recording)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips and their truths")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), help="which (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="(default: 0 to 3)")
    options = parser.parse_args(arguments)
    try:
        _make(options)
    except (MocapError, RenderError, ValueError, VideoError) as error:
        print(f"make_crossings: {error}", file=sys.stderr)
        return 1
    return 0


def _make(options: argparse.Namespace) -> None:
    require_h264()
    body = Body.load()
    cycle = walking_cycle(load_mocap(options.mocap, body, progress=False), options.recording)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for name in options.scenes for seed in options.seeds]
    for name, seed in tqdm(jobs, desc="rendering", unit="scene"):
        made = make_crossing(SCENES[name], cycle, body, seed)
        path = options.out / f"{name}_{seed}.mp4"
        with VideoWriter(path, (made.camera.width, made.camera.height), FPS, crf=16) as clip:
            for number, image in enumerate(made.images):
                clip.write(image, number / FPS)
        np.savez_compressed(
            path.with_suffix(".npz"),
            fps=np.asarray(FPS),
            focal=np.asarray(made.camera.fx),
            keypoints=made.keypoints,
            state=made.state,
            distance=made.distance,
        )
        hidden = (made.seen < 0.1).sum(axis=0) / FPS
        print(f"{path}: {len(made.images)} frames; hidden for {', '.join(f'{s:.1f}' for s in hidden)} s")


if __name__ == "__main__":
    raise SystemExit(main())
