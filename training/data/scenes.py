"""Random scenes round a person: a room, a camera as robots carry them, a picture, and what hides what in it."""

from __future__ import annotations

__all__ = [
    "HIDDEN_BY_OBJECT",
    "HIDDEN_BY_SELF",
    "OUTSIDE",
    "VISIBLE",
    "RenderedScene",
    "backdrop",
    "develop",
    "keypoint_states",
    "load_backgrounds",
    "look_at",
    "place_body",
    "random_light",
    "random_scene",
]

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera

from .render import PERSON_ID, BodyMesh, Frame, Light, Renderer, Solid, quad
from .rooms import load_backgrounds, random_colour, random_occluder, random_outfit, random_room
from .rotations import axis_angle_to_matrix

VISIBLE, HIDDEN_BY_SELF, HIDDEN_BY_OBJECT, OUTSIDE = 0, 1, 2, 3
"""States of a keypoint in a picture."""

TOLERANCE = 0.03
"""Metres that a surface may lie in front of a keypoint, beyond the keypoint's own depth under the skin."""


@dataclass(frozen=True)
class RenderedScene:
    """A picture of a person with everything that is known about it; points in metres in the optical frame.

    Args:
        image: (H, W, 3) uint8 RGB.
        camera: its intrinsics.
        keypoints_px: (23, 2) true surface keypoints in pixels.
        keypoints3d: (23, 3).
        joints: (24, 3).
        state: (23,) int8, 0 visible, 1 hidden by the person, 2 by an object or another person, 3 outside.
        mask: (H, W) bool, pixels that show the person.
        box: (4,) left, top, right, bottom in pixels round all keypoints, also those outside the image.
        rotations: (24, 3, 3) local rotations, the root's from body to camera axes.
        betas: (10,) shape.
        translation: (3,) SMPL's translation.
        depth: (H, W) metres along the optical axis, 0 where nothing was drawn.
    """

    image: np.ndarray
    camera: Camera
    keypoints_px: np.ndarray
    keypoints3d: np.ndarray
    joints: np.ndarray
    state: np.ndarray
    mask: np.ndarray
    box: np.ndarray
    rotations: np.ndarray
    betas: np.ndarray
    translation: np.ndarray
    depth: np.ndarray


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3, 3) and translation (3,) from the world (y up) to the optical frame of a camera at ``eye``."""
    forward = np.asarray(target, dtype=np.float64) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    c, s = np.cos(roll), np.sin(roll)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ rotation
    return rotation, -rotation @ np.asarray(eye, dtype=np.float64)


def keypoint_states(
    frame: Frame, camera: Camera, keypoints3d: np.ndarray, reach: np.ndarray | float, person: int = 0
) -> np.ndarray:
    """State (K,) int8 of each keypoint of one person: visible, hidden by itself, hidden by another thing, or outside.

    Args:
        frame: the rendered picture with its depth.
        keypoints3d: (K, 3) metres in the optical frame.
        reach: (K,) or scalar depth of the keypoints under the skin, ``Renderer.reach``.
        person: index of the person in the picture.
    """
    pixels = camera.project(keypoints3d)
    inside = (
        (keypoints3d[:, 2] > 0.05) & (pixels >= 0).all(axis=1) & (pixels < (camera.width, camera.height)).all(axis=1)
    )
    column, row = np.where(inside[:, None], pixels, 0).astype(int).T
    depth, identity = frame.depth[row, column], frame.identity[row, column]
    own = identity == int(PERSON_ID) + person
    # Another thing hides a point as soon as it lies before it, one's own body only beyond the depth under the skin.
    margin = np.where(own, np.asarray(reach) + TOLERANCE, 0.0)
    hidden = (depth > 0) & (depth < keypoints3d[:, 2] - margin) & (identity != 0)
    state = np.where(hidden, np.where(own, HIDDEN_BY_SELF, HIDDEN_BY_OBJECT), VISIBLE)
    return np.where(inside, state, OUTSIDE).astype(np.int8)


def develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a robot's camera does to a picture: blur, exposure, white balance, noise and JPEG."""
    out = image.astype(np.float32)
    if rng.uniform() < 0.5:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.3)))
    out *= rng.uniform(0.8, 1.25) * rng.normal(1.0, 0.04, size=3).astype(np.float32)
    noise = rng.standard_normal(out.shape, dtype=np.float32)
    out = np.clip(out + np.float32(rng.uniform(1.0, 9.0)) * noise, 0, 255).astype(np.uint8)
    quality = int(rng.integers(45, 96))
    _, packed = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1])


def _aim(
    rng: np.random.Generator, camera: Camera, eye: np.ndarray, target: np.ndarray, top: float, truncated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A view of a person about ``target`` somewhere in the picture; truncated ones reach over its border."""
    roll = float(rng.normal(0, 0.03))
    half = np.array([camera.width / camera.fx, camera.height / camera.fy]) / 2  # of the image, in ray units
    away = float(np.linalg.norm(target - eye))
    person = np.array([0.25, 0.5]) * top / away
    free = np.maximum(half - person, 0.05)  # how far the person's middle may lie from the image's
    for _ in range(50):
        shift = rng.uniform(-1, 1, size=2) * (np.minimum(half, free + person) if truncated else free) * 0.95
        rotation, _ = look_at(eye, target, roll)
        aim = target - (rotation.T @ np.array([*shift, 0.0])) * away
        view = look_at(eye, aim, roll)
        middle = view[0] @ target + view[1]
        at = np.abs(middle[:2] / middle[2])
        if middle[2] > 0.2 and (at < half).all() and ((at > free).any() or not truncated):
            return view
    return look_at(eye, target, roll)


def backdrop(picture: np.ndarray, camera: Camera, view: tuple[np.ndarray, np.ndarray], reach: float = 30.0) -> Solid:
    """A picture ``reach`` metres away that fills the camera's image, in place of a room."""
    corner = np.array([-camera.cx / camera.fx, (camera.height - camera.cy) / camera.fy, 1.0]) * reach
    span = np.array([camera.width / camera.fx, camera.height / camera.fy]) * reach
    back = view[0].T
    plane = quad(back @ (corner - view[1]), back @ [span[0], 0, 0], back @ [0, -span[1], 0])
    plane[:, 6] *= span[1] / span[0]  # the texture fills the plane once
    return Solid(plane, style=7, scale=float(span[1]), picture=picture)


def random_light(rng: np.random.Generator) -> Light:
    """A light from above, warm or cold, soft or hard."""
    warm = rng.normal(0, 0.05)
    strength, fill = rng.uniform(0.4, 1.0), rng.uniform(0.35, 0.7)
    return Light(
        (float(rng.normal(0, 0.7)), 1.0, float(rng.normal(0, 0.7))),
        (strength * (1 + warm), strength, strength * (1 - warm)),
        (fill, fill, fill * 1.05),
        shadows=bool(rng.uniform() < 0.7),
    )


_SHARED: dict[tuple[int, int], Renderer] = {}


def random_scene(
    seed: int,
    pose: np.ndarray,
    betas: np.ndarray,
    renderer: Renderer | None = None,
    *,
    distance: tuple[float, float] = (1.5, 6.0),
    fov: tuple[float, float] = (50.0, 100.0),
    height: tuple[float, float] = (0.3, 2.0),
    occluded: float = 0.3,
    truncated: float = 0.15,
    others: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    pictures: Sequence[np.ndarray] = (),
    lift: float = 0.0,
) -> RenderedScene:
    """A person in a random room, dressed at random, seen by a random robot's camera; the same for the same arguments.

    Args:
        seed: of everything that is random.
        pose: (24, 3) axis-angle, the root from body to world (y up); a random turn about the vertical is added.
        betas: (10,) shape.
        renderer: an open renderer; one of 640x480 is kept for the process when left out.
        distance, fov, height: ranges of the camera's distance to the person (m), horizontal field of view (degrees) and
            height above the floor (m).
        occluded: probability that an object stands between camera and person.
        truncated: probability that the camera aims past the person, so that the image's border cuts it.
        others: poses and shapes of people standing about.
        pictures: backgrounds, see :func:`load_backgrounds`.
        lift: height of the lowest point of the body above the floor (m).
    """
    if renderer is None:
        if (640, 480) not in _SHARED:
            _SHARED[640, 480] = Renderer(640, 480)
        renderer = _SHARED[640, 480]
    rng, body = np.random.default_rng(seed), renderer.body
    width, tall = renderer.width, renderer.height
    camera = Camera.from_fov(width, tall, float(rng.uniform(*fov)))
    yaw = rng.uniform(-np.pi, np.pi)
    away = float(np.exp(rng.uniform(*np.log(distance))))
    eye = np.array([away * np.sin(yaw), rng.uniform(*height), away * np.cos(yaw)])
    local = axis_angle_to_matrix(np.asarray(pose, dtype=np.float64))
    stand = body.vertices(local.astype(np.float32), np.asarray(betas, np.float32), np.zeros(3, np.float32))
    centre = np.array([stand[:, 0].mean(), 0.0, stand[:, 2].mean()])
    top = float(stand[:, 1].max() - stand[:, 1].min())
    target = np.array([0.0, rng.uniform(0.35, 0.65) * top + lift, 0.0])
    view = _aim(rng, camera, eye, target, top, rng.uniform() < truncated)
    offset = np.array([0.0, lift - stand[:, 1].min(), 0.0]) - centre
    posed = place_body(body, local, betas, offset, view)
    people = [BodyMesh(posed[3], random_outfit(rng))]
    for other_pose, other_betas in others:
        other = axis_angle_to_matrix(np.asarray(other_pose, dtype=np.float64))
        mesh = body.vertices(other.astype(np.float32), np.asarray(other_betas, np.float32), np.zeros(3, np.float32))
        bearing, radius = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 2.0)
        shift = np.array([radius * np.sin(bearing), -mesh[:, 1].min(), radius * np.cos(bearing)])
        people.append(BodyMesh(place_body(body, other, other_betas, shift, view)[3], random_outfit(rng)))
    solids = random_room(rng, eye, target, pictures)
    if pictures and rng.uniform() < 0.15:  # a picture far away instead of a room
        solids = [backdrop(pictures[rng.integers(len(pictures))], camera, view)]
    if rng.uniform() < occluded:
        solids = [
            random_occluder(rng, eye, target, pictures) for _ in range(rng.choice([1, 2], p=[0.75, 0.25]))
        ] + solids
    light = random_light(rng)
    frame = renderer.render(camera, people, solids, view, light, random_colour(rng, 0.1, 0.8))
    rotations, translation, joints, _, keypoints3d = posed
    pixels = camera.project(keypoints3d)
    return RenderedScene(
        image=develop(rng, frame.image),
        camera=camera,
        keypoints_px=pixels,
        keypoints3d=keypoints3d,
        joints=joints,
        state=keypoint_states(frame, camera, keypoints3d, renderer.reach),
        mask=frame.identity == int(PERSON_ID),
        box=np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]).astype(np.float32),
        rotations=rotations,
        betas=np.asarray(betas, dtype=np.float32),
        translation=translation,
        depth=frame.depth,
    )


def place_body(
    body: Body, rotations: np.ndarray, betas: np.ndarray, offset: np.ndarray, view: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rotations, translation, joints, vertices, keypoints in the optical frame of a body placed in the world."""
    betas = np.asarray(betas, dtype=np.float32)
    turned = np.array(rotations, dtype=np.float32)
    turned[0] = view[0] @ rotations[0]
    # SMPL turns about the rest pelvis, so the pelvis in the camera frame fixes the translation.
    pelvis = np.asarray(body.rest_joints(betas))[0]
    translation = (view[0] @ (pelvis + offset) + view[1] - pelvis).astype(np.float32)
    return (
        turned,
        translation,
        np.asarray(body.joints(turned, betas, translation)),
        np.asarray(body.vertices(turned, betas, translation)),
        np.asarray(body.keypoints(turned, betas, translation)),
    )
