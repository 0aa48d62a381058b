"""Several people: how long identities last, and what detection at a lower rate costs and gains.

    python -m hmr_prob_ros.training.make_crossings --mocap MOCAP --out CLIPS
    python benchmarks/people/run.py CLIPS [--rtmlib detector=YOLOX.onnx pose=TINYPOSE.onnx]

Prints two tables in Markdown. One thread each is enough: `taskset -c 0 python benchmarks/people/run.py ...` gives the
milliseconds of one core.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmr_prob_ros.detectors import make_detector
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.tracking import Tracker
from hmr_prob_ros.training.identities import IdentityScores, score_identities

TRACKERS: dict[str, dict[str, float]] = {
    "default": {},
    "by place alone": {"colours": 1.0},
    "remembers half a second": {"max_age": 0.5},
}
EVERY = (1, 3, 10, 30)


@dataclass
class Run:
    """What a detector found in all clips: its people frame by frame, milliseconds of CPU, and looks for people."""

    found: dict[str, list[list[Person2D]]] = field(default_factory=dict)
    cpu: float = 0.0
    frames: int = 0
    looks: int = 0


def read(path: Path) -> list[np.ndarray]:
    """The frames of a clip, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            return frames
        frames.append(np.ascontiguousarray(frame[..., ::-1]))


def detect(clips: Sequence[Path], name: str, **options: Any) -> Run:
    """Run a detector, a new one for each clip."""
    run = Run()
    for clip in clips:
        detector: Any = make_detector(name, **options)
        rate, people = float(np.load(clip.with_suffix(".npz"))["fps"]), []
        for i, frame in enumerate(read(clip)):
            before = time.process_time()
            people.append(detector.detect(frame, i / rate))
            run.cpu += 1e3 * (time.process_time() - before)
        run.looks += detector.runs[0] if isinstance(detector.runs, tuple) else detector.runs
        run.frames += len(people)
        run.found[clip.stem] = people
        detector.close()
    return run


def follow(clips: Sequence[Path], run: Run, **options: float) -> dict[str, IdentityScores]:
    """Scores of a tracker for each clip."""
    scores = {}
    for clip in clips:
        truth = np.load(clip.with_suffix(".npz"))
        tracker, rate = Tracker(**options), float(truth["fps"])
        named = [
            tracker.update(people, i / rate, image)
            for i, (people, image) in enumerate(zip(run.found[clip.stem], read(clip), strict=True))
        ]
        scores[clip.stem] = score_identities(truth["keypoints"], truth["state"], named)
    return scores


def errors(clips: Sequence[Path], run: Run) -> np.ndarray:
    """Distances of visible body keypoints from the truth, in shares of the person's height, nearest detection each."""
    out = []
    for clip in clips:
        truth = np.load(clip.with_suffix(".npz"))
        for people, points, state in zip(run.found[clip.stem], truth["keypoints"], truth["state"], strict=True):
            for point, hidden in zip(points, state, strict=True):
                best = None
                for person in people:
                    both = (hidden == 0) & (person.keypoints[:, 2] > 0.3)
                    both[17:] = False
                    if (hidden < 2).mean() < 0.5 or both.sum() < 4:
                        continue
                    away = np.linalg.norm(person.keypoints[both, :2] - point[both], axis=-1) / np.ptp(point[:, 1])
                    if np.median(away) < 0.2 and (best is None or np.median(away) < np.median(best)):
                        best = away
                if best is not None:
                    out.append(best)
    return np.concatenate(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips and truths made by make_crossings")
    parser.add_argument("--rtmlib", nargs="*", default=[], metavar="NAME=VALUE", help="weights, to run rtmlib too")
    parser.add_argument("--every", nargs="+", type=int, default=EVERY, help="rates of detection to compare, in frames")
    parser.add_argument("--seeds", nargs="+", help="only the clips of these seeds")
    options = parser.parse_args(arguments)
    clips = [p for p in sorted(options.clips.glob("*_*.mp4")) if not options.seeds or p.stem[-1] in options.seeds]
    if not clips:
        print(f"run.py: no clips in {options.clips}: make them with make_crossings", file=sys.stderr)
        return 1
    cv2.setNumThreads(1)
    detectors: dict[str, dict[str, Any]] = {"blazepose": {"max_people": 4}}
    if options.rtmlib:
        detectors["rtmlib"] = dict(pair.split("=", 1) for pair in options.rtmlib)
    rates = {
        (name, every): detect(clips, name, every=every, **more)
        for name, more in detectors.items()
        for every in options.every
    }
    print("| detector | look for people every | ms of CPU a frame | looks a frame | found % | error %, median | 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, every), run in rates.items():
        score, error = sum(follow(clips, run).values(), IdentityScores()), 100 * errors(clips, run)
        print(
            f"| {name} | {every} | {run.cpu / run.frames:.1f} | {run.looks / run.frames:.2f} "
            f"| {100 * score.found / score.present:.1f} | {np.median(error):.2f} | {np.quantile(error, 0.95):.2f} |",
            flush=True,
        )
    scenes = sorted({clip.stem.rsplit("_", 1)[0] for clip in clips})
    print(f"\n| detector, every | tracker | {' | '.join(scenes)} | all switches | IDF1 |")
    print("|" + " --- |" * (4 + len(scenes)))
    for (name, every), run in rates.items():
        for about, more in TRACKERS.items():
            scores = follow(clips, run, **more)
            by = [sum(s.switches for stem, s in scores.items() if stem.startswith(scene)) for scene in scenes]
            total = sum(scores.values(), IdentityScores())
            cells = " | ".join(map(str, by))
            print(f"| {name}, {every} | {about} | {cells} | {total.switches} | {total.idf1:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
