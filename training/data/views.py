"""Synthetic views: a body on the floor, a robot's camera, and which keypoints it can see.

A robot's camera hangs 0.3 to 2 m above the floor, 1 to 8 m away, nearly level, 50 to 110 degrees wide; the body may
stand anywhere in its picture, also half outside. Everything is one batch of torch operations, so that examples are
made as fast as a small network trains on two cores.
"""

from __future__ import annotations

__all__ = ["BIGGS_GROUPS", "BIGGS_SHARES", "CameraRange", "Views", "look", "occlude", "self_occlusion"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES

from .noise import HIDDEN_BY_OBJECT, OUTSIDE

IMAGE_SIZES = ((640, 480), (848, 480), (1280, 720), (640, 400), (480, 640), (720, 1280))
IMAGE_SHARES = (0.4, 0.15, 0.2, 0.1, 0.07, 0.08)

_HEAD = {"nose", "left_eye", "right_eye", "left_ear", "right_ear"}
_ARMS = {s + n for s in ("left_", "right_") for n in ("shoulder", "elbow", "wrist")}
_LEGS = {s + n for s in ("left_", "right_") for n in ("knee", "ankle", "big_toe", "small_toe", "heel")}
BIGGS_GROUPS: tuple[set[str], ...] = (_ARMS | _HEAD, _LEGS, _HEAD, set())
"""Keypoints hidden by the protocol of Biggs et al. 2020 (section 4, AH36M): arms and head, legs, head, nothing."""

BIGGS_SHARES = (0.3, 0.3, 0.3, 0.1)

# Capsules that hide keypoints: (joint, joint, radius in m), and the keypoints on the same part, never hidden by it.
_SHIN = ("knee", "ankle", "heel", "big_toe", "small_toe")
_CAPSULES = (
    ("pelvis", "neck", 0.12, {"left_shoulder", "right_shoulder", "left_hip", "right_hip"}),
    ("neck", "head", 0.08, _HEAD),
    ("left_hip", "left_knee", 0.075, {"left_hip", "left_knee"}),
    ("right_hip", "right_knee", 0.075, {"right_hip", "right_knee"}),
    ("left_knee", "left_ankle", 0.05, {f"left_{name}" for name in _SHIN}),
    ("right_knee", "right_ankle", 0.05, {f"right_{name}" for name in _SHIN}),
    ("left_shoulder", "left_elbow", 0.05, {"left_shoulder", "left_elbow"}),
    ("right_shoulder", "right_elbow", 0.05, {"right_shoulder", "right_elbow"}),
    ("left_elbow", "left_wrist", 0.045, {"left_elbow", "left_wrist"}),
    ("right_elbow", "right_wrist", 0.045, {"right_elbow", "right_wrist"}),
)


@dataclass(frozen=True)
class CameraRange:
    """Where a robot's camera may be. Lengths in metres, angles in degrees."""

    height: tuple[float, float] = (0.3, 2.0)
    distance: tuple[float, float] = (1.0, 8.0)
    fov: tuple[float, float] = (50.0, 110.0)
    narrow_share: float = 0.15
    """Share of the pictures with a lens of ``narrow_fov``: phones in portrait, telephoto lenses."""
    narrow_fov: tuple[float, float] = (25.0, 50.0)
    pitch_sd: float = 10.0
    roll_sd: float = 2.0
    aimed_share: float = 0.5
    """Share of the cameras that are turned towards the body; the others look level."""
    lift_share: float = 0.1
    """Share of the bodies that stand up to 0.4 m above the floor: jumps, steps, platforms."""


@dataclass
class Views:
    """A batch of bodies before cameras, in the optical frame.

    ``rotation`` (B, 3, 3) world (y up) to optical frame; ``offset`` (B, 3) added to the turned body;
    ``intrinsics`` (B, 4) fx, fy, cx, cy; ``size`` (B, 2) width and height in pixels.
    """

    rotation: Tensor
    offset: Tensor
    intrinsics: Tensor
    size: Tensor

    def place(self, points: Tensor) -> Tensor:
        """Points (B, P, 3) in the world's axes to the optical frame."""
        return points @ self.rotation.transpose(1, 2) + self.offset[:, None]

    def project(self, points: Tensor) -> Tensor:
        """Points (B, P, 3) in the optical frame to pixels (B, P, 2), no distortion."""
        rays = points[..., :2] / points[..., 2:].clamp_min(0.05)
        return rays * self.intrinsics[:, None, :2] + self.intrinsics[:, None, 2:]


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _turn(axis: int, angle: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3) about a coordinate axis, angles in radians."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        0: (one, zero, zero, zero, c, -s, zero, s, c),
        1: (c, zero, s, zero, one, zero, -s, zero, c),
        2: (c, -s, zero, s, c, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def look(joints: Tensor, lowest: Tensor, generator: torch.Generator, ranges: CameraRange | None = None) -> Views:
    """Put each body on the floor before a random camera.

    Args:
        joints: (B, 24, 3) joints in the world's axes (y up), pelvis anywhere.
        lowest: (B,) height of the body's lowest point in the same axes.
        generator: source of all randomness.
        ranges: limits of the cameras.
    """
    ranges = ranges or CameraRange()
    count = len(joints)
    pick = torch.multinomial(torch.tensor(IMAGE_SHARES), count, replacement=True, generator=generator)
    size = torch.tensor(IMAGE_SIZES, dtype=torch.float32)[pick]
    narrow = torch.rand(count, generator=generator) < ranges.narrow_share
    fov = torch.where(narrow, _uniform(generator, count, *ranges.narrow_fov), _uniform(generator, count, *ranges.fov))
    # The field of view is that of the longer side: a camera turned into portrait keeps its focal length.
    focal = 0.5 * size.amax(dim=1) / torch.tan(torch.deg2rad(fov) / 2)
    intrinsics = torch.stack((focal, focal, size[:, 0] / 2, size[:, 1] / 2), dim=1)

    low, high = (math.log(v) for v in ranges.distance)
    distance = _uniform(generator, count, low, high).exp()
    height = _uniform(generator, count, *ranges.height)
    lift = _uniform(generator, count, 0.0, 0.4) * (torch.rand(count, generator=generator) < ranges.lift_share)
    pelvis, middle = joints[:, 0], joints.mean(dim=1)
    # The camera hangs above the origin of the floor plan; the body stands `distance` ahead of it, along -z.
    base = torch.stack((-pelvis[:, 0], lift - lowest - height, -distance - pelvis[:, 2]), dim=1)

    half_x, half_y = torch.atan(size[:, 0] / 2 / focal), torch.atan(size[:, 1] / 2 / focal)
    yaw = (2 * torch.rand(count, generator=generator) - 1) * half_x * 0.95
    aimed = torch.rand(count, generator=generator) < ranges.aimed_share
    elevation = torch.atan2(middle[:, 1] + base[:, 1], distance)
    jitter = (2 * torch.rand(count, generator=generator) - 1) * half_y * 0.6
    pitch = math.radians(ranges.pitch_sd) * torch.randn(count, generator=generator)
    pitch = torch.where(aimed, elevation + jitter, pitch)
    roll = math.radians(ranges.roll_sd) * torch.randn(count, generator=generator)
    # World (x right, y up, z back) to optical (x right, y down, z ahead): turn half round x, after yaw and pitch.
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    rotation = _turn(2, roll) @ flip @ _turn(0, -pitch) @ _turn(1, yaw)
    return Views(rotation, (rotation @ base[..., None])[..., 0], intrinsics, size)


def self_occlusion(joints: Tensor, keypoints: Tensor, margin: float = 0.06) -> Tensor:
    """Which keypoints hide behind the own body, seen from the origin.

    A keypoint is hidden where the line from the camera to it passes through a capsule round another part of the body,
    more than ``margin`` metres before it; and a point of the face where the face looks away.

    Args:
        joints: (B, 24, 3) in the optical frame.
        keypoints: (B, 23, 3).

    Returns:
        (B, 23) bool.
    """
    first = torch.tensor([JOINT_NAMES.index(a) for a, _, _, _ in _CAPSULES])
    last = torch.tensor([JOINT_NAMES.index(b) for _, b, _, _ in _CAPSULES])
    radius = torch.tensor([r for _, _, r, _ in _CAPSULES])
    own = torch.tensor([[name in part for _, _, _, part in _CAPSULES] for name in KEYPOINT_NAMES])

    start, along = joints[:, first], joints[:, last] - joints[:, first]  # (B, C, 3)
    reach = keypoints.norm(dim=-1, keepdim=True)  # (B, K, 1)
    ray = keypoints / reach
    # Closest approach of the line t * ray and the segment start + s * along (Ericson 2004, section 5.1.9).
    aa = (along * along).sum(-1)[:, None]
    ra = torch.einsum("bki,bci->bkc", ray, along)
    rs = torch.einsum("bki,bci->bkc", ray, start)
    sa = (start * along).sum(-1)[:, None]
    s = ((ra * rs - sa) / (aa - ra * ra).clamp_min(1e-6)).clamp(0, 1)
    t = rs + s * ra
    gap2 = ((start * start).sum(-1)[:, None] + 2 * s * sa + s * s * aa - t * t).clamp_min(0)
    hidden = ((gap2 < radius**2) & (t + margin + radius < reach) & (t > 0) & ~own).any(dim=-1)

    head = torch.tensor([KEYPOINT_NAMES.index(name) for name in sorted(_HEAD)])
    ears = [KEYPOINT_NAMES.index(name) for name in ("left_ear", "right_ear")]
    outward = keypoints[:, head] - keypoints[:, ears].mean(dim=1, keepdim=True)
    away = (torch.nn.functional.normalize(outward, dim=-1) * ray[:, head]).sum(-1) > 0.35
    return hidden.index_put((torch.arange(len(hidden))[:, None], head), hidden[:, head] | away)


def occlude(pixels: Tensor, state: Tensor, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide keypoints behind objects or cut the picture.

    Args:
        pixels: (B, 23, 2).
        state: (B, 23) states so far.
        kind: ``biggs`` removes a group of keypoints as if the picture ended before them; ``truncation`` ends the
            picture somewhere across the body; ``objects`` puts a table, a pillar or a crate before it.
        generator: source of all randomness.

    Returns:
        The new states (B, 23), and the keypoints (B, 23) bool that are cut off and must not be reported at all.
    """
    count = len(pixels)
    if kind == "biggs":
        groups = torch.tensor([[name in group for name in KEYPOINT_NAMES] for group in BIGGS_GROUPS])
        pick = torch.multinomial(torch.tensor(BIGGS_SHARES), count, replacement=True, generator=generator)
        removed = groups[pick]
        return torch.where(removed, OUTSIDE, state), removed

    low, high = pixels.amin(dim=1), pixels.amax(dim=1)
    span = (high - low).clamp_min(1.0)
    if kind == "truncation":
        side = torch.multinomial(torch.tensor([0.55, 0.15, 0.15, 0.15]), count, replacement=True, generator=generator)
        share = _uniform(generator, count, 0.1, 0.7)
        bottom = high[:, 1] - share * span[:, 1]
        top = low[:, 1] + 0.6 * share * span[:, 1]
        left, right = low[:, 0] + share * span[:, 0], high[:, 0] - share * span[:, 0]
        x, y = pixels.unbind(-1)
        cut = torch.stack((y > bottom[:, None], y < top[:, None], x < left[:, None], x > right[:, None]))
        removed = cut[side, torch.arange(count)]
        return torch.where(removed, OUTSIDE, state), removed
    if kind != "objects":
        raise ValueError(f"unknown occlusion {kind!r}: use biggs, truncation or objects")

    # A table hides everything below a line, a pillar an upright band, a crate a box.
    shape = torch.multinomial(torch.tensor([0.45, 0.2, 0.35]), count, replacement=True, generator=generator)
    centre = low + span * torch.rand(count, 2, generator=generator)
    half = span * (0.08 + 0.32 * torch.rand(count, 2, generator=generator))
    near, far = centre - half, centre + half
    edge = low[:, 1] + span[:, 1] * _uniform(generator, count, 0.35, 0.85)
    table, pillar = shape == 0, shape == 1
    beyond_low, beyond_high = low - span, high + span
    left = torch.where(table, beyond_low[:, 0], near[:, 0])
    right = torch.where(table, beyond_high[:, 0], far[:, 0])
    top = torch.where(table, edge, torch.where(pillar, beyond_low[:, 1], near[:, 1]))
    bottom = torch.where(table | pillar, beyond_high[:, 1], far[:, 1])
    x, y = pixels.unbind(-1)
    behind = (x > left[:, None]) & (x < right[:, None]) & (y > top[:, None]) & (y < bottom[:, None])
    return torch.where(behind & (state != OUTSIDE), HIDDEN_BY_OBJECT, state), torch.zeros_like(behind)
