"""What rendered people wear, and where it lies on the rest pose of a body in SMPL's form."""

from __future__ import annotations

__all__ = ["Colour", "Outfit", "landmarks", "paint_uniforms"]

from dataclasses import dataclass
from typing import Any

import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES

Colour = tuple[float, float, float]
"""Linear RGB in [0, 1]."""


@dataclass(frozen=True)
class Outfit:
    """What a person wears, and skin and hair. Colours are linear RGB in [0, 1].

    Args:
        sleeve: fraction of the arm from shoulder (0) to wrist (1) that the shirt covers.
        leg: fraction of the leg from hip (0) to ankle (1) that the trousers cover.
        shirt_style, trousers_style: 0 plain, 1 two colours, 2 stripes, 3 checks, 4 print, 5 blotches.
        hair_line: how far the hair reaches down, -1 bald to 1 long.
        beard: 0 shaven to 1 full.
        looseness: metres by which shirt, trousers, hair and shoes stand off the body.
        barefoot: no shoes.
        seed: moves the noise of wrinkles and patterns.
    """

    skin: Colour = (0.55, 0.36, 0.27)
    hair: Colour = (0.05, 0.03, 0.02)
    iris: Colour = (0.08, 0.05, 0.03)
    shirt: Colour = (0.1, 0.2, 0.45)
    shirt2: Colour = (0.7, 0.7, 0.7)
    trousers: Colour = (0.05, 0.06, 0.1)
    trousers2: Colour = (0.1, 0.1, 0.1)
    shoes: Colour = (0.06, 0.06, 0.06)
    sleeve: float = 0.4
    leg: float = 0.96
    waist: float = 0.06
    shirt_style: int = 0
    trousers_style: int = 0
    hair_line: float = 0.3
    beard: float = 0.0
    looseness: tuple[float, float, float, float] = (0.012, 0.010, 0.016, 0.008)
    barefoot: bool = False
    seed: float = 0.0


def landmarks(body: Body) -> dict[str, np.ndarray]:
    """Rest positions by name: keypoints (``left_eye``), joints (``j_neck``), the mesh's ``low`` and ``high``."""
    template = np.asarray(body.v_template, dtype=np.float64)
    keypoints = np.asarray(body.keypoint_regressor, dtype=np.float64) @ template
    joints = np.asarray(body.joint_regressor, dtype=np.float64) @ template
    marks = {name: keypoints[i] for i, name in enumerate(KEYPOINT_NAMES)}
    marks |= {f"j_{name}": joints[i] for i, name in enumerate(JOINT_NAMES)}
    return marks | {"low": template.min(axis=0), "high": template.max(axis=0)}


def paint_uniforms(outfit: Outfit, marks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Uniforms of the person's shader: where eyes, hair and clothes lie on the rest pose."""
    eyes = (marks["left_eye"] + marks["right_eye"]) / 2
    face = float(np.linalg.norm(marks["left_eye"] - marks["right_eye"]))
    shoulder, wrist = abs(marks["j_left_shoulder"][0]), abs(marks["j_left_wrist"][0])
    hip, ankle = marks["j_left_hip"][1], marks["j_left_ankle"][1]
    neck = marks["j_neck"]
    collar = float(neck[1] + 0.25 * (marks["j_head"][1] - neck[1]))
    forehead = eyes[1] + face * (1.25 - 0.35 * outfit.hair_line)
    if outfit.hair_line < -0.8:
        forehead = marks["high"][1] + 0.1
    ear = marks["left_ear"][1] + face * (0.45 - 1.0 * outfit.hair_line)
    back = marks["left_ear"][1] - face * (0.7 + 1.3 * outfit.hair_line)
    if outfit.hair_line < -0.8:
        ear = back = forehead
    sole = float(marks["low"][1])
    return {
        "eyes": tuple(eyes),
        "face": face,
        "cloth_offset": outfit.looseness,
        "cuts": (
            float(shoulder + outfit.sleeve * (wrist - shoulder)),
            float(marks["j_pelvis"][1] + outfit.waist),
            float(hip + outfit.leg * (ankle - hip)),
            sole - 1.0 if outfit.barefoot else float(ankle + 0.005),
        ),
        "hairline": (float(forehead), float(ear), float(back)),
        "neck": (collar, 0.062, float(neck[2])),
        "sole": sole + 0.022,
        "pattern": (float(outfit.shirt_style), float(outfit.trousers_style), outfit.beard),
        "skin": outfit.skin,
        "hair": outfit.hair,
        "iris": outfit.iris,
        "shirt": outfit.shirt,
        "shirt2": outfit.shirt2,
        "trousers": outfit.trousers,
        "trousers2": outfit.trousers2,
        "shoes": outfit.shoes,
        "seed": outfit.seed,
    }
