r"""What a 2D detector makes of true keypoints: errors, swaps and confidences, drawn from a fitted table.

The detector's failures cost a lifting network more than the lifting itself, and they are nothing like independent
Gaussian noise: a whole limb jumps, left and right change places, a hidden point is guessed with a confident face.
:class:`DetectorNoise` draws them from a small table fitted to a real detector (:mod:`.noise_fit`).

For each keypoint :math:`k` in state :math:`s` (visible, hidden by the person, hidden by an object, outside the
picture), with :math:`t` the keypoint after a possible left-right swap and :math:`\ell` the person's size:

.. math::
    p_k = t_k + b_{ks} + \sqrt{\ell^2 + \ell_0^2}\; Q_{ks}(\rho_k)\, e_k / |e_k|, \qquad
    \rho_k^2 = \nu \log(1 + |e_k|^2 / \nu)

:math:`e` is a bivariate Student vector for each keypoint, correlated between keypoints (a t copula with :math:`\nu`
degrees of freedom: neighbours err in the same direction, and all of a person's points fail together). :math:`\rho`
maps its radius to a Rayleigh one, and :math:`Q_{ks}` is the measured quantile function of the error's length, so the
law of each single error is the measured one, tails included. :math:`b` is the detector's systematic offset, linear
in the body's own vectors and therefore turning and growing with the body. The confidence comes from a quantile
table that depends on the keypoint, its state and how large the error turned out. Points outside the picture are first
moved some way back to its border, where detectors tend to guess them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from hmr_prob_ros.skeleton import KEYPOINT_FLIP, KEYPOINT_NAMES, NUM_KEYPOINTS

__all__ = ["HIDDEN_BY_OBJECT", "HIDDEN_BY_SELF", "OUTSIDE", "VISIBLE", "DetectorNoise", "person_scale", "view_bin"]

VISIBLE, HIDDEN_BY_SELF, HIDDEN_BY_OBJECT, OUTSIDE = range(4)
NUM_STATES = 4

RADII = np.arange(0.0, 4.76, 0.25)
"""Rayleigh radii at which the quantile functions of the error's length are stored: fine in the tail."""
ERROR_EDGES = np.array([0.015, 0.035, 0.08, 0.18])
"""Error, in person sizes, that separates the bins of the confidence table."""
NUM_QUANTILES = 11
SWAP_GROUPS: tuple[tuple[str, ...], ...] = (
    ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "big_toe", "small_toe", "heel"),
    ("elbow", "wrist"),
    ("knee", "ankle", "big_toe", "small_toe", "heel"),
)
"""Parts that change sides together: whole body, arms, legs."""
TABLES = Path(__file__).parent

_INDEX = {name: i for i, name in enumerate(KEYPOINT_NAMES)}
_FLIP = np.array(KEYPOINT_FLIP)
_LIMB = {"eye": "nose", "ear": "nose", "shoulder": "elbow", "elbow": "shoulder", "wrist": "elbow", "hip": "knee",
         "knee": "hip", "ankle": "knee", "big_toe": "ankle", "small_toe": "ankle", "heel": "ankle"}  # fmt: skip


def _bases() -> np.ndarray:
    """(3,23,23) matrices: up the torso, outwards to the keypoint's side, along the keypoint's limb."""
    bases = np.zeros((3, NUM_KEYPOINTS, NUM_KEYPOINTS))
    for name, k in _INDEX.items():
        side, _, part = name.partition("_")
        for left_right in ("left", "right"):
            bases[0, k, _INDEX[f"{left_right}_shoulder"]] += 0.5
            bases[0, k, _INDEX[f"{left_right}_hip"]] -= 0.5
        if name == "nose":
            bases[2, k, k] = 1.0
            bases[2, k, [_INDEX["left_ear"], _INDEX["right_ear"]]] = -0.5
            continue
        other = "right" if side == "left" else "left"
        for joint in ("shoulder", "hip"):
            bases[1, k, _INDEX[f"{side}_{joint}"]] += 0.5
            bases[1, k, _INDEX[f"{other}_{joint}"]] -= 0.5
        parent = _LIMB[part]
        bases[2, k, k] += 1.0
        bases[2, k, _INDEX[parent if parent == "nose" else f"{side}_{parent}"]] -= 1.0
    return bases


BASES = _bases()
SWAPS = np.array([[name.partition("_")[2] in group for name in KEYPOINT_NAMES] for group in SWAP_GROUPS])


def person_scale(keypoints: np.ndarray, image_size: np.ndarray | Sequence[float]) -> np.ndarray:
    """Size of a person in pixels: the longer side of the box round all 23 true points, hidden ones included.

    Args:
        keypoints: (B,23,2) true pixels. Points far outside the picture count as one picture beyond its border.
        image_size: (2,) or (B,2) width and height in pixels.

    Returns:
        (B,) pixels.
    """
    size = np.broadcast_to(np.asarray(image_size, dtype=np.float32), (len(keypoints), 2))[:, None]
    held = np.clip(np.nan_to_num(keypoints), -size, 2 * size)
    return np.asarray((held.max(1) - held.min(1)).max(-1))


def view_bin(keypoints: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(B,) 0 from the front, 1 from the side, 2 from behind, told by the turn from the torso to the left side."""
    up, left = BASES[0, _INDEX["left_hip"]], BASES[1, _INDEX["left_hip"]]
    torso = np.einsum("k,bkc->bc", up, keypoints)
    across = np.einsum("k,bkc->bc", left, keypoints)
    # The picture's y runs down: a torso that points up and a left side at greater x give a product above zero.
    turn = torso[:, 0] * across[:, 1] - torso[:, 1] * across[:, 0]
    width = turn / np.maximum(np.linalg.norm(torso, axis=-1) * scale, 1e-6)
    return np.where(width > 0.05, 0, np.where(width < -0.05, 2, 1))


def towards_border(points: np.ndarray, state: np.ndarray, image_size: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """``points`` (B,23,2), those outside the picture moved the share ``pull`` (23,) of the way to its border."""
    border = np.clip(points, 0, image_size[:, None])
    share = np.where(state == OUTSIDE, pull, 0).astype(points.dtype)
    return np.asarray(points + share[..., None] * (border - points))


@dataclass
class DetectorNoise:
    """A detector's errors as a table; see the module's page for the law.

    Attributes:
        name: detector the table was fitted to.
        radial: (23,4,20) length of the error in person sizes at each of ``RADII``, never falling.
        bias: (23,4,3) systematic offset along the three body vectors of ``BASES``.
        correlation: (23,23) correlation of the errors' directions and sizes between keypoints.
        dof: degrees of freedom of the t copula; small = all points of a person fail together.
        blur_px: person size below which the error stops shrinking, pixels.
        swap: (3,3) probability that whole body, arms, legs change sides, seen from front, side, behind.
        confidence: (23,4,5,11) quantiles of the confidence by keypoint, state and error bin.
        confidence_correlation: (23,23) rank correlation of the confidences given states and errors.
        missing: (23,) points that the detector never gives.
        pull: (23,) share of the way back to the border at which a point outside the picture is guessed: 0 where the
            detector extrapolates freely, 1 where it sees only the picture.
        fitted: how the table came about, for the reader.
    """

    name: str
    radial: np.ndarray
    bias: np.ndarray
    correlation: np.ndarray
    dof: float
    blur_px: float
    swap: np.ndarray
    confidence: np.ndarray
    confidence_correlation: np.ndarray
    missing: np.ndarray
    pull: np.ndarray
    fitted: str = "by hand"

    def __post_init__(self) -> None:
        shapes = {
            "radial": (NUM_KEYPOINTS, NUM_STATES, len(RADII)),
            "bias": (NUM_KEYPOINTS, NUM_STATES, len(BASES)),
            "correlation": (NUM_KEYPOINTS, NUM_KEYPOINTS),
            "swap": (3, len(SWAP_GROUPS)),
            "confidence": (NUM_KEYPOINTS, NUM_STATES, len(ERROR_EDGES) + 1, NUM_QUANTILES),
            "confidence_correlation": (NUM_KEYPOINTS, NUM_KEYPOINTS),
            "missing": (NUM_KEYPOINTS,),
            "pull": (NUM_KEYPOINTS,),
        }
        for field, shape in shapes.items():
            value = np.asarray(getattr(self, field), dtype=bool if field == "missing" else np.float32)
            if value.shape != shape:
                raise ValueError(f"noise table '{self.name}': {field} has shape {value.shape}, expected {shape}")
            setattr(self, field, value)
        if (np.diff(self.radial, axis=-1) < 0).any() or (self.radial < 0).any():
            raise ValueError(f"noise table '{self.name}': radial must not be negative nor fall along the radii")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError(f"noise table '{self.name}': confidence must lie in [0, 1]")
        self._mix = _root(self.correlation)
        self._mix_confidence = _root(self.confidence_correlation)

    def sample(
        self,
        keypoints_px: np.ndarray,
        scale_px: np.ndarray,
        state: np.ndarray,
        image_size: np.ndarray | Sequence[float],
        rng: np.random.Generator,
        zero_outside: bool = True,
    ) -> np.ndarray:
        """One detection for each set of true keypoints.

        Args:
            keypoints_px: (B,23,2) true pixels.
            scale_px: (B,) person sizes, see :func:`person_scale`.
            state: (B,23) int, one of ``VISIBLE``, ``HIDDEN_BY_SELF``, ``HIDDEN_BY_OBJECT``, ``OUTSIDE``.
            image_size: (2,) or (B,2) width and height, pixels.
            rng: numpy generator; the same state gives the same detections.
            zero_outside: confidence 0 for points guessed outside the picture, as the estimator does.

        Returns:
            (B,23,3) float32: x, y in pixels, confidence in [0,1]; confidence 0 where the detector gives no point.
        """
        true = np.asarray(keypoints_px, dtype=np.float32)
        scale = np.asarray(scale_px, dtype=np.float32)
        state = np.asarray(state, dtype=np.intp)
        size = np.broadcast_to(np.asarray(image_size, dtype=np.float32), (len(true), 2))
        points = np.arange(NUM_KEYPOINTS)

        swapped = self._swapped(true, scale, rng)
        target = np.where(swapped[..., None], true[:, _FLIP], true)
        stacked = BASES.astype(np.float32).reshape(-1, NUM_KEYPOINTS) @ target
        vectors = stacked.reshape(len(true), len(BASES), NUM_KEYPOINTS, 2)
        target = towards_border(target, state, size, self.pull)
        coefficients = self.bias[points, state]  # (B,23,3)
        error = np.einsum("bki,bikc->bkc", coefficients, vectors)

        normal = rng.standard_normal((len(true), NUM_KEYPOINTS, 2), dtype=np.float32)
        student = self._mix @ normal
        student *= np.sqrt(self.dof / np.maximum(rng.chisquare(self.dof, (len(true), 1, 1)), 1e-6)).astype(np.float32)
        square = np.maximum((student**2).sum(-1), 1e-12)
        radius = np.sqrt(self.dof * np.log1p(square / self.dof))
        length = _interpolate(self.radial[points, state], radius / RADII[1])
        unit = np.sqrt(scale**2 + self.blur_px**2)[:, None]
        error += (length * unit / np.sqrt(square))[..., None] * student
        found = target + error

        distance = np.linalg.norm(found - true, axis=-1) / unit
        bins = np.searchsorted(ERROR_EDGES, distance)
        rank = normal_cdf(self._mix_confidence @ rng.standard_normal((NUM_KEYPOINTS, len(true)), dtype=np.float32)).T
        confidence = _interpolate(self.confidence[points, state, bins], rank * (NUM_QUANTILES - 1))
        gone = self.missing[None] | ~np.isfinite(found).all(-1)
        if zero_outside:
            gone |= ((found < 0) | (found >= size[:, None])).any(-1)
        confidence[gone] = 0.0
        return np.concatenate([found, confidence[..., None]], axis=-1).astype(np.float32)

    def _swapped(self, true: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(B,23) bool: points that take the place of their mirror twin; two swaps cancel."""
        chance = self.swap[view_bin(true, scale)]  # (B,3)
        drawn = rng.random(chance.shape, dtype=np.float32) < chance
        return np.asarray((drawn.astype(np.uint8) @ SWAPS.astype(np.uint8)) % 2 == 1)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, rounded to four decimals."""
        data = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and value.dtype != bool:
                value = np.round(value.astype(np.float64), 4)
            data[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        Path(path).write_text(json.dumps(data, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> DetectorNoise:
        """Read a table from a JSON file, or by its short name (``blazepose``, ``tinypose``).

        Raises:
            ValueError: no such table, or a table of another form.
        """
        file = Path(path)
        if not file.suffix:
            file = TABLES / f"noise_{path}.json"
        if not file.is_file():
            names = sorted(p.stem.removeprefix("noise_") for p in TABLES.glob("noise_*.json"))
            raise ValueError(f"no noise table {file}: shipped tables are {names}; fit one with `python -m {__name__}`")
        data = json.loads(file.read_text())
        wanted = {field.name for field in fields(cls)}
        if set(data) != wanted:
            raise ValueError(f"{file} is no noise table: fields {sorted(set(data) ^ wanted)} are missing or unknown")
        return cls(**data)


def _root(correlation: np.ndarray) -> np.ndarray:
    """(23,23) A with A A^T = the nearest correlation matrix with a unit diagonal (negative eigenvalues clipped)."""
    values, vectors = np.linalg.eigh(correlation.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 1e-6))
    return (root / np.linalg.norm(root, axis=1, keepdims=True)).astype(np.float32)


def _interpolate(table: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Value of ``table (...,Q)`` at the fractional index ``place (...)``, held at both ends."""
    place = np.clip(place, 0, table.shape[-1] - 1.0001)
    low = place.astype(np.intp)
    part = (place - low).astype(np.float32)
    below = np.take_along_axis(table, low[..., None], -1)[..., 0]
    above = np.take_along_axis(table, low[..., None] + 1, -1)[..., 0]
    return np.asarray(below + part * (above - below))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Standard normal distribution function; logistic form of Page (1977), within 2e-4."""
    return np.asarray(1 / (1 + np.exp(-np.sqrt(8 / np.pi) * x * (1 + 0.044715 * x * x))))


def main(argv: Sequence[str] | None = None) -> None:
    """Fit tables to detectors: render dressed bodies, run the detectors on them, write noise_<detector>.json."""
    parser = argparse.ArgumentParser(prog="python -m hmr_prob_ros.training.data.noise", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=TABLES, help="folder for the tables")
    parser.add_argument("--detector", nargs="+", choices=("blazepose", "tinypose"), default=["blazepose"])
    parser.add_argument("--mocap", type=Path, nargs="+", required=True, help="motion capture, as for training")
    parser.add_argument("--weights", type=Path, help="folder with yolox_nano.onnx and tinypose_256x192.onnx (tinypose)")
    parser.add_argument("--pictures", type=Path, help="folder of pictures for the rooms")
    parser.add_argument("--count", type=int, default=3000, help="pictures to render")
    parser.add_argument("--shards", type=Path, default=Path("out/noise"), help="observations; a run goes on from them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    from .noise_fit import fit_noise

    fit_noise(**vars(arguments))


if __name__ == "__main__":
    main()
