"""How good a bundle is on a set: errors of the mode, of the best of n samples and of n quantised modes.

The protocol, per example with true joints:

* ``mode``: the sample of latent zero.
* ``min_of`` n: the best of the first n of independent samples, the mode being the first of them.
* ``quantised`` n: the best of n modes that 100 samples are summed up in (what is published on the robot); for
  n = 100 the modes are made from 400 samples, because 100 modes of 100 samples are the samples.
* ``mean``: the posterior's mean joints.
* ``nll``: mean of -log p(pose + noise | condition) in nats, where the pose is the 6D rotations of the 24 joints and the
  noise is Gaussian with standard deviation 0.005, without which 6D rotations lie on a set of measure zero.

MPJPE is taken after both pelves were moved together, PA-MPJPE after the best similarity; the best is chosen for each
metric by itself, as is usual. Every example draws its own latents from one seeded generator, so that the result does
not depend on the batch size.
"""

from __future__ import annotations

__all__ = ["NLL_NOISE", "Tally", "evaluate", "format_table"]

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .bundle import Bundle
from .camera import condition
from .engines import Engine, make_engine
from .metrics import CHI2_3, align_root, coverage, mahalanobis, mpjpe, pa_mpjpe
from .quantize import quantize
from .setfile import PoseSet, SetError
from .skeleton import JOINT_NAMES

logger = logging.getLogger(__name__)

COUNTS = (5, 10, 25, 100)
MORE_SAMPLES = 400
NLL_NOISE = 0.005
_MM = 1000.0


class Tally:
    """Values per example under dotted names; their mean over all batches at the end."""

    def __init__(self) -> None:
        self.values: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, value: np.ndarray) -> None:
        self.values.setdefault(name, []).append(np.asarray(value, dtype=np.float64))

    def errors(self, name: str, estimates: np.ndarray, truth: np.ndarray) -> None:
        """Best MPJPE and PA-MPJPE in mm over axis 1 of ``estimates`` (B, n, 24, 3)."""
        for metric, distance in (("mpjpe", mpjpe), ("pa_mpjpe", pa_mpjpe)):
            self.add(f"{name}.{metric}", _MM * distance(estimates, truth[:, None]).min(axis=1))

    def all(self, name: str) -> np.ndarray:
        return np.concatenate(self.values.get(name, [np.empty(0)]))

    def mean(self, name: str) -> float:
        values = self.all(name)
        known = values[np.isfinite(values)]
        return round(float(known.mean()), 3) if known.size else float("nan")

    def pair(self, name: str) -> dict[str, float]:
        return {metric: self.mean(f"{name}.{metric}") for metric in ("mpjpe", "pa_mpjpe")}


def evaluate(
    data: PoseSet,
    bundle: Bundle | str | Path | None = None,
    *,
    regressor: str | Path | None = None,
    engine: str = "onnxruntime",
    counts: Sequence[int] = COUNTS,
    batch: int = 16,
    seed: int = 0,
    threads: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a bundle on a set.

    Args:
        data: the examples. Those of whom too little is seen to place a crop are counted as ``skipped``.
        bundle: a bundle, its folder, or None for the shipped one.
        regressor: an ONNX file, or a folder with ``regressor.onnx``, with the inputs ``keypoints`` and ``box`` and the
            output ``joints`` (B, 24, 3): a deterministic baseline to print beside.
        engine: name of the engine.
        counts: the n of ``min_of`` and ``quantised``.
        batch: people per engine call.
        seed: of latents and likelihood noise.
        threads: of the engine, 0 for its own choice.
        progress: show a bar.

    Returns:
        ``count``, ``skipped``, ``mode``, ``mean``, ``min_of``, ``quantised``, ``absolute``, ``spread``, ``coverage``,
        ``per_joint`` in mm, ``nll`` in nats (NaN where the set has no rotations or is of another body), and
        ``baseline`` where a regressor is given.

    Raises:
        BundleError, EngineError: the bundle or the regressor cannot be loaded.
        SetError: no example of the set can be used.
    """
    counts = sorted(set(counts))
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    graph = make_engine(engine, loaded.model_path, threads=threads)
    density = _density_engine(data, loaded, engine, threads)
    baseline = None
    if regressor is not None:
        path = Path(regressor)
        baseline = make_engine(engine, path / "regressor.onnx" if path.is_dir() else path, threads=threads)

    conditions = [condition(data.keypoints[i], data.camera(i)) for i in range(len(data))]
    known = np.isfinite(data.joints).all(axis=-1).any(axis=1)
    used = np.array([i for i, given in enumerate(conditions) if given is not None and known[i]], dtype=int)
    if not used.size:
        raise SetError(
            "no example of the set can be used: each needs two keypoints above confidence 0.3 and a known joint"
        )
    rng, noise_rng = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    tally = Tally()
    for start in tqdm(range(0, len(used), batch), desc="evaluate", unit="batch", disable=not progress):
        rows = used[start : start + batch]
        given = [conditions[i] for i in rows]
        inputs = {
            "keypoints": np.stack([g[0] for g in given if g is not None]),
            "box": np.stack([g[1] for g in given if g is not None]),
        }
        latents = rng.standard_normal((len(rows), MORE_SAMPLES, loaded.latent_size), dtype=np.float32)
        latents[:, 0] = 0.0
        _batch(tally, graph, inputs, latents, data[rows], counts, loaded)
        if baseline is not None:
            joints = baseline.run(inputs, outputs=["joints"])["joints"]
            tally.errors("baseline", joints[:, None], data.joints[rows])
        if density is not None and data.rotations is not None:
            pose = data.rotations[rows][..., :2].swapaxes(-1, -2).reshape(len(rows), 1, -1)
            pose = pose + NLL_NOISE * noise_rng.standard_normal(pose.shape)
            log_density = density.run({**inputs, "pose": pose.astype(np.float32)}, outputs=["log_density"])[
                "log_density"
            ]
            tally.add("nll", -log_density[:, 0])
    result = _summary(tally, counts)
    result.update(bundle=loaded.name, count=int(used.size), skipped=int(len(data) - used.size), seed=seed)
    if baseline is not None:
        result["baseline"] = tally.pair("baseline")
    return result


def _density_engine(data: PoseSet, bundle: Bundle, engine: str, threads: int) -> Engine | None:
    """The engine of ``density.onnx``, or None with the reason logged."""
    if data.rotations is None or not np.isfinite(data.rotations).all(axis=(1, 2, 3)).any():
        logger.warning("the set has no true rotations: nll is NaN")
    elif data.body != bundle.body_hash:
        logger.warning(
            "the set's rotations belong to another body than the bundle's (%.12s, %.12s): nll is NaN",
            data.body,
            bundle.body_hash,
        )
    elif bundle.density_path is None or not Path(bundle.density_path).is_file():
        logger.warning("the bundle has no density.onnx: nll is NaN; export it again with `hmr-prob export`")
    else:
        return make_engine(engine, bundle.density_path, threads=threads)
    return None


def _batch(
    tally: Tally,
    graph: Engine,
    inputs: dict[str, np.ndarray],
    latents: np.ndarray,
    data: PoseSet,
    counts: Sequence[int],
    bundle: Bundle,
) -> None:
    """One batch of examples into the tally. The first 100 samples are the ones that every figure but 100 modes uses."""
    names = ["sample_joints", "mode_joints", "mean", "covariance"]
    outputs = graph.run({**inputs, "latents": latents[:, :100]}, outputs=names)
    samples, truth = outputs["sample_joints"], data.joints
    tally.errors("mode", samples[:, :1], truth)
    tally.errors("mean", outputs["mean"][:, None], truth)
    for n in counts:
        tally.errors(f"min_of.{n}", samples[:, :n], truth)
        if n == bundle.num_modes:
            modes = outputs["mode_joints"]
        elif n < bundle.num_modes and bundle.nested_modes:
            modes = outputs["mode_joints"][:, :n]
        else:
            drawn = samples
            if n >= 100:
                more = graph.run({**inputs, "latents": latents[:, 100:]}, outputs=names[:1])
                drawn = np.concatenate([samples, more["sample_joints"]], axis=1)
            if bundle.nested_modes:  # as Estimator does it
                own = outputs["mode_joints"]
                modes = np.concatenate([own, _quantised(drawn[:, 1:], n - own.shape[1])], axis=1)
            else:
                modes = _quantised(drawn, n)
        tally.errors(f"quantised.{n}", modes, truth)

    for name, joints in (("mode", samples[:, 0]), ("mean", outputs["mean"])):
        distance = _MM * np.linalg.norm(joints - truth, axis=-1)
        tally.add(f"absolute.{name}.pelvis", distance[:, 0])
        tally.add(f"absolute.{name}.joints", distance)
    rooted = align_root(samples)
    tally.add("spread", _MM * np.linalg.norm(rooted - rooted.mean(axis=1, keepdims=True), axis=-1).mean(axis=1))
    tally.add("visible", data.visible)
    tally.add("mahalanobis", mahalanobis(outputs["mean"], outputs["covariance"], truth))
    centre = rooted.mean(axis=1)
    centred = rooted - centre[:, None]
    covariance = np.einsum("bnji,bnjk->bjik", centred, centred) / rooted.shape[1]
    relative = mahalanobis(centre, covariance, align_root(truth))
    relative[:, 0] = np.nan  # the pelvis is at its own origin
    tally.add("mahalanobis_relative", relative)
    tally.add("per_joint.mode", _MM * np.linalg.norm(rooted[:, 0] - align_root(truth), axis=-1))
    error = np.linalg.norm(rooted - align_root(truth)[:, None], axis=-1)
    tally.add("per_joint.best_of_100", _MM * error.min(axis=1))


def _quantised(samples: np.ndarray, n: int) -> np.ndarray:
    """(B, n, 24, 3) the n quantised modes of samples (B, N, 24, 3)."""
    return np.stack([joints[quantize(joints, n).index] for joints in samples])


def _summary(tally: Tally, counts: Sequence[int]) -> dict[str, Any]:
    visible = tally.all("visible").astype(bool)
    spread = tally.all("spread")

    def split(values: np.ndarray, of: Any) -> dict[str, float]:
        parts = {"all": values, "visible": values[visible], "invisible": values[~visible]}
        return {name: round(float(of(part)), 4) if part.size else float("nan") for name, part in parts.items()}

    def covered(name: str) -> dict[str, dict[str, float]]:
        squared = tally.all(name)
        return {f"{p:.0%}": split(squared, lambda part, p=p: coverage(part, p)) for p in CHI2_3}

    return {
        "mode": tally.pair("mode"),
        "mean": tally.pair("mean"),
        "min_of": {str(n): tally.pair(f"min_of.{n}") for n in counts},
        "quantised": {str(n): tally.pair(f"quantised.{n}") for n in counts},
        "nll": tally.mean("nll") if "nll" in tally.values else float("nan"),
        "absolute": {
            name: {part: tally.mean(f"absolute.{name}.{part}") for part in ("pelvis", "joints")}
            for name in ("mode", "mean")
        },
        "spread": split(spread, np.mean),
        "coverage": covered("mahalanobis"),
        "coverage_relative": covered("mahalanobis_relative"),
        "per_joint": {
            joint: {name: _column(tally.all(f"per_joint.{name}"), j) for name in ("mode", "best_of_100")}
            for j, joint in enumerate(JOINT_NAMES)
        },
    }


def _column(values: np.ndarray, column: int) -> float:
    part = values[:, column]
    part = part[np.isfinite(part)]
    return round(float(part.mean()), 3) if part.size else float("nan")


def format_table(result: dict[str, Any], per_joint: bool = False) -> str:
    """The result as text for a terminal."""
    lines = [
        f"{result['count']} examples, bundle {result['bundle']}"
        + (f", {result['skipped']} skipped" if result["skipped"] else "")
    ]
    lines += ["", f"{'':24}{'MPJPE mm':>10}{'PA-MPJPE mm':>13}"]

    def row(name: str, pair: dict[str, float]) -> str:
        return f"{name:24}{pair['mpjpe']:10.1f}{pair['pa_mpjpe']:13.1f}"

    if "baseline" in result:
        lines.append(row("deterministic regressor", result["baseline"]))
    lines += [row("mode", result["mode"]), row("mean", result["mean"])]
    lines += [row(f"best of {n} samples", pair) for n, pair in result["min_of"].items()]
    lines += [row(f"best of {n} modes", pair) for n, pair in result["quantised"].items()]
    lines += ["", f"{'':26}{'all':>10}{'visible':>10}{'invisible':>10}"]
    parts = [("spread of samples mm", result["spread"])]
    parts += [(f"in {k} ellipsoid", v) for k, v in result["coverage"].items()]
    parts += [(f"  pelvis at the origin {k}", v) for k, v in result["coverage_relative"].items()]
    for name, part in parts:
        form = "10.1f" if name.startswith("spread") else "10.3f"
        lines.append(f"{name:26}" + "".join(f"{part[k]:{form}}" for k in ("all", "visible", "invisible")))
    absolute = result["absolute"]["mean"]
    lines += [
        "",
        f"distance in the camera's frame: pelvis {absolute['pelvis']:.0f} mm, joints {absolute['joints']:.0f} mm",
    ]
    lines.append(f"negative log-likelihood: {result['nll']:.2f} nats")
    if per_joint:
        lines += ["", f"{'joint':24}{'mode mm':>10}{'best of 100 mm':>16}"]
        lines += [f"{joint:24}{v['mode']:10.1f}{v['best_of_100']:16.1f}" for joint, v in result["per_joint"].items()]
    return "\n".join(lines)
