"""Rendered people for shards: a posed, dressed body before a robot's camera, drawn only where it stands in the picture.

The camera, its distance and its aim are those of ``views.look``, as for synthetic keypoints. Only a square round the
person is drawn, with the principal point moved accordingly, which gives the same pixels as the whole picture would.
"""

from __future__ import annotations

__all__ = ["KINDS", "OCCLUSIONS", "RENDER_SIZE", "SHARES", "People", "choose_kind", "picture_border", "render_person"]

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from hmr_prob_ros.camera import Camera

from .annotations import cut_rectangles
from .heatmap_detectors import Window
from .noise import OUTSIDE
from .render import PERSON_ID, BodyMesh, Frame, Renderer
from .rooms import random_colour, random_occluder, random_outfit, random_room
from .rotations import axis_angle_to_matrix
from .scenes import backdrop, develop, keypoint_states, random_light
from .sights import MIN_SEEN, Sight
from .views import BIGGS_GROUPS, BIGGS_SHARES, CameraRange, look
from .widen import mirror

KINDS = ("none", "biggs", "truncation", "objects")
OCCLUSIONS = ("mixed", *KINDS)
SHARES = {"biggs": 0.25, "truncation": 0.2, "objects": 0.25}
"""Of ``mixed``; the rest stands as it comes. Bodies hide themselves, and pictures cut them, in all kinds but ``none``,
where the whole body is in the picture."""

RENDER_SIZE = 320
"""Side of the drawn square in pixels; the person is about 230 of them high, a detector's input 200."""

_MARGIN = 1.12  # side of the drawn square over the longer side of the detector's padded box
_MIN_PIXELS = 24  # of the camera's image, longer side of the person in the picture


@dataclass
class People:
    """Where poses come from.

    Args:
        pose: (P, 24, 3) axis-angle, the root's from body to world (y up).
        take: (P,) index to ``takes``.
        takes: names of the recordings, or of the kinds of a pool.
        pictures: backgrounds.
        company: share of the pictures with a second person in them.
    """

    pose: np.ndarray
    take: np.ndarray
    takes: Sequence[str]
    pictures: Sequence[np.ndarray] = ()
    company: float = 0.2
    cameras: CameraRange = field(default_factory=CameraRange)

    def draw(self, rng: np.random.Generator) -> tuple[int, np.ndarray, np.ndarray]:
        """Row, local rotations (24, 3, 3) in the world, mirrored and turned by chance, and betas (10,)."""
        row = int(rng.integers(len(self.pose)))
        pose = self.pose[row].astype(np.float64)
        pose = mirror(pose) if rng.random() < 0.5 else pose
        rotations = axis_angle_to_matrix(pose)
        rotations[0] = axis_angle_to_matrix(np.array([0.0, rng.uniform(-np.pi, np.pi), 0.0])) @ rotations[0]
        return row, rotations.astype(np.float32), rng.standard_normal(10).clip(-3, 3).astype(np.float32)


def choose_kind(occlusion: str, rng: np.random.Generator) -> str:
    """What hides this person."""
    if occlusion != "mixed":
        return occlusion
    edges = np.cumsum(list(SHARES.values()))
    return (*SHARES, "")[int(np.searchsorted(edges, rng.random(), side="right"))]


def picture_border(
    kind: str, pixels: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Corners (2,) low and high, whole pixels, of what is left of a picture.

    ``biggs`` keeps what the ambiguous protocol leaves round the keypoints (23, 2), as for data sets; ``truncation``
    ends the picture across the body.
    """
    low, high = np.zeros(2), np.array(size, dtype=np.float64)
    if kind == "biggs":
        group = rng.choice(len(BIGGS_GROUPS), size=1, p=BIGGS_SHARES)
        known = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)[None].astype(np.float32)
        cut = cut_rectangles(known, group)[0].astype(np.float64)
        low, high = np.maximum(low, cut[:2]), np.minimum(high, cut[2:])
    elif kind == "truncation":
        least, most = pixels.min(axis=0).clip(0, size), pixels.max(axis=0).clip(0, size)
        share, span = rng.uniform(0.1, 0.7), most - least
        side = int(rng.choice(4, p=[0.55, 0.15, 0.15, 0.15]))
        if side == 0:
            high[1] = most[1] - share * span[1]
        elif side == 1:
            low[1] = least[1] + 0.6 * share * span[1]
        elif side == 2:
            low[0] = least[0] + share * span[0]
        else:
            high[0] = most[0] - share * span[0]
    return np.floor(low), np.ceil(high)


def render_person(rng: np.random.Generator, people: People, renderer: Renderer, kind: str) -> Sight | None:
    """A person as a camera sees it, or None where chance put it out of sight: draw again.

    Args:
        rng: source of all randomness.
        people: poses and backgrounds.
        renderer: square.
        kind: one of :data:`KINDS`, or "" for what chance gives.
    """
    body = renderer.body
    row, rotations, betas = people.draw(rng)
    mesh = np.asarray(body.vertices(rotations, betas, np.zeros(3, np.float32)))
    joints = np.asarray(body.joints(rotations, betas, np.zeros(3, np.float32)))
    lowest = float(mesh[:, 1].min())
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    views = look(torch.from_numpy(joints[None]), torch.tensor([lowest]), generator, people.cameras)
    turn, offset = views.rotation[0].numpy(), views.offset[0].numpy()
    width, height = (int(v) for v in views.size[0])
    focal = float(views.intrinsics[0, 0])
    placed, joints_at = mesh @ turn.T + offset, joints @ turn.T + offset
    if joints_at[:, 2].min() < 0.3 or placed[:, 2].min() < 0.1:
        return None
    camera = Camera(width, height, focal, focal, width / 2, height / 2)
    # In float64, because BLAS rounds by how many threads it has, and a shard must not depend on that.
    keypoints3d = (np.asarray(body.keypoint_regressor, np.float64) @ placed).astype(np.float32)
    pixels, outline = camera.project(keypoints3d), camera.project(placed)

    low, high = picture_border(kind, pixels, (width, height), rng)
    inside = ((pixels >= low) & (pixels < high)).all(axis=1)
    if (high - low).min() < _MIN_PIXELS or inside.sum() < MIN_SEEN or (kind == "none" and not inside.all()):
        return None
    # What is cut off is gone: the picture is now this part of it, seen by the same lens.
    camera = Camera(int(high[0] - low[0]), int(high[1] - low[1]), focal, focal, width / 2 - low[0], height / 2 - low[1])
    pixels, outline, limit = pixels - low, outline - low, high - low
    whole = np.concatenate([outline.min(axis=0).clip(0, limit), outline.max(axis=0).clip(0, limit)])
    if (whole[2:] - whole[:2]).max() < _MIN_PIXELS or (whole[2:] - whole[:2]).min() < 4:
        return None
    side = float(Window.around(whole, (3, 4)).size.max()) * _MARGIN
    origin = (whole[:2] + whole[2:]) / 2 - side / 2
    scale = renderer.width / side
    lens = Camera(
        renderer.width, renderer.height, focal * scale, focal * scale, *((camera.cx, camera.cy) - origin) * scale
    )
    frame = _draw(rng, people, renderer, lens, camera, kind, placed, turn, offset, mesh)

    edge = np.arange(renderer.width) + 0.5
    in_x, in_y = ((edge / scale + o >= 0) & (edge / scale + o < e) for o, e in zip(origin, limit, strict=True))
    in_picture = in_y[:, None] & in_x[None]
    own = (frame.identity == int(PERSON_ID)) & in_picture
    if own.sum() < 60:
        return None
    state = keypoint_states(frame, lens, keypoints3d, renderer.reach)
    state[~((pixels >= 0) & (pixels < limit)).all(axis=1)] = OUTSIDE
    image = _photograph(rng, frame.image, side) * in_picture[..., None].astype(np.uint8)
    rotations = rotations.copy()
    rotations[0] = turn @ rotations[0]
    return Sight(
        image=image,
        origin=origin,
        scale=scale,
        camera=camera,
        box=_person_box(rng, own, whole, origin, scale),
        truth={
            "rotations": rotations,
            "betas": betas,
            # SMPL turns the body about the rest pelvis, which the translation must follow into the optical frame.
            "translation": (turn @ joints[0] + offset - joints[0]).astype(np.float32),
            "joints": joints_at.astype(np.float32),
            "keypoints3d": keypoints3d,
            "state": state,
        },
        mask=(frame.identity > 0) & in_picture,
        occluded=_hidden_by_object(frame, lens, placed, in_picture),
        index=row,
        take=people.takes[int(people.take[row])],
    )


def _draw(
    rng: np.random.Generator,
    people: People,
    renderer: Renderer,
    lens: Camera,
    camera: Camera,
    kind: str,
    placed: np.ndarray,
    turn: np.ndarray,
    offset: np.ndarray,
    mesh: np.ndarray,
) -> Frame:
    """The square round the person; ``placed`` and ``mesh`` are its vertices before the camera and as posed."""
    base = turn.T @ offset
    tall = max(-float(mesh[:, 1].min() + base[1]), 0.15)  # of the camera above the floor, where the body stands
    eye = np.array([0.0, tall, 0.0])
    view = (turn.astype(np.float64), -turn.astype(np.float64) @ eye)
    target = mesh.mean(axis=0) + base + eye
    bodies = [BodyMesh(placed, random_outfit(rng))]
    if rng.random() < people.company:
        _, rotations, betas = people.draw(rng)
        other = np.asarray(renderer.body.vertices(rotations, betas, np.zeros(3, np.float32)))
        bearing, radius = rng.uniform(-np.pi, np.pi), rng.uniform(0.4, 1.5)
        feet = target + (radius * np.sin(bearing), 0.0, radius * np.cos(bearing))
        other = other + np.array([feet[0], -other[:, 1].min(), feet[2]])
        seen = other @ view[0].T + view[1]
        if seen[:, 2].min() > 0.3:
            bodies.append(BodyMesh(seen, random_outfit(rng)))
    if len(people.pictures) and rng.random() < 0.2:
        solids = [backdrop(people.pictures[rng.integers(len(people.pictures))], camera, view)]
    else:
        solids = random_room(rng, eye, target, people.pictures)
    if kind == "objects":
        count = int(rng.choice([1, 2], p=[0.7, 0.3]))
        solids = [random_occluder(rng, eye, target, people.pictures) for _ in range(count)] + solids
    return renderer.render(lens, bodies, solids, view, random_light(rng), random_colour(rng, 0.1, 0.8))


def _photograph(rng: np.random.Generator, image: np.ndarray, side: float) -> np.ndarray:
    """The drawn square as the camera's pixels show it: a person far away is few of them."""
    drawn = image.shape[0]
    pixels = max(round(side), 16)
    if pixels < drawn:
        small = develop(rng, cv2.resize(image, (pixels, pixels), interpolation=cv2.INTER_AREA))
        return np.asarray(cv2.resize(small, (drawn, drawn), interpolation=cv2.INTER_LINEAR))
    return develop(rng, image)


def _person_box(
    rng: np.random.Generator, own: np.ndarray, whole: np.ndarray, origin: np.ndarray, scale: float
) -> np.ndarray:
    """(4,) box as a person detector places it: round what is seen, or round what it knows to be there."""
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    box = seen / scale + np.tile(origin, 2) if rng.random() < 0.5 else whole.copy()
    size = box[2:] - box[:2]
    return box + np.tile(size, 2) * rng.normal(0, 0.02, size=4).clip(-0.05, 0.05)


def _hidden_by_object(frame: Frame, lens: Camera, placed: np.ndarray, in_picture: np.ndarray) -> bool:
    """Whether an object covers more than a hundredth of the body's points in the picture."""
    points = placed[::5]
    pixels = lens.project(points)
    size = len(in_picture)
    held = ((pixels >= 0) & (pixels < size)).all(axis=1)
    column, row = pixels[held].astype(int).T
    held_in = in_picture[row, column]
    behind = (frame.identity[row, column] < 0) & (frame.depth[row, column] < points[held][:, 2])
    return bool((behind & held_in).sum() > 0.01 * max(held_in.sum(), 1))
