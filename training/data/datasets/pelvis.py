"""Where the pelvis is at rest, from its projections: a licensed body's constant, found without the body.

SMPL's translation is counted from the rest pelvis J_0(betas), which only the licensed body knows. The files give where
the posed pelvis projects to, and J_0 is linear in betas, so a file with people at several places fixes it.
"""

from __future__ import annotations

__all__ = ["rest_pelvis"]

import numpy as np

_SURE = 0.01  # metres, standard deviation
_NOISE = 0.1  # pixels: the least that projections are trusted to
_PIXELS = 2.0  # median error of a fit that is believed
_NEAR = 0.3  # metres: people nearer to the camera's plane do not count
_PLACE, _PER_BETA = 0.5, 0.02  # metres, standard deviations before anything is seen: of J_0, and of its change per beta


def rest_pelvis(
    translation: np.ndarray,
    intrinsics: np.ndarray,
    pixels: np.ndarray,
    extrinsics: np.ndarray | None = None,
    betas: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rest pelvis of each person, by Bayesian least squares.

    With p = R (J_0 + D betas + translation) + t, the pelvis projects to u where f p_x + (c - u) p_z = 0: linear in J_0
    and D. Divided by the depth the error is in pixels, so each pass has the depths of the one before.

    Args:
        translation: (K, 3) SMPL's, in the world.
        intrinsics: (K, 4) fx, fy, cx, cy.
        pixels: (K, 2) of the pelvis joint.
        extrinsics: (K, 4, 4) world to camera; None where the world is the camera's frame.
        betas: (K, B) shapes; None where all people are the same.

    Returns:
        (K, 3) J_0(betas) in metres, and (K,) whether it is known to 1 cm. It is not where nobody moves.
    """
    count = len(translation)
    outside = np.tile(np.eye(4), (count, 1, 1)) if extrinsics is None else extrinsics
    turn, shift = outside[:, :3, :3], outside[:, :3, 3]
    ones = np.ones((count, 1))
    features = ones if betas is None else np.concatenate((ones, betas), axis=1)  # (K, 1 + B)
    prior = np.repeat([_PLACE, *[_PER_BETA] * (features.shape[1] - 1)], 3) ** -2.0
    lever = intrinsics[:, 2:] - pixels  # (K, 2)
    rows = intrinsics[:, :2, None] * turn[:, :2] + lever[..., None] * turn[:, 2:]  # (K, 2, 3)
    ahead = np.einsum("kij,kj->ki", turn, translation) + shift
    right = -(intrinsics[:, :2] * ahead[:, :2] + lever * ahead[:, 2:])
    use = (ahead[:, 2] > _NEAR) & np.isfinite(rows).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
    rest, sure = np.zeros((count, 3)), np.zeros(count, bool)
    if use.sum() < 2:
        return rest, sure
    noise = _NOISE
    for _ in range(3):
        depth = np.maximum(ahead[:, 2] + np.einsum("kj,kj->k", turn[:, 2], rest), 0.1)[use, None]
        a = np.einsum("kb,kij->kibj", features[use], rows[use] / depth[..., None]).reshape(2 * len(depth), -1)
        b = (right[use] / depth).ravel()
        covariance = np.linalg.inv(a.T @ a / noise**2 + np.diag(prior))
        found = covariance @ (a.T @ b) / noise**2
        error = float(np.median(np.abs(a @ found - b)))
        noise = max(1.4826 * error, _NOISE)  # standard deviation from the median, for normal errors
        rest = features @ found.reshape(-1, 3)
    blocks = covariance.reshape(features.shape[1], 3, features.shape[1], 3)
    spread = np.sqrt(np.einsum("ka,kb,aibi->ki", features, features, blocks).max(axis=1))
    return rest, (spread < _SURE) & (error < _PIXELS)
