"""Make the bundled demo clip: a person walks into a room, stops behind a table that hides the legs, signals, walks on.

    python -m hmr_prob_ros.training.make_clip --mocap PATH... --out hmr_prob_ros/assets/demo_clip.mp4

Motion capture drives the package's own body; the camera is a robot's, one metre above the floor. Beside the clip stand
its ``camera_info`` yaml and the true joints (``*_truth.npz``), so that everybody can state the error on it.
"""

from __future__ import annotations

__all__ = ["Part", "Walk", "join", "main", "plant", "truth_of"]

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.skeleton import JOINT_NAMES
from hmr_prob_ros.video import VideoError, VideoWriter, require_h264

from .data.mocap import SPLITS, Mocap, load_mocap
from .data.outfits import Outfit
from .data.render import BodyMesh, Light, Renderer, RenderError, Solid, box, quad
from .data.retarget import MocapError
from .data.rooms import table
from .data.rotations import axis_angle_to_matrix, interpolate
from .data.scenes import keypoint_states, look_at, place_body

FPS = 30
BLEND = 10
"""Frames over which one piece of motion passes into the next."""

_FEET = tuple(JOINT_NAMES.index(f"{side}_{name}") for side in ("left", "right") for name in ("ankle", "foot"))


@dataclass(frozen=True)
class Part:
    """Frames ``start`` to ``stop`` of one recording."""

    clip: str
    start: int
    stop: int


@dataclass(frozen=True)
class Walk:
    """A motion in the world: ``rotations`` (T, 24, 3, 3), root body to world, and ``offset`` (T, 3) of the body."""

    rotations: np.ndarray
    offset: np.ndarray


PARTS = (
    Part("cc_007_04", 0, 75),
    Part("exp_train_basketball_signal_5", 560, 655),
    Part("cc_007_04", 25, 75),
    Part("exp_train_basketball_signal_5", 90, 205),
)
"""A slow walk, a referee's signals, and both again; they meet just after a foot has landed."""

HEADING = ((0, 84.0), (40, 78.0), (72, 15.0), (145, 15.0), (168, 82.0), (180, 70.0), (205, -8.0))
"""(frame, degrees) of the way the person faces: 0 to the camera, 90 to the image's right."""


def _turn(degrees: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) about the world's y axis."""
    vector = np.zeros((len(degrees), 3))
    vector[:, 1] = np.radians(degrees)
    return axis_angle_to_matrix(vector)


def join(mocap: Mocap, parts: Sequence[Part], heading: Sequence[tuple[float, float]]) -> np.ndarray:
    """Recordings one after another, blended over ``BLEND`` frames, each turned to heading 0, then along a course.

    Returns:
        (T, 24, 3, 3) rotations, the root's from body to world (y up).

    Raises:
        ValueError: a recording is not in the motion capture, or too short.
    """
    out = np.zeros((0, 24, 3, 3))
    for part in parts:
        if part.clip not in mocap.clips:
            raise ValueError(f"the motion capture has no recording {part.clip!r}: give the folder of its index.json")
        frames = mocap.pose[mocap.clip == mocap.clips.index(part.clip)][part.start : part.stop]
        if len(frames) < part.stop - part.start:
            raise ValueError(f"{part.clip} ends at frame {part.start + len(frames)}, but {part.stop} is asked for")
        rotations = axis_angle_to_matrix(frames.astype(np.float64))
        forward = rotations[:, 0, :, 2].mean(axis=0)
        rotations[:, 0] = _turn(np.array([-np.degrees(np.arctan2(forward[0], forward[2]))])) @ rotations[:, 0]
        if len(out):
            weight = np.linspace(0, 1, BLEND + 2)[1:-1]
            weight = (weight**2 * (3 - 2 * weight))[:, None]
            mixed = interpolate(out[-BLEND:], rotations[:BLEND], np.broadcast_to(weight, (BLEND, 24)))
            out = np.concatenate([out[:-BLEND], mixed, rotations[BLEND:]])
        else:
            out = rotations
    at, degrees = np.array(heading, dtype=np.float64).T
    course = np.interp(np.arange(len(out)), at, degrees)
    course = np.convolve(np.pad(course, 10, mode="edge"), np.ones(21) / 21, mode="valid")
    out[:, 0] = _turn(course) @ out[:, 0]
    return out


def plant(body: Body, rotations: np.ndarray, betas: np.ndarray, end: np.ndarray, end_frame: int) -> tuple[Walk, float]:
    """Move a body so that what touches the floor does not slide: the root follows from the feet.

    From each frame to the next, the soles' vertices weighted by their nearness to the floor must on average stay where
    they are; the lowest vertex lies on the floor. That holds for any body, unlike a root recorded from another one.

    Args:
        rotations: (T, 24, 3, 3) root body to world.
        betas: (10,) shape.
        end: (2,) x, z in the world where the pelvis stands at ``end_frame``.

    Returns:
        The walk, and the speed in m/s of the vertices that touch the floor (median over the frames).
    """
    soles = np.asarray(body.weights)[:, list(_FEET)].sum(axis=1) > 0.5
    still = np.zeros(3, np.float32)
    shape = np.asarray(betas, np.float32)
    feet = np.stack([np.asarray(body.vertices(r.astype(np.float32), shape, still))[soles] for r in rotations])
    feet = feet.astype(np.float64)
    height = -feet[..., 1].min(axis=1)
    feet[..., 1] += height[:, None]
    offset = np.zeros((len(rotations), 3))
    offset[:, 1] = height
    slip = []
    for t in range(1, len(rotations)):
        weight = np.exp(-(feet[t, :, 1] + feet[t - 1, :, 1]) / 0.008)[:, None]
        step = feet[t, :, [0, 2]].T - feet[t - 1, :, [0, 2]].T
        mean = (weight * step).sum(axis=0) / weight.sum()
        offset[t, [0, 2]] = offset[t - 1, [0, 2]] - mean
        slip.append(float((weight * (step - mean) ** 2).sum() / weight.sum()))
    pelvis = np.asarray(body.rest_joints(shape))[0]
    offset[:, [0, 2]] += end - (offset[end_frame, [0, 2]] + pelvis[[0, 2]])
    return Walk(rotations, offset), float(np.sqrt(np.median(slip)) * FPS)


def _room() -> list[Solid]:
    """The room: the camera looks along -z from the origin; what is nearest comes first."""
    wood, pale = (0.36, 0.22, 0.12), (0.62, 0.60, 0.55)
    wall_z, side_x, height = -6.0, -3.6, 2.7
    shelf = [
        box((1.9, 0.95, wall_z + 0.2), (1.1, 0.03, 0.34)),
        *(box((1.9, y, wall_z + 0.2), (1.1, 0.03, 0.34)) for y in (0.1, 0.52, 1.4, 1.85)),
        *(box((1.9 + s * 0.55, 0.95, wall_z + 0.2), (0.03, 1.9, 0.36)) for s in (-1, 1)),
    ]
    rng = np.random.default_rng(4)
    books = []
    for level in (0.115, 0.535, 0.965, 1.415):
        x = 1.40
        while x < 2.3:
            w, h = rng.uniform(0.025, 0.07), rng.uniform(0.2, 0.33)
            colour = tuple(float(v) for v in rng.uniform(0.04, 0.45, 3))
            if rng.uniform() < 0.75:
                place = (x + w / 2, level + h / 2, wall_z + 0.2)
                books.append(Solid(box(place, (w, h, 0.22)), colour))  # type: ignore[arg-type]
            x += w + 0.004
    return [
        table((-0.35, 0.0, -2.6), (1.3, 0.78, 0.65), 0.05, wood, modesty=0.8),
        Solid(box((-0.78, 0.86, -2.6), (0.22, 0.16, 0.18), 0.3), (0.55, 0.42, 0.25), style=1, occluder=True),
        *books,
        Solid(np.concatenate(shelf), wood, style=3, scale=1.3),
        Solid(
            quad((-1.5, 1.2, wall_z + 0.02), (1.1, 0, 0), (0, 0.8, 0)), (0.10, 0.25, 0.35), (0.75, 0.62, 0.40), 6, 0.8
        ),
        Solid(quad((-1.55, 1.15, wall_z + 0.01), (1.2, 0, 0), (0, 0.9, 0)), (0.05, 0.04, 0.03)),
        Solid(quad((side_x + 0.02, 0, -4.1), (0, 0, -0.95), (0, 2.1, 0)), (0.42, 0.36, 0.28), style=3, scale=2.0),
        Solid(box((3.1, 0.3, -4.7), (0.6, 0.6, 0.6), 0.4), (0.5, 0.36, 0.2), style=3, scale=1.0),
        Solid(quad((-6, 0, wall_z), (12, 0, 0), (0, height, 0)), pale, (0.55, 0.54, 0.5), 1, 2.0),
        Solid(quad((side_x, 0, 1), (0, 0, -8), (0, height, 0)), (0.50, 0.56, 0.58), (0.46, 0.52, 0.55), 1, 2.0),
        Solid(quad((3.9, 0, wall_z), (0, 0, 8), (0, height, 0)), (0.55, 0.55, 0.52)),
        Solid(quad((-6, 0, wall_z), (12, 0, 0), (0, 0, 8)), (0.45, 0.32, 0.20), style=3, scale=1.1, gloss=0.06),
        Solid(quad((-6, height, 1), (12, 0, 0), (0, 0, -8)), (0.7, 0.7, 0.68)),
    ]


OUTFIT = Outfit(
    skin=(0.52, 0.33, 0.24),
    hair=(0.04, 0.025, 0.015),
    shirt=(0.05, 0.30, 0.34),
    shirt2=(0.75, 0.72, 0.65),
    trousers=(0.045, 0.06, 0.13),
    trousers2=(0.08, 0.05, 0.03),
    shoes=(0.45, 0.43, 0.40),
    sleeve=0.42,
    shirt_style=4,
    hair_line=0.35,
    seed=11.0,
)


def truth_of(frames: dict[str, list[np.ndarray]], parts: Sequence[Part], mocap: Mocap) -> dict[str, np.ndarray]:
    """Arrays of the truth file: float16 metres in the optical frame, states of the keypoints, and the recordings."""
    splits = [SPLITS[int(mocap.split[mocap.clip == mocap.clips.index(p.clip)][0])] for p in parts]
    return {
        "format": np.asarray("hmr_prob_ros/truth"),
        "fps": np.asarray(FPS),
        "joints": np.stack(frames["joints"]).astype(np.float16),
        "keypoints3d": np.stack(frames["keypoints3d"]).astype(np.float16),
        "state": np.stack(frames["state"]).astype(np.uint8),
        "recordings": np.asarray([p.clip for p in parts]),
        "splits": np.asarray(splits),
    }


def _camera_info(camera: Camera) -> str:
    """The camera as ROS' camera_calibration writes it."""
    f, g, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy

    def matrix(rows: int, cols: int, data: list[float]) -> dict[str, Any]:
        return {"rows": rows, "cols": cols, "data": [round(v, 6) for v in data]}

    return yaml.safe_dump(
        {
            "image_width": camera.width,
            "image_height": camera.height,
            "camera_name": "demo_clip",
            "camera_matrix": matrix(3, 3, [f, 0.0, cx, 0.0, g, cy, 0.0, 0.0, 1.0]),
            "distortion_model": "plumb_bob",
            "distortion_coefficients": matrix(1, 5, [0.0] * 5),
            "rectification_matrix": matrix(3, 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
            "projection_matrix": matrix(3, 4, [f, 0.0, cx, 0.0, 0.0, g, cy, 0.0, 0.0, 0.0, 1.0, 0.0]),
        },
        sort_keys=False,
        default_flow_style=None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Render the clip and write it with its camera and its truth."""
    parser = argparse.ArgumentParser(prog="python -m hmr_prob_ros.training.make_clip", description=__doc__)
    parser.add_argument("--mocap", nargs="+", required=True, help="folders or files of motion capture")
    parser.add_argument("--cache", type=Path, help="motion cache (npz), made where it does not exist")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_clip.mp4"), help="the clip; its yaml and npz stand beside it"
    )
    parser.add_argument("--fov", type=float, default=65.0, help="horizontal field of view, degrees")
    parser.add_argument("--height", type=float, default=1.0, help="camera above the floor, metres")
    parser.add_argument("--crf", type=int, default=20, help="H.264 quality, lower is better")
    options = parser.parse_args(arguments)
    try:
        _make(options)
    except (MocapError, RenderError, ValueError, VideoError) as error:
        print(f"make_clip: {error}", file=sys.stderr)
        return 1
    return 0


def _make(options: argparse.Namespace) -> None:
    require_h264()
    body = Body.load()
    mocap = load_mocap(options.mocap, body, options.cache)
    betas = np.array([0.4, -0.5, 0.3, 0, 0, 0, 0, 0, 0, 0], np.float32)
    rotations = join(mocap, PARTS, HEADING)
    walk, slip = plant(body, rotations, betas, np.array([-0.3, -3.35]), 110)
    camera = Camera.from_fov(640, 480, options.fov)
    eye = np.array([0.0, options.height, 0.0])
    view = look_at(eye, eye + (0.0, -0.035, -1.0))
    room, rng = _room(), np.random.default_rng(0)
    light = Light((-0.45, 1.0, 0.75), (0.80, 0.77, 0.72), (0.42, 0.43, 0.46))
    kept: dict[str, list[np.ndarray]] = {"joints": [], "keypoints3d": [], "state": []}
    size = camera.width, camera.height
    with (
        Renderer(*size, body) as renderer,
        VideoWriter(options.out, size, FPS, crf=options.crf, preset="slow") as clip,
    ):
        for rotation, offset in zip(tqdm(walk.rotations, desc="rendering", unit="frame"), walk.offset):
            _, _, joints, vertices, keypoints3d = place_body(body, rotation, betas, offset, view)
            frame = renderer.render(camera, [BodyMesh(vertices, OUTFIT)], room, view, light)
            kept["joints"].append(joints)
            kept["keypoints3d"].append(keypoints3d)
            kept["state"].append(keypoint_states(frame, camera, keypoints3d, renderer.reach))
            noisy = frame.image + rng.normal(0, 1.0, frame.image.shape)
            clip.write(np.clip(noisy, 0, 255).astype(np.uint8), (len(kept["state"]) - 1) / FPS)
    options.out.with_suffix(".yaml").write_text(_camera_info(camera))
    truth = options.out.with_name(f"{options.out.stem}_truth.npz")
    np.savez_compressed(truth, **truth_of(kept, PARTS, mocap))  # type: ignore[arg-type]
    size = options.out.stat().st_size / 1e6
    state = np.stack(kept["state"])
    print(
        f"{options.out}: {len(state)} frames, {len(state) / FPS:.1f} s, {size:.2f} MB; soles on the floor move "
        f"{100 * slip:.1f} cm/s; {(state == 0).mean():.0%} of the keypoints visible, {(state == 2).mean():.0%} hidden"
    )


if __name__ == "__main__":
    raise SystemExit(main())
