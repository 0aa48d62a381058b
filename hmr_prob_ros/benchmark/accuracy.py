"""What a setting of the posterior costs in accuracy: errors on people whose true bodies are known."""

from __future__ import annotations

__all__ = ["NOT_MEASURED", "Accuracy", "errors", "load_examples"]

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..camera import condition
from ..estimator import Estimator
from ..hypotheses import Person2D
from ..metrics import mpjpe, pa_mpjpe
from ..setfile import PoseSet, SetError

NOT_MEASURED = "not measured: give --set SET.npz (made of takes that the model was not trained on)"
BEST_OF = 25


def load_examples(path: str | Path | None, most: int) -> PoseSet | None:
    """At most ``most`` examples of a set, evenly over all that can be used; None without a path.

    Raises:
        SetError: there is no such set, it is none, or nobody in it can be used.
    """
    if path is None:
        return None
    data = PoseSet.load(path)
    known = np.isfinite(data.joints).all(axis=-1).sum(axis=1) >= 3
    # Cheap, and so done for all: the examples stay the same whatever is measured.
    used = [i for i in np.flatnonzero(known) if condition(data.keypoints[i], data.camera(i)) is not None]
    if not used:
        raise SetError(
            f"{path}: no example can be used: each needs two keypoints above confidence 0.3 and three known joints"
        )
    return data[np.array(used)[np.linspace(0, len(used) - 1, min(most, len(used))).round().astype(int)]]


def errors(estimator: Estimator, data: PoseSet) -> dict[str, Any]:
    """Mean errors in mm of what an estimator gives, with its own engine, latents, N and n.

    ``best_of_25``: PA-MPJPE of the best of its first 25 samples (of all where there are fewer); ``best_mode``: of the
    best of its n modes; ``mode``: PA-MPJPE, and ``mode_mpjpe``: MPJPE, of its sample of latent zero.

    The estimator must keep its samples.
    """
    rows: dict[str, list[float]] = {name: [] for name in ("best_of_25", "best_mode", "mode", "mode_mpjpe")}
    # A person without a usable answer is logged by the estimator; here all are counted together.
    level = logging.getLogger("hmr_prob_ros.estimator").level
    logging.getLogger("hmr_prob_ros.estimator").setLevel(logging.CRITICAL)
    failed = 0
    try:
        for i in range(len(data)):
            person = Person2D(np.array([0, 0, 1, 1], np.float32), 1.0, data.keypoints[i])
            found = estimator.infer([person], data.camera(i))
            if not found:
                failed += 1
                continue
            samples, truth = found[0].samples, data.joints[i]
            if samples is None:
                raise ValueError("the estimator must be made with keep_samples=True")
            rows["best_of_25"].append(float(np.min(pa_mpjpe(samples[:BEST_OF], truth))))
            rows["best_mode"].append(float(np.min(pa_mpjpe(found[0].joints, truth))))
            rows["mode"].append(float(pa_mpjpe(samples[0], truth)))
            rows["mode_mpjpe"].append(float(mpjpe(samples[0], truth)))
    finally:
        logging.getLogger("hmr_prob_ros.estimator").setLevel(level)
    result: dict[str, Any] = {k: round(1e3 * float(np.mean(v)), 2) if v else None for k, v in rows.items()}
    return {**result, "examples": len(data) - failed, **({"failed": failed} if failed else {})}


class Accuracy:
    """Errors of each setting, measured once: neither threads nor the number of people change the answer.

    Args:
        data: the examples, or None: then every answer is None.
    """

    def __init__(self, data: PoseSet | None) -> None:
        self.data = data
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def of(self, estimator: Estimator, precision: str) -> dict[str, Any] | None:
        """:func:`errors` of this engine, precision, N and n."""
        if self.data is None:
            return None
        key = (estimator.bundle.path, estimator.engine.name, precision, estimator.samples, estimator.modes)
        if key not in self._known:
            same = Estimator(
                estimator.bundle,
                None,
                estimator.engine,
                samples=estimator.samples,
                modes=estimator.modes,
                seed=estimator.seed,
                keep_samples=True,
            )
            self._known[key] = errors(same, self.data)
        return self._known[key]
