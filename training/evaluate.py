"""How good any method of this package is on any examples: one protocol for all of them.

Per example with true joints, in mm, as in the papers (Biggs et al. 2020, Kolotouros et al. 2021, Wehrbein et al. 2025):

* ``mode``: the single answer, index 0. ``mean``: the weighted mean of the samples' joints.
* ``min_of`` n: the best of the first n samples, the single answer being the first. Of a method with M heads: of index 0
  and the heaviest others.
* ``quantised`` n: the best of n modes by weighted k-means with the method's own weights. Drawn samples: of the first
  100, for n = 100 of 400. Heads: of all M; n = M are the heads themselves. ``quantised_uniform``: all weights equal.
* each with ``mpjpe`` (root aligned), ``pa_mpjpe`` (after the best similarity) and, when asked for, ``pve``; every
  metric is minimised by itself. What a method cannot give (n > M, more than 100 modes) is NaN.
* ``absolute``: distance in the camera's frame, where the true place is known.
* ``spread``: mean distance of 100 samples to their mean, pelvis at the origin, by whether the joint is visible.
* ``coverage``: share of true joints in the 50 % and 90 % ellipsoids of the samples' mean and covariance;
  ``coverage_relative`` with the pelvis at the origin.
* ``keypoints2d``: pixels between projected and true visible COCO keypoints, crop of 256, single answer and samples.
* ``mask``: PercIn and MinDist of the samples' invisible COCO keypoints whose true place is inside the crop, without
  examples that an object hides; ``truth``: PercIn of the true places, what a perfect method would get.
* ``nll``: mean of -log p(pose + noise | condition) in nats, noise as in ``hmr_prob_ros.evaluate``.
* ``ms``: median milliseconds of one image on one thread, for one and for 100 samples.

Every example has latents of its own, seeded by its place in the data: neither the batch size nor the list of n changes
the first samples. Samples are drawn and measured in portions, so that 4,096 of them fit.
"""

from __future__ import annotations

__all__ = ["COUNTS", "EvaluationError", "evaluate_model"]

import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hmr_prob_ros import joint_sets
from hmr_prob_ros.evaluate import NLL_NOISE, Tally
from hmr_prob_ros.joint_sets import JointSet
from hmr_prob_ros.metrics import (
    CHI2_3,
    align_root,
    best_of,
    coverage,
    mahalanobis,
    mpjpe,
    pa_mpjpe,
    split_mean,
    spread,
)
from hmr_prob_ros.metrics_image import keypoint_error, mask_distance, mask_metrics, project_to_crop
from hmr_prob_ros.quantize import quantize, quantize_heads

from .data.examples import Examples
from .evaluate_samples import Drawn, Source, Truth, array

logger = logging.getLogger(__name__)

COUNTS = (1, 5, 10, 25, 100)
SAMPLES = 100
"""Samples that spread, coverage, the picture's metrics and modes are taken of."""
MORE_SAMPLES = 400
COCO = 17
"""The first of the keypoints, which the papers' 2D metrics use."""
_MM = 1000.0


class EvaluationError(ValueError):
    """What cannot be evaluated; the text says why and how to mend it."""


def evaluate_model(
    model: nn.Module,
    examples: Examples | Iterable[Examples],
    counts: Sequence[int] = COUNTS,
    joint_set: str | JointSet = "smpl",
    *,
    quantised: bool = True,
    keep_first: bool = False,
    vertices: bool = False,
    visible_by: str = "truth",
    timing: bool = True,
    batch: int = 16,
    seed: int = 0,
    threads: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a method, or anything with its interface (see :mod:`.baselines`), on examples.

    Args:
        model: a ``LiftingModel``. It is evaluated where its weights are and left in the mode it was in.
        examples: one batch, or several; what they do not know is left out of the means.
        counts: the n of ``min_of`` and ``quantised``.
        joint_set: ``smpl``, ``h36m``, ``lsp``, or one through a regressor, for the errors (all else: SMPL's).
        quantised: whether to make modes, which takes about half of the time.
        keep_first: make n modes of the single answer and n - 1 clusters of the rest, as the code of Biggs et al. does.
        vertices: also PVE, of up to 400 samples, where pose and shape are known; as slow as it sounds.
        visible_by: ``truth``: what is really visible; ``detector``: a confidence of 0.5 or more, as Wehrbein et al.
        timing: measure ``ms``.
        batch: people at once.
        seed: of latents and likelihood noise.
        threads: of torch while this runs, 0 for as many as there are.
        progress: show a bar.

    Returns:
        The means under the names above, and ``model``, ``joint_set``, ``count``, ``samples``, ``heads``, ``seed``.

    Raises:
        EvaluationError: there are no examples, or none with a true joint; or an argument does not fit.
        JointSetError: there is no such joint set.
    """
    if not counts or min(counts) < 1:
        raise EvaluationError(f"counts are numbers of samples above 0, not {tuple(counts)}")
    if visible_by not in ("truth", "detector"):
        raise EvaluationError(f"visible_by is 'truth' or 'detector', not {visible_by!r}")
    if vertices and not getattr(model.body, "has_mesh", True):
        raise EvaluationError("the model's body has no mesh, which vertices need: use TorchBody(body, mesh=True)")
    chosen = joint_set if isinstance(joint_set, JointSet) else joint_sets.joint_set(joint_set)
    training = model.training
    with torch.no_grad(), _torch_threads(threads):
        model.eval()
        try:
            run = _Run(model, chosen, sorted(set(counts)), quantised, keep_first, vertices, visible_by, seed)
            for part in _batches(examples, batch, progress):
                run.add(part)
            return run.summary(timing)
        finally:
            model.train(training)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch with ``count`` threads, 0 for as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(examples: Examples | Iterable[Examples], batch: int, progress: bool) -> Iterator[Examples]:
    """All examples in portions of at most ``batch``; which ones share a portion changes nothing."""
    parts = [examples] if isinstance(examples, Examples) else examples
    total = None if isinstance(parts, Iterator) or not hasattr(parts, "__len__") else sum(len(part) for part in parts)
    with tqdm(total=total, desc="evaluate", unit="example", disable=not progress) as bar:
        for part in parts:
            for start in range(0, len(part), batch):
                rows = part[start : start + batch]
                yield rows
                bar.update(len(rows))


class _Run:
    """One evaluation under way."""

    def __init__(
        self,
        model: nn.Module,
        chosen: JointSet,
        counts: Sequence[int],
        quantised: bool,
        keep_first: bool,
        vertices: bool,
        visible_by: str,
        seed: int,
    ) -> None:
        self.model, self.chosen, self.counts, self.seed = model, chosen, counts, seed
        self.keep_first = keep_first
        self.heads: int | None = model.heads
        self.modes = [n for n in counts if n <= (self.heads or SAMPLES)] if quantised else []
        self.learned = getattr(model, "modes", 0)  # these come first; the draws behind them are the posterior
        self.few = self.heads or self.learned + SAMPLES
        # So many modes need more samples to choose from, unless the method has learned as many.
        more = SAMPLES in self.modes and self.learned < SAMPLES
        kept = self.heads or self.learned + (MORE_SAMPLES if more else SAMPLES)
        self.source = Source(model, chosen, self.heads or max(kept, *counts), kept, vertices, visible_by, seed)
        self.metrics = ("mpjpe", "pa_mpjpe", "pve") if vertices else ("mpjpe", "pa_mpjpe")
        self.noise = np.random.default_rng(seed + 1)
        self.count = self.strange = 0
        self.first: Examples | None = None
        self.tally = Tally()

    def add(self, part: Examples) -> None:
        """Measure one batch."""
        part = part.to(self.source.device)
        self.first = part[:1] if self.first is None else self.first
        truth = self.source.truth(part)
        drawn = self.source.draw(part, truth, self.count)
        self.count += len(part)
        self.strange += drawn.strange
        self.add_errors(drawn)
        weights = drawn.weights[:, : self.few]
        weights = weights / weights.sum(axis=1, keepdims=True)
        self.add_moments(truth, drawn, weights)
        if drawn.keypoints is not None:
            points = drawn.keypoints[:, : self.few]
            drawn_only = np.concatenate((points[:, :1], points[:, max(self.learned, 1) :]), axis=1)
            self.add_picture(part, truth, drawn_only)
        if getattr(self.model, "has_density", False):
            self.add_likelihood(part)

    def add_errors(self, drawn: Drawn) -> None:
        """Single answer, best of n samples, best of n modes."""
        order = (
            _heaviest(drawn.weights)
            if self.heads
            else np.broadcast_to(np.arange(self.source.total), drawn.weights.shape)
        )
        for metric, errors in drawn.errors.items():
            self.tally.add(f"mode.{metric}", errors[:, 0])
            ordered = np.take_along_axis(errors, order[:, : errors.shape[1]], axis=1)
            for n, best in best_of(ordered, self.counts).items():
                self.tally.add(f"min_of.{n}.{metric}", best)
        for n in self.modes:
            pool = self.learned + MORE_SAMPLES if n == SAMPLES else self.few
            kinds = {"quantised": drawn.logs[:, :pool]}
            if self.heads:
                kinds["quantised_uniform"] = np.zeros_like(drawn.logs)
            for kind, logs in kinds.items():
                chosen = self.choose(drawn.joints[:, :pool], logs, n)
                for metric, errors in drawn.errors.items():
                    self.tally.add(f"{kind}.{n}.{metric}", np.take_along_axis(errors, chosen, axis=1).min(axis=1))

    def choose(self, joints: np.ndarray, logs: np.ndarray, n: int) -> np.ndarray:
        """(B, n) which samples (B, N, J, 3) with log-weights (B, N) are the modes."""
        count = joints.shape[1]
        if n >= count or n <= self.learned:  # learned ones come first
            return np.broadcast_to(np.arange(min(n, count)), (len(joints), min(n, count)))
        joints = np.nan_to_num(joints, nan=0.0, posinf=0.0, neginf=0.0)
        if self.heads or self.keep_first:
            return np.stack([quantize_heads(j, n, log, self.keep_first).index for j, log in zip(joints, logs)])
        # As on the robot. Draws weigh the same, unless the method says otherwise.
        mass = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.stack([quantize(j, n, m).index for j, m in zip(joints, mass)])

    def add_moments(self, truth: Truth, drawn: Drawn, weights: np.ndarray) -> None:
        """Mean, distances in the camera's frame, spread and coverage of samples with weights (B, P)."""
        tally, mass, joints = self.tally, weights[..., None, None], drawn.joints[:, : self.few]
        centre = (drawn.rooted[:, : self.few] * mass).sum(axis=1)
        tally.add("mean.mpjpe", _MM * mpjpe(centre, truth.rooted, root=None))
        tally.add("mean.pa_mpjpe", _MM * pa_mpjpe(centre, truth.rooted))
        if drawn.keypoints is None:  # only Human3.6M's joints, round their pelvis
            return
        mean = (joints * mass).sum(axis=1)
        placed = np.where(truth.placed[:, None, None], truth.joints, np.nan)
        for name, given in (("mode", joints[:, 0]), ("mean", mean)):
            distance = _MM * np.linalg.norm(given - placed, axis=-1)
            tally.add(f"absolute.{name}.pelvis", distance[:, 0])
            tally.add(f"absolute.{name}.joints", distance)
        relative = align_root(joints)
        tally.add("visible", truth.visible)
        tally.add("spread", _MM * spread(relative, weights))
        tally.add("coverage", mahalanobis(mean, _covariance(joints, weights), placed))
        squared = mahalanobis((relative * mass).sum(axis=1), _covariance(relative, weights), align_root(truth.joints))
        squared[:, 0] = np.nan  # the pelvis is at its own origin
        tally.add("coverage_relative", squared)

    def add_picture(self, part: Examples, truth: Truth, keypoints: np.ndarray) -> None:
        """2DKP error, PercIn and MinDist of samples' keypoints (B, P, 23, 3)."""
        points = project_to_crop(keypoints[:, :, :COCO], array(part.box))
        true, seen = truth.points[:, :COCO], truth.seen[:, :COCO]
        pixels = keypoint_error(points, true, seen)
        self.tally.add("keypoints2d.mode", pixels[:, 0])
        self.tally.add("keypoints2d.samples", pixels[:, 1:].mean(axis=1) if pixels.shape[1] > 1 else pixels[:, 0])
        if part.mask is None:
            return
        hidden = ~seen & (np.abs(true) <= 1).all(axis=-1)  # false where the true place is unknown
        if part.occluded is not None:
            hidden &= ~array(part.occluded)[:, None]
        mask = array(part.mask).astype(bool)
        for name, given in (("samples", points), ("truth", np.nan_to_num(true)[:, None])):
            distance = mask_distance(given, mask, hidden)
            distance = distance[np.broadcast_to(hidden[:, None], distance.shape)]
            self.tally.add(f"mask.{name}", distance)

    def add_likelihood(self, part: Examples) -> None:
        """-log p of the true pose with noise, nats."""
        noise = NLL_NOISE * self.noise.standard_normal((len(part), 1, part.pose6d.shape[1]))
        pose = part.pose6d[:, None] + torch.from_numpy(noise).to(part.pose6d)
        nll = -array(self.model.log_prob(pose, self.model.condition(part.keypoints, part.box, part.image)))[:, 0]
        self.tally.add("nll", nll if part.has_pose is None else np.where(array(part.has_pose), nll, np.nan))

    def milliseconds(self, samples: int, repeats: int = 15) -> float:
        """Median time of one image on one thread."""
        one = self.first
        latents = self.model.latents(1, samples, torch.Generator().manual_seed(self.seed)).to(self.source.device)
        took = []
        with _torch_threads(1):
            for _ in range(repeats + 3):
                began = time.perf_counter()
                array(self.model(one.keypoints, one.box, latents, one.image)["sample_weight"])
                took.append(time.perf_counter() - began)
        return round(1000 * statistics.median(took[3:]), 3)

    def summary(self, timing: bool) -> dict[str, Any]:
        """All means."""
        tally = self.tally
        if not self.count:
            raise EvaluationError("there are no examples to evaluate: give at least one")
        if not np.isfinite(tally.all("mode.mpjpe")).any():
            raise EvaluationError(
                f"none of the {self.count} examples has a true joint and its root: the joint set {self.chosen.name} "
                "needs joints of the body and, but for smpl, keypoints of its surface"
            )
        visible = tally.all("visible").astype(bool)

        def errors(name: str) -> dict[str, float]:
            return {metric: tally.mean(f"{name}.{metric}") for metric in self.metrics}

        def parts(name: str) -> dict[str, float]:
            return {key: round(value, 3) for key, value in split_mean(tally.all(name), visible).items()}

        def covered(name: str) -> dict[str, dict[str, float]]:
            squared = tally.all(name)
            pick = {"all": visible | ~visible, "visible": visible, "invisible": ~visible}
            return {f"{p:.0%}": {k: round(coverage(squared[v], p), 4) for k, v in pick.items()} for p in CHI2_3}

        uniform = "quantised_uniform" if self.heads else "quantised"
        result: dict[str, Any] = {
            "model": getattr(self.model, "name", type(self.model).__name__),
            "joint_set": self.chosen.name,
            "count": self.count,
            "samples": self.source.total,
            "heads": self.heads,
            "seed": self.seed,
            "not_finite": self.strange,
            "mode": errors("mode"),
            "mean": {metric: tally.mean(f"mean.{metric}") for metric in ("mpjpe", "pa_mpjpe")},
            "min_of": {str(n): errors(f"min_of.{n}") for n in self.counts},
            "quantised": {str(n): errors(f"quantised.{n}") for n in self.counts},
            "quantised_uniform": {str(n): errors(f"{uniform}.{n}") for n in self.counts},
            "absolute": {
                name: {part: tally.mean(f"absolute.{name}.{part}") for part in ("pelvis", "joints")}
                for name in ("mode", "mean")
            },
            "spread": parts("spread"),
            "coverage": covered("coverage"),
            "coverage_relative": covered("coverage_relative"),
            "keypoints2d": {name: tally.mean(f"keypoints2d.{name}") for name in ("mode", "samples")},
            "mask": mask_metrics(tally.all("mask.samples"))
            | {"truth": mask_metrics(tally.all("mask.truth"))["perc_in"], "count": len(tally.all("mask.truth"))},
            "nll": tally.mean("nll"),
            "ms": {},
        }
        if timing:
            counts = (self.heads,) if self.heads else (1, SAMPLES)
            result["ms"] = {str(n): self.milliseconds(n) for n in counts}
        if self.strange:
            logger.warning("%d samples are not finite: the weights are broken, or an input is", self.strange)
        return result


def _heaviest(weights: np.ndarray) -> np.ndarray:
    """(B, M) places of the heads: 0, then the heaviest."""
    rest = 1 + np.argsort(-weights[:, 1:], axis=1, kind="stable")
    return np.concatenate([np.zeros((len(weights), 1), np.int64), rest], axis=1)


def _covariance(joints: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Unbiased weighted covariance (B, J, 3, 3) of samples (B, N, J, 3):
    :math:`\sum_i w_i d_i d_i^T / (1 - \sum_i w_i^2)`, zero for a single sample."""
    centred = joints - (joints * weights[..., None, None]).sum(axis=1, keepdims=True)
    scale = weights / np.maximum(1 - (weights**2).sum(axis=1, keepdims=True), 1e-6)
    return np.einsum("bn,bnji,bnjk->bjik", scale, centred, centred, optimize=True)
