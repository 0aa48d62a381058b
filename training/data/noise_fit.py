"""Fits a :class:`~.noise.DetectorNoise` table to what a real detector does on rendered people.

:func:`fit` turns the true and found points that :mod:`.noise_observe` gathers into a table; :func:`compare` draws from
the table and sets it against the observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hmr_prob_ros.detectors import PoseDetector, make_detector
from hmr_prob_ros.skeleton import KEYPOINT_FLIP, KEYPOINT_NAMES, NUM_KEYPOINTS

from .noise import (
    BASES,
    ERROR_EDGES,
    HIDDEN_BY_OBJECT,
    HIDDEN_BY_SELF,
    NUM_QUANTILES,
    NUM_STATES,
    OUTSIDE,
    RADII,
    SWAP_GROUPS,
    SWAPS,
    VISIBLE,
    DetectorNoise,
    normal_cdf,
    person_scale,
    towards_border,
    view_bin,
)
from .noise_observe import Observations, observe

__all__ = ["compare", "fit", "fit_noise"]

_FLIP = np.array(KEYPOINT_FLIP)
_PAIRED = [(min(k, f), max(k, f)) for k, f in enumerate(KEYPOINT_FLIP) if k <= f]


def _find_swaps(
    true: np.ndarray, found: np.ndarray, state: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,23) points that took their twin's place, and (N,3) rows: did the group swap (NaN: it cannot be told)."""
    target, swapped = true.copy(), np.zeros(true.shape[:2], dtype=bool)
    verdict = np.full((len(true), len(SWAP_GROUPS)), np.nan)
    apart = np.linalg.norm(true - true[:, _FLIP], axis=-1) > 0.08 * scale[:, None]
    told = apart & (state != OUTSIDE) & (state[:, _FLIP] != OUTSIDE) & (found[..., 2] > 0)
    for group, members in enumerate(SWAPS):
        use = told & members
        count = use.sum(1)
        share = use / (scale * np.maximum(count, 1))[:, None]
        as_is = (np.linalg.norm(found[..., :2] - target, axis=-1) * share).sum(1)
        turned = (np.linalg.norm(found[..., :2] - target[:, _FLIP], axis=-1) * share).sum(1)
        swap = (count >= 2) & (as_is > 0.05) & (turned < 0.5 * as_is)
        verdict[count >= 2, group] = swap[count >= 2]
        swapped[swap] ^= members
        target = np.where(swapped[..., None], true[:, _FLIP], true)
    return swapped, verdict


def _blur(length: np.ndarray, scale: np.ndarray) -> float:
    """Person size at which errors stop shrinking: it makes the median relative error the same at all sizes."""
    edges = np.quantile(scale, np.linspace(0, 1, 6))
    bins = [(scale >= low) & (scale <= high) for low, high in pairwise(edges)]

    def unevenness(blur: float) -> float:
        return float(np.std([np.log(np.nanmedian(length[b] / np.hypot(scale[b], blur)[:, None])) for b in bins]))

    return min((float(b) for b in range(0, 161, 5)), key=unevenness)


def _fit_pull(found: np.ndarray, target: np.ndarray, seen: Observations) -> np.ndarray:
    """(23,) share of the way back to the border, left and right as one: median over the points outside."""
    back = np.clip(target, 0, seen.size[:, None]) - target
    way = np.linalg.norm(back, axis=-1)
    share = ((found - target) * back).sum(-1) / np.maximum(way, 1.0) ** 2
    share[(seen.state != OUTSIDE) | (way < 10)] = np.nan
    overall = np.nanmedian(share) if np.isfinite(share).any() else 0.0
    pull = np.zeros(NUM_KEYPOINTS)
    for k, other in _PAIRED:
        own = share[:, _sides(k)]
        own = own[np.isfinite(own)]
        pull[[k, other]] = (np.median(own) * len(own) + overall * 20) / (len(own) + 20) if len(own) else overall
    return pull.clip(0, 1)


def _sides(k: int) -> list[int]:
    return sorted({k, KEYPOINT_FLIP[k]})


def _fit_bias(error: np.ndarray, vectors: np.ndarray, state: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """(23,4,3) robust least squares of ``error`` (N,23,2) on ``vectors`` (3,N,23,2), left and right as one."""
    bias = np.zeros((NUM_KEYPOINTS, NUM_STATES, len(BASES)))
    vectors, error = vectors / unit[:, None, None], error / unit[:, None, None]
    for k, other in _PAIRED:
        prior = np.zeros(len(BASES))
        for s in range(NUM_STATES):
            x = np.concatenate([vectors[:, state[:, i] == s, i] for i in _sides(k)], axis=1)
            y = np.concatenate([error[state[:, i] == s, i] for i in _sides(k)])
            good = np.isfinite(y).all(-1)
            x, y = x[:, good].reshape(len(BASES), -1), y[good].ravel()
            solution = prior
            for _ in range(8):  # Geman-McClure weights; the ridge pulls scarce states to the visible one
                rest = y - solution @ x
                spread = 1.5 * np.median(np.abs(rest)) + 1e-4 if len(rest) else 1.0
                weight = 1 / (1 + (rest / spread) ** 2) ** 2
                ridge = 0.3 * np.eye(len(BASES))
                solution = np.linalg.solve((x * weight) @ x.T + ridge, (x * weight) @ y + ridge @ prior)
            bias[[k, other], s] = solution
            if s == VISIBLE:
                prior = solution
    return bias


def _quantiles(values: np.ndarray) -> np.ndarray:
    """(20,) quantiles at the Rayleigh radii; beyond what the sample can tell the last slope goes on."""
    values = np.sort(values)
    shown = int(np.sum(np.sqrt(2 * np.log(max(len(values) / 3, 2))) >= RADII))
    out = np.quantile(values, 1 - np.exp(-(RADII**2) / 2))
    out[0] = 0.0
    if shown < len(RADII):
        slope = max((out[shown - 1] - out[max(shown - 4, 0)]) / 3, 0.0)
        out[shown:] = out[shown - 1] + slope * np.arange(1, len(RADII) - shown + 1)
    return np.maximum.accumulate(out).clip(0, 1.5)


def _scores(values: np.ndarray) -> np.ndarray:
    """Ranks in (0,1) of the finite values."""
    out = np.full(values.shape, np.nan)
    good = np.flatnonzero(np.isfinite(values))
    out[good[np.argsort(values[good], kind="stable")]] = (np.arange(len(good)) + 0.5) / max(len(good), 1)
    return out


def _correlation(scores: np.ndarray) -> np.ndarray:
    """(23,23) correlation of ``scores`` (N,23,...) with gaps, the same for the mirrored body, shrunk where scarce."""
    flat = np.moveaxis(scores, 1, -1).reshape(-1, NUM_KEYPOINTS)
    known = np.isfinite(flat)
    value = np.where(known, flat, 0.0)
    count = known.T.astype(float) @ known
    power = (value**2).T @ known
    matrix = value.T @ value / np.sqrt(np.maximum(power * power.T, 1e-9)) * count / (count + 30)
    matrix = (matrix + matrix[_FLIP][:, _FLIP]) / 2
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)


def _dof(radii: np.ndarray, correlation: np.ndarray, rng: np.random.Generator) -> float:
    """Degrees of freedom whose t copula ties the errors' lengths together as much as the observed ``radii`` (N,23)."""

    def tie(values: np.ndarray) -> float:
        ranks = np.stack([_scores(column) for column in values.T], axis=1) - 0.5
        matrix = _correlation(ranks)
        return float(matrix[np.triu_indices(NUM_KEYPOINTS, 1)].mean())

    known = ~np.isnan(radii).all(0)
    wanted = tie(np.where(known, radii, np.nan))
    root = np.linalg.cholesky(correlation + 1e-3 * np.eye(NUM_KEYPOINTS))
    normal = np.linalg.norm(root @ rng.standard_normal((2, 3000, NUM_KEYPOINTS, 1)), axis=0)[..., 0]

    def drawn(dof: float) -> float:
        lengths = normal * np.sqrt(dof / rng.chisquare(dof, (len(normal), 1)))
        return abs(tie(np.where(known, lengths, np.nan)) - wanted)

    return min((2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 25.0, 60.0), key=drawn)


def _fit_confidence(confidence: np.ndarray, state: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """(23,4,5,11) quantiles.

    Cells with few observations borrow: from the same point hidden by something else, from all points in their state
    and error bin, from their state.
    """
    levels = np.linspace(0, 1, NUM_QUANTILES)
    table = np.zeros((NUM_KEYPOINTS, NUM_STATES, len(ERROR_EDGES) + 1, NUM_QUANTILES))
    known = np.isfinite(confidence)
    for s in range(NUM_STATES):
        for e in range(len(ERROR_EDGES) + 1):
            cell = known & (state == s) & (bins == e)
            spare = [confidence[cell], confidence[known & (state == s)], confidence[known]]
            pool = next(values for values in spare if len(values) >= 20)
            for k, other in _PAIRED:
                own = confidence[:, [k, other]][cell[:, [k, other]]]
                if len(own) < 30:  # 30 values in all, so that a few own ones still count
                    hidden = known & np.isin(state, (HIDDEN_BY_SELF, HIDDEN_BY_OBJECT)) & (bins == e)
                    akin = confidence[:, [k, other]][hidden[:, [k, other]]]
                    lent = akin if len(akin) >= 15 and s in (HIDDEN_BY_SELF, HIDDEN_BY_OBJECT) else pool
                    own = np.concatenate([own, np.quantile(lent, np.linspace(0.02, 0.98, 30 - len(own)))])
                table[[k, other], s, e] = np.quantile(own, levels)
    return table.clip(0, 1)


def fit(observations: Observations, name: str, seed: int = 0) -> DetectorNoise:
    """Table of the detector ``name`` from what it did.

    Raises:
        ValueError: fewer than 200 people were found.
    """
    seen = observations[observations.matched]
    if len(seen.true) < 200:
        raise ValueError(f"only {len(seen.true)} people were found: 200 are the least to fit a noise table to")
    scale = person_scale(seen.true, seen.size)
    missing = np.nanmax(seen.found[..., 2], axis=0) <= 0
    found = np.where(missing[:, None], np.nan, seen.found)
    swapped, verdict = _find_swaps(seen.true, np.nan_to_num(found), seen.state, scale)
    view = view_bin(seen.true, scale)
    told, happened = ~np.isnan(verdict), np.nan_to_num(verdict)
    swap = np.stack([(happened[view == v].sum(0) + 0.5) / (told[view == v].sum(0) + 25) for v in range(3)])

    target = np.where(swapped[..., None], seen.true[:, _FLIP], seen.true)
    # A point that is a picture away, or behind the camera, tells nothing of the detector.
    far = (np.abs(seen.true - seen.size[:, None] / 2) > seen.size[:, None]).any(-1)
    found[far] = np.nan
    whole = (seen.state == OUTSIDE).sum(1) <= 2  # the size of a person cut off by the border is another thing
    length = np.linalg.norm(found[..., :2] - target, axis=-1)
    blur = _blur(np.where(seen.state == VISIBLE, length, np.nan)[whole], scale[whole])
    unit = np.hypot(scale, blur)
    pull = _fit_pull(found[..., :2], target, seen)
    error = found[..., :2] - towards_border(target, seen.state, seen.size, pull)
    vectors = np.einsum("ikl,nlc->inkc", BASES, target)
    bias = _fit_bias(error, vectors, seen.state, unit)
    offset = np.einsum("nki,inkc->nkc", bias[np.arange(NUM_KEYPOINTS), seen.state], vectors)
    rest = (error - offset) / unit[:, None, None]
    length = np.linalg.norm(rest, axis=-1)

    radial = np.zeros((NUM_KEYPOINTS, NUM_STATES, len(RADII)))
    radius = np.full(length.shape, np.nan)
    for k, other in _PAIRED:
        for s in range(NUM_STATES):
            sides = _sides(k)
            own = length[:, sides][(seen.state[:, sides] == s) & np.isfinite(length[:, sides])]
            if len(own) < 50:
                pool = length[(seen.state == s) & np.isfinite(length)]
                own = np.concatenate([own, np.quantile(pool, np.linspace(0.01, 0.99, 50 - len(own)))])
            radial[[k, other], s] = _quantiles(own)
        for i in _sides(k):
            for s in range(NUM_STATES):
                rows = seen.state[:, i] == s
                radius[rows, i] = np.sqrt(-2 * np.log(1 - _scores(length[rows, i])))
    scores = radius[..., None] * rest / np.maximum(length[..., None], 1e-9)
    correlation = _correlation(scores)

    confidence = found[..., 2].copy()
    confidence[((found[..., :2] < 0) | (found[..., :2] >= seen.size[:, None])).any(-1)] = np.nan
    apart = np.linalg.norm(found[..., :2] - seen.true, axis=-1) / unit[:, None]
    bins = np.searchsorted(ERROR_EDGES, np.nan_to_num(apart))
    table = _fit_confidence(confidence, seen.state, bins)
    rng = np.random.default_rng(seed)
    shaken = confidence + 1e-4 * rng.random(confidence.shape)  # ties have no order of their own
    ranks = np.full(confidence.shape, np.nan)
    for k in range(NUM_KEYPOINTS):
        for s in range(NUM_STATES):
            for e in range(len(ERROR_EDGES) + 1):
                rows = (seen.state[:, k] == s) & (bins[:, k] == e)
                ranks[rows, k] = _scores(shaken[rows, k])
    grid = np.linspace(-4, 4, 801)
    normal = np.interp(ranks, normal_cdf(grid), grid)  # keeps NaN
    return DetectorNoise(
        name, radial, bias, correlation, _dof(length, correlation, rng), blur, swap, table, _correlation(normal),
        missing, pull, f"{len(seen.true)} of {len(observations.true)} rendered people found",
    )  # fmt: skip


def compare(observations: Observations, noise: DetectorNoise, seed: int = 0) -> str:
    """Observed and drawn, as a table: median and 95 % error in % of the person's size, and mean confidence."""
    seen = observations[observations.matched]
    scale = person_scale(seen.true, seen.size)
    unit = np.hypot(scale, noise.blur_px)[:, None]
    drawn = noise.sample(seen.true, scale, seen.state, seen.size, np.random.default_rng(seed))
    outside = ((seen.found[..., :2] < 0) | (seen.found[..., :2] >= seen.size[:, None])).any(-1)
    real = np.where(outside[..., None] & (np.arange(3) == 2), 0.0, seen.found)
    lines = [f"{'observed | drawn':24}" + "".join(f"{s:>30}" for s in ("visible", "by self", "by object", "outside"))]
    for k, name in enumerate(KEYPOINT_NAMES):
        if noise.missing[k] or name.startswith("right"):
            continue
        cells = []
        for s in range(NUM_STATES):
            rows = seen.state[:, k] == s
            numbers = []
            for points in (real, drawn):
                error = 100 * np.linalg.norm(points[rows, k, :2] - seen.true[rows, k], axis=-1) / unit[rows, 0]
                if len(error):
                    middle, worst, sure = np.median(error), np.quantile(error, 0.95), points[rows, k, 2].mean()
                    numbers.append(f"{middle:4.1f} {worst:5.1f} {sure:.2f}")
            cells.append(f"{' | '.join(numbers):>30}")
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def fit_noise(
    out: Path,
    detector: Sequence[str],
    mocap: Sequence[Path],
    weights: Path | None,
    pictures: Path | None,
    count: int,
    shards: Path,
    seed: int,
) -> None:
    """Observe, fit, write ``noise_<detector>.json`` into the folder ``out``, and print how table and detector agree."""
    made: dict[str, PoseDetector] = {}
    for name in detector:
        if name == "blazepose":
            made[name] = make_detector("mediapipe")
        elif weights is None:
            raise SystemExit("tinypose needs --weights, the folder with yolox_nano.onnx and tinypose_256x192.onnx")
        else:
            paths = {"detector": weights / "yolox_nano.onnx", "pose": weights / "tinypose_256x192.onnx"}
            made[name] = make_detector("rtmlib", **paths)
    files = observe(shards, made, mocap, count, seed, pictures)
    for name in detector:
        observations = Observations.load(files, name)
        table = fit(observations, name, seed)
        table.save(out / f"noise_{name}.json")
        print(f"{name}: {table.fitted}; swaps {np.round(table.swap, 3).tolist()}")
        print(f"t copula {table.dof}, blur {table.blur_px} px, pull {np.round(table.pull[[0, 9, 15]], 2).tolist()}")
        print(compare(observations, table, seed))
