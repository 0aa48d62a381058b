"""The estimator node as a program whose detector and engine fail as a file tells them to.

``HMR_PROB_FAULT`` names the file. It holds ``PART:FAULT`` with the part ``detector`` or ``engine`` and the fault
``raise``, ``hang`` (for ever) or ``nan``, and behind it ``once`` where the file is removed when the fault happens.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmr_prob_ros import Estimator, Person2D
from hmr_prob_ros.detectors import PoseDetector
from hmr_prob_ros.engines import Engine, EngineError
from hmr_prob_ros.ros.estimator_node import main
from hmr_prob_ros.ros.parameters import Settings

FILE = Path(os.environ["HMR_PROB_FAULT"])


def fault(part: str) -> str:
    try:
        words = FILE.read_text().split()
    except FileNotFoundError:
        return ""
    if not words or not words[0].startswith(f"{part}:"):
        return ""
    if "once" in words:
        FILE.unlink(missing_ok=True)
    found = words[0].partition(":")[2]
    if found == "hang":
        threading.Event().wait()
    return found


class FaultyDetector:
    def __init__(self, detector: PoseDetector) -> None:
        self.detector, self.name, self.max_people = detector, detector.name, detector.max_people

    def detect(self, image: np.ndarray) -> list[Person2D]:
        found = fault("detector")
        if found == "raise":
            raise RuntimeError("the detector's library broke")
        people = self.detector.detect(image)
        return [Person2D(p.box, p.score, np.nan * p.keypoints) for p in people] if found == "nan" else people

    def reset(self) -> None:
        self.detector.reset()

    def close(self) -> None:
        self.detector.close()


class FaultyEngine:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        found = fault("engine")
        if found == "raise":
            raise EngineError("the engine broke")
        result = self.engine.run(inputs, outputs)
        return {name: np.nan * value for name, value in result.items()} if found == "nan" else result


def load(settings: Settings, warn: Callable[[str], Any]) -> Estimator:
    from hmr_prob_ros.ros.loading import load_estimator

    estimator = load_estimator(settings, warn)
    return Estimator(
        estimator.bundle,
        detector=None if estimator.detector is None else FaultyDetector(estimator.detector),
        engine=FaultyEngine(estimator.engine),
        samples=settings.samples,
        modes=settings.modes,
    )


if __name__ == "__main__":
    sys.exit(main(load=load))
