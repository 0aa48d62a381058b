r"""How well samples agree with the picture, in pixels of a crop of 256 x 256 (Wehrbein et al. 2025, section 5.1).

Points are in crop coordinates, [-1, 1] across the square crop (x right, y down).

* **2DKP**: distance of a sample's projected keypoint to the true one, over the visible keypoints.
* **PercIn**: share of the samples of invisible keypoints that lie inside the mask of people. A person's hidden wrist
  may be anywhere behind what is seen of them, but not where the picture shows the wall.
* **MinDist**: mean distance of the same to the mask, 0 inside.

All are averaged over keypoints of the whole set, as in the authors' code: gather the arrays, then take one mean.
"""

from __future__ import annotations

__all__ = ["CROP_PIXELS", "keypoint_error", "mask_distance", "mask_metrics", "project_to_crop"]

import numpy as np

CROP_PIXELS = 256
"""Side of the crop that pixels are counted in."""

_NEAR = 0.1  # metres


def project_to_crop(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    r"""Crop coordinates :math:`(x/z - c_x, y/z - c_y) / (s/2)`.

    Args:
        points: (B, ..., 3) in metres, optical frame; nearer than 0.1 m counts as 0.1 m.
        box: (B, 3) crop centre and side, each over the focal length.

    Returns:
        (B, ..., 2).
    """
    box = box.reshape(len(box), *(1,) * (points.ndim - 2), 3)
    rays = points[..., :2] / np.maximum(points[..., 2:], _NEAR)
    return np.asarray((rays - box[..., :2]) / (box[..., 2:] / 2))


def keypoint_error(points: np.ndarray, truth: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """2DKP: distances in pixels.

    Args:
        points: (..., N, K, 2) projected samples.
        truth: (..., K, 2); NaN marks unknown ones.
        visible: (..., K) bool.

    Returns:
        (..., N, K), NaN where a keypoint is unknown or invisible.
    """
    distance = CROP_PIXELS / 2 * np.linalg.norm(points - truth[..., None, :, :], axis=-1)
    return np.where(visible[..., None, :], distance, np.nan)


def _to_cells(points: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Distance (P,) of points (P, 2) to the nearest of the unit squares whose upper left corners are cells (C, 2)."""
    outside = np.empty(len(points))
    step = max(1, 2_000_000 // max(len(cells), 1))
    for start in range(0, len(points), step):
        part = points[start : start + step, None]
        gap = np.maximum(np.maximum(cells - part, part - cells - 1), 0.0)
        outside[start : start + step] = np.einsum("pcd,pcd->pc", gap, gap).min(axis=1)
    return np.sqrt(outside)


def _rim(mask: np.ndarray) -> np.ndarray:
    """Mask cells (C, 2) as (x, y) with a neighbour outside: the nearest cell of a point outside is one of them."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(mask & ~inner)
    return np.stack([columns, rows], axis=1).astype(np.float64)


def mask_distance(points: np.ndarray, mask: np.ndarray, use: np.ndarray) -> np.ndarray:
    r"""Distance of samples to the people's pixels, :math:`\min_{c \in M} \lVert x - c \rVert` over the mask's cells as
    squares: 0 inside, exact outside, beyond the crop's border too.

    Args:
        points: (B, N, K, 2) projected samples.
        mask: (B, H, H) bool over the crop, row = y.
        use: (B, K) bool: invisible keypoints that count. Leave out those whose true place is outside the crop, and
            examples where an object hides the person, whose mask then says too little.

    Returns:
        (B, N, K) in pixels; NaN where ``use`` is false, the mask is empty or a point is not finite.
    """
    out = np.full(points.shape[:-1], np.nan)
    cells = mask.shape[-1]
    if mask.shape != (len(points), cells, cells):
        raise ValueError(f"masks are over the square crop: give ({len(points)}, H, H), not {mask.shape}")
    for example in np.flatnonzero(use.any(axis=1) & mask.any(axis=(1, 2))):
        chosen = np.flatnonzero(use[example])
        place = (points[example][:, chosen].astype(np.float64) + 1) / 2 * cells
        finite = np.isfinite(place).all(axis=-1)
        flat = place[finite]
        cell = np.floor(flat).astype(np.int64)
        inside = ((cell >= 0) & (cell < cells)).all(axis=-1)
        at = np.clip(cell, 0, cells - 1)
        inside &= mask[example][at[:, 1], at[:, 0]]
        distance = np.zeros(len(flat))
        distance[~inside] = CROP_PIXELS / cells * _to_cells(flat[~inside], _rim(mask[example]))
        values = np.full(place.shape[:-1], np.nan)
        values[finite] = distance
        out[example][:, chosen] = values
    return out


def mask_metrics(distance: np.ndarray) -> dict[str, float]:
    """``perc_in`` (share, 0 to 1) and ``min_dist`` (pixels) of what :func:`mask_distance` gave for a whole set."""
    known = distance[np.isfinite(distance)]
    if not known.size:
        return {"perc_in": float("nan"), "min_dist": float("nan")}
    return {"perc_in": float((known == 0).mean()), "min_dist": float(known.mean())}
