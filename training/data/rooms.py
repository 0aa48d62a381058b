"""Random clothes, rooms, furniture and occluders for rendered scenes (world frame: metres, y up, floor at zero)."""

from __future__ import annotations

__all__ = [
    "load_backgrounds",
    "random_colour",
    "random_occluder",
    "random_outfit",
    "random_room",
    "table",
]

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from .render import Colour, Outfit, Solid, box, quad

_SKINS = (
    (0.78, 0.55, 0.45),
    (0.68, 0.45, 0.34),
    (0.55, 0.35, 0.25),
    (0.42, 0.25, 0.17),
    (0.25, 0.14, 0.09),
    (0.13, 0.07, 0.05),
)
_HAIRS = (
    (0.02, 0.015, 0.01),
    (0.05, 0.03, 0.02),
    (0.12, 0.06, 0.03),
    (0.30, 0.18, 0.08),
    (0.5, 0.38, 0.18),
    (0.35, 0.35, 0.35),
)
_IRISES = ((0.06, 0.035, 0.02), (0.12, 0.08, 0.03), (0.10, 0.18, 0.28), (0.09, 0.16, 0.09))


def load_backgrounds(folder: str | Path, longest: int = 640) -> list[np.ndarray]:
    """RGB pictures (H, W, 3) of a folder, in alphabetical order, none longer than ``longest`` pixels."""
    pictures = []
    for path in sorted(Path(folder).iterdir()):
        image = cv2.imread(str(path)) if path.suffix.lower() in (".jpg", ".jpeg", ".png") else None
        if image is not None:
            scale = min(1.0, longest / max(image.shape[:2]))
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            pictures.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return pictures


def random_colour(rng: np.random.Generator, low: float = 0.02, high: float = 0.7, vivid: float = 0.9) -> Colour:
    """A linear RGB colour with the saturation of things rather than of paint tubes."""
    value = np.exp(rng.uniform(np.log(low), np.log(high)))
    tint = rng.dirichlet([1.5, 1.5, 1.5]) * 3
    mixed = value * (1 + vivid * rng.uniform() * (tint - 1))
    r, g, b = np.clip(mixed, 0.01, 0.85)
    return float(r), float(g), float(b)


def random_outfit(rng: np.random.Generator) -> Outfit:
    """Clothes, skin and hair drawn at random; no two seeds look alike."""
    # The tone lies between two neighbouring skins, so that every shade occurs.
    k, f = rng.integers(len(_SKINS) - 1), rng.uniform()
    skin = tuple(float((1 - f) * a + f * b) for a, b in zip(_SKINS[k], _SKINS[k + 1], strict=True))
    hair = tuple(float(c * rng.uniform(0.8, 1.2)) for c in _HAIRS[rng.integers(len(_HAIRS))])
    return Outfit(
        skin=skin,  # type: ignore[arg-type]
        hair=hair,  # type: ignore[arg-type]
        iris=_IRISES[rng.integers(len(_IRISES))],
        shirt=random_colour(rng),
        shirt2=random_colour(rng),
        trousers=random_colour(rng, 0.015, 0.4),
        trousers2=random_colour(rng, 0.015, 0.4),
        shoes=random_colour(rng, 0.015, 0.5),
        sleeve=float(
            rng.choice([rng.uniform(0.05, 0.2), rng.uniform(0.3, 0.5), rng.uniform(0.85, 0.98)], p=[0.15, 0.45, 0.4])
        ),
        leg=float(
            rng.choice([rng.uniform(0.2, 0.45), rng.uniform(0.6, 0.8), rng.uniform(0.94, 1.0)], p=[0.2, 0.1, 0.7])
        ),
        waist=float(rng.uniform(0.0, 0.14)),
        shirt_style=int(rng.choice(6, p=[0.4, 0.12, 0.14, 0.1, 0.14, 0.1])),
        trousers_style=int(rng.choice([0, 2, 3, 5], p=[0.82, 0.06, 0.06, 0.06])),
        hair_line=float(rng.uniform(0.0, 1.0) if rng.uniform() < 0.92 else -1.0),
        beard=float(rng.uniform(0.3, 0.95) if rng.uniform() < 0.25 else 0.0),
        looseness=(
            float(rng.uniform(0.003, 0.022)),
            float(rng.uniform(0.003, 0.02)),
            float(rng.uniform(0.005, 0.03)),
            float(rng.uniform(0.004, 0.012)),
        ),
        barefoot=bool(rng.uniform() < 0.1),
        seed=float(rng.uniform(0, 100)),
    )


def _surface(
    rng: np.random.Generator, triangles: np.ndarray, pictures: Sequence[np.ndarray], styles: Sequence[int]
) -> Solid:
    style = int(rng.choice(list(styles)))
    picture = None
    if style == 5:
        if pictures:
            picture = pictures[rng.integers(len(pictures))]
        else:
            style = 1
    base = random_colour(rng, 0.12, 0.8, vivid=0.35)
    return Solid(
        triangles,
        base,
        tuple(float(np.clip(c * rng.uniform(0.5, 1.5), 0.01, 0.9)) for c in base),  # type: ignore[arg-type]
        style,
        scale=float(rng.uniform(0.3, 1.5) if style in (2, 4) else rng.uniform(0.6, 2.5)),
        gloss=float(rng.uniform(0, 0.15)),
        picture=picture,
        seed=float(rng.uniform(0, 100)),
    )


def random_room(
    rng: np.random.Generator, eye: np.ndarray, target: np.ndarray, pictures: Sequence[np.ndarray] = ()
) -> list[Solid]:
    """Floor, walls, perhaps a ceiling and furniture behind a person at ``target`` seen from ``eye``."""
    ahead = (target - eye) * (1.0, 0.0, 1.0)
    ahead /= max(np.linalg.norm(ahead), 1e-6)
    turn = rng.uniform(-0.5, 0.5)
    ahead = np.array(
        [np.cos(turn) * ahead[0] + np.sin(turn) * ahead[2], 0, -np.sin(turn) * ahead[0] + np.cos(turn) * ahead[2]]
    )
    side = np.cross(ahead, [0.0, 1.0, 0.0])
    behind, height = rng.uniform(0.8, 5.0), rng.uniform(2.3, 4.0)
    floor_at = target * (1.0, 0.0, 1.0)
    wall_at = floor_at + ahead * behind
    up = np.array([0.0, height, 0.0])
    solids = [
        _surface(
            rng, quad(floor_at - 12 * side - 12 * ahead, 24 * side, 24 * ahead), pictures, (0, 1, 1, 2, 3, 3, 4, 5)
        )
    ]
    solids.append(_surface(rng, quad(wall_at - 12 * side, 24 * side, up), pictures, (0, 0, 1, 2, 6, 6, 5)))
    for sign in (-1.0, 1.0):
        if rng.uniform() < 0.6:
            at = wall_at + sign * rng.uniform(1.5, 5.0) * side
            solids.append(_surface(rng, quad(at - 14 * ahead, 14 * ahead, up), pictures, (0, 1, 2, 6)))
    if rng.uniform() < 0.6:
        solids.append(_surface(rng, quad(wall_at + up - 12 * side - 16 * ahead, 24 * side, 16 * ahead), (), (0, 0, 1)))
    for layer in range(rng.integers(0, 4)):  # posters, doors and windows
        w, h = rng.uniform(0.4, 1.4), rng.uniform(0.4, 1.6)
        at = (
            wall_at
            - 0.01 * (layer + 1) * ahead
            + rng.uniform(-4, 4) * side
            + np.array([0, rng.uniform(0.3, max(0.4, height - h - 0.2)), 0])
        )
        poster = _surface(rng, quad(at, w * side, np.array([0, h, 0])), pictures, (0, 1, 5, 5))
        solids.append(replace(poster, scale=max(w, h) if poster.style == 5 else poster.scale))
    for _ in range(rng.integers(0, 4)):  # furniture along the wall, never in front of the person
        size = rng.uniform([0.3, 0.4, 0.3], [1.5, 1.9, 0.7])
        at = (
            wall_at
            - ahead * (size[2] / 2 + rng.uniform(0, 0.2))
            + rng.uniform(-4, 4) * side
            + np.array([0, size[1] / 2, 0])
        )
        if np.linalg.norm((at - floor_at)[[0, 2]]) > 0.9 + size[0] / 2:
            solids.append(_surface(rng, box(at, size, float(np.arctan2(ahead[0], ahead[2]))), pictures, (0, 1, 3, 3)))
    return solids[::-1]  # nearest first: what is hidden need not be painted


def table(
    centre: Sequence[float], size: Sequence[float], yaw: float, colour: Colour, modesty: float = 0.0, style: int = 3
) -> Solid:
    """A table that counts as an occluder.

    Args:
        centre: point on the floor below its middle, world (m).
        size: width, height, depth (m).
        modesty: fraction of the height below the top that a panel at the front and back closes.
    """
    w, h, d = size
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    at = np.asarray(centre, dtype=np.float64)
    parts = [box(at + (0, h - 0.02, 0), (w, 0.04, d), yaw)]
    for sx in (-1, 1):
        for sz in (-1, 1):
            parts.append(
                box(at + turn @ [sx * (w / 2 - 0.05), h / 2 - 0.02, sz * (d / 2 - 0.05)], (0.05, h - 0.04, 0.05), yaw)
            )
    if modesty > 0:
        panel = modesty * (h - 0.04)
        for sz in (-1, 1):
            parts.append(box(at + turn @ [0, h - 0.04 - panel / 2, sz * (d / 2 - 0.06)], (w - 0.08, panel, 0.02), yaw))
    return Solid(np.concatenate(parts), colour, (0.2, 0.2, 0.2), style, scale=1.2, gloss=0.05, occluder=True)


def random_occluder(
    rng: np.random.Generator, eye: np.ndarray, target: np.ndarray, pictures: Sequence[np.ndarray]
) -> Solid:
    """A table, crate, shelf or post between the camera and the person."""
    between = target + rng.uniform(0.2, 0.6) * (eye - target)
    ahead = (target - eye) * (1.0, 0.0, 1.0)
    distance = float(np.linalg.norm(ahead))
    ahead /= max(distance, 1e-6)
    side = np.cross(ahead, [0.0, 1.0, 0.0])
    at = between * (1.0, 0.0, 1.0) + side * rng.normal(0, 0.25)
    yaw = float(np.arctan2(ahead[0], ahead[2]) + rng.normal(0, 0.3))
    kind = rng.uniform()
    if kind < 0.4:
        size = rng.uniform([0.8, 0.5, 0.4], [2.2, 1.0, 0.9])
        return table(at, size, yaw, random_colour(rng, 0.1, 0.7), float(rng.choice([0.0, rng.uniform(0.3, 1.0)])))
    if kind < 0.75:
        size = rng.uniform([0.3, 0.3, 0.3], [1.2, 1.1, 0.7])
        solid = _surface(rng, box(at + (0, size[1] / 2, 0), size, yaw), pictures, (0, 1, 2, 3, 5))
    elif kind < 0.9:  # something that hangs or stands out at any height
        size = rng.uniform([0.15, 0.15, 0.05], [0.7, 0.7, 0.3])
        solid = _surface(rng, box(at + (0, rng.uniform(0.2, 1.6), 0), size, yaw), pictures, (0, 1, 2, 3, 5))
    else:
        solid = _surface(rng, box(at + (0, 1.3, 0), (rng.uniform(0.06, 0.3), 2.6, 0.15), yaw), pictures, (0, 1, 3))
    return replace(solid, occluder=True)
