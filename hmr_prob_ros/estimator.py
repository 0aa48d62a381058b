"""The line from a frame to hypotheses: detect, track, normalise, infer. Nothing else happens here."""

from __future__ import annotations

__all__ = ["Estimator", "draw_latents"]

import inspect
import logging
import time
from pathlib import Path
from types import TracebackType

import numpy as np

from .bundle import Bundle, BundleError
from .camera import Camera, condition
from .detectors import PoseDetector, make_detector
from .engines import DeviceError, Engine, EngineError, make_engine, usual_threads
from .hypotheses import HypothesisError, HypothesisSet, Person2D
from .quantize import quantize, shares
from .skeleton import JOINT_KEYPOINTS
from .tracking import Tracker, nearest

logger = logging.getLogger(__name__)

_MODES = {  # field of HypothesisSet: output of the graph
    "weights": "mode_weight",
    "log_density": "mode_log_density",
    "rotations": "mode_rotations",
    "betas": "mode_betas",
    "translation": "mode_translation",
    "joints": "mode_joints",
    "keypoints3d": "mode_keypoints",
}
_SAMPLES = {  # field of HypothesisSet: output of the graph to choose modes from
    "log_density": "sample_log_density",
    "rotations": "sample_rotations",
    "betas": "sample_betas",
    "translation": "sample_translation",
    "joints": "sample_joints",
    "keypoints3d": "sample_keypoints",
}

_MOST = max(map(len, JOINT_KEYPOINTS))
_SHOW = np.array([(*points, *points[:1] * (_MOST - len(points))) for points in JOINT_KEYPOINTS])
"""(24, most) keypoints that show each joint, the first one repeated where there are fewer."""

_USUAL = 8
"""People for whom an engine that is slow at first is prepared."""


def draw_latents(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Latents (count, size) float32: zero first, then antithetic pairs of normal numbers.

    Pairs ``z, -z`` make the mean of the latents zero exactly, and every column is scaled to unit variance, so that
    the moments of few samples lie closer to the model's than those of independent draws. (Sobol points would do
    better still, but their Gaussian quantile needs scipy, which the runtime does without.)
    """
    if count < 1:
        raise ValueError(f"cannot draw {count} latents: at least one is needed")
    pairs = np.random.default_rng(seed).standard_normal((count // 2, size))
    if len(pairs) > 4:  # fewer would be scaled by noise
        pairs /= np.sqrt((pairs**2).mean(axis=0))
    latents = np.zeros((count, size), dtype=np.float32)
    latents[1::2] = pairs
    latents[2::2] = -pairs[: (count - 1) // 2]
    return latents


class Estimator:
    """Frame in, one :class:`HypothesisSet` for each person out.

    Args:
        bundle: a loaded bundle, the folder of one, or None for the shipped one.
        detector: name of a 2D detector, a detector, or None where keypoints come from elsewhere (:meth:`infer`).
        engine: name of an engine, or an engine that already holds the bundle's graph.
        precision: of an engine that is given by its name: ``fp32``, or what else it can do.
        samples: N, bodies drawn for each person; the first is the latent zero.
        modes: n, weighted bodies that the samples are summed up in.
        seed: of the latents. They are drawn once, so that the same frame gives the same answer and a still person
            does not tremble.
        keep_samples: also hand out the joints and keypoints of all N samples.
        threads: of the engine, 0 for :func:`.engines.usual_threads`.
        tracker: gives identities; a new :class:`Tracker` by default.
        max_people: cap on the people of a frame, the nearest to the camera first; None for all that the detector
            finds (which has a cap of its own, since each person costs it time).

    Raises:
        ValueError: ``samples`` or ``modes`` cannot be served.
        BundleError, DetectorError, EngineError: the part cannot be loaded; the text names the mend.

    Example::

        estimator = Estimator()
        for person in estimator(image, Camera.from_yaml("camera_info.yaml")):
            print(person.id, person.weights, person.mean, person.spread)
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | None = None,
        detector: PoseDetector | str | None = "blazepose",
        engine: Engine | str = "onnxruntime",
        samples: int = 100,
        modes: int = 10,
        seed: int = 0,
        keep_samples: bool = False,
        threads: int = 0,
        tracker: Tracker | None = None,
        precision: str = "fp32",
        max_people: int | None = None,
    ) -> None:
        if samples < 1 or modes < 1:
            raise ValueError(f"samples ({samples}) and modes ({modes}) must be at least 1")
        if max_people is not None and max_people < 1:
            raise ValueError(f"max_people is {max_people}, but it must be at least 1, or None for everybody")
        if modes > samples:
            raise ValueError(
                f"{modes} modes cannot be made from {samples} samples: ask for at most {samples} modes "
                f"or for at least {modes} samples"
            )
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.engine = (
            make_engine(engine, self.bundle.model_path, threads=threads or usual_threads(samples), precision=precision)
            if isinstance(engine, str)
            else engine
        )
        self.samples = samples
        self.modes = modes
        self.seed = seed
        self.keep_samples = keep_samples
        # The graph makes its own number of modes, so it always gets at least that many latents.
        self._drawn = max(samples, self.bundle.num_modes)
        self._graph_modes = modes == self.bundle.num_modes and self._drawn == samples
        self._nested = self.bundle.nested_modes and not self._graph_modes and self._drawn == samples
        self._latents = draw_latents(self._drawn, self.bundle.latent_size, seed)[None]
        self.timings: dict[str, float] = {}
        """Milliseconds that each stage of the last call took; threads that call at the same time pass dicts instead."""
        try:
            self.engine.run(self._unseen(1), self._wanted())  # engines are slow at first
        except DeviceError:
            raise  # the bundle is not to blame
        except EngineError as error:
            raise BundleError(
                f"{self.bundle.path} does not fit this package ({error}): export it again with `hmr-prob export`"
            ) from error
        self.detector = make_detector(detector) if isinstance(detector, str) else detector
        self.tracker = tracker if tracker is not None else Tracker()
        self.max_people = max_people
        """May change at any time."""
        self._nearest: frozenset[int] = frozenset()
        # Detectors of users may look at pictures only.
        self._stamped = self.detector is not None and "stamp" in inspect.signature(self.detector.detect).parameters
        if (warm_up := getattr(self.engine, "warm_up", None)) is not None:
            most = _USUAL if self.detector is None else min(self.detector.max_people, _USUAL)
            warm_up([self._unseen(count) for count in range(1, most + 1)], self._wanted())

    def __call__(
        self, image: np.ndarray, camera: Camera | None = None, stamp: float | None = None
    ) -> list[HypothesisSet]:
        """What every person in a frame may be doing: :meth:`detect`, then :meth:`infer`.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: intrinsics of the image; None guesses the focal length, and then distances are a guess too.
            stamp: when the image was taken, in seconds; without it frames come 30 times a second.

        Raises:
            ValueError: the frame is no colour image, or the camera is for another image size.
        """
        timings: dict[str, float] = {}
        start = time.perf_counter()
        people = self.detect(image, camera, timings, stamp)
        if camera is None:
            camera = Camera.guess(image.shape[1], image.shape[0])
        found = self.infer(people, camera, timings)
        timings["total"] = 1e3 * (time.perf_counter() - start)
        self.timings = timings
        return found

    def detect(
        self,
        image: np.ndarray,
        camera: Camera | None = None,
        timings: dict[str, float] | None = None,
        stamp: float | None = None,
    ) -> list[Person2D]:
        """The first half: the people in a frame and who they are, the nearest first, at most ``max_people``.

        It holds all that remembers earlier frames, so frames come in order. The other half may work on an earlier
        frame in another thread meanwhile.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: what :meth:`infer` will get.
            timings: gets the milliseconds of each stage.
            stamp: when the image was taken, in seconds; without it frames come 30 times a second. Where it goes back
                by itself, call :meth:`reset` first.

        Raises:
            ValueError: the frame is no colour image, or the camera is for another image size.
        """
        if self.detector is None:
            raise ValueError(
                "this estimator has no detector: make it with detector='blazepose', or call infer(people, camera)"
            )
        _check_image(image)
        height, width = image.shape[:2]
        if camera is not None and (camera.width, camera.height) != (width, height):
            raise ValueError(
                f"the camera is for {camera.width}x{camera.height} images, the frame has {width}x{height}: "
                f"use camera.scaled({width}, {height}) if the frame was resized"
            )
        start = time.perf_counter()
        people = self.detector.detect(image, stamp=stamp) if self._stamped else self.detector.detect(image)
        detected = time.perf_counter()
        people = self.track(people, camera or Camera.guess(width, height), stamp, image)
        took = {"detect": 1e3 * (detected - start), "track": 1e3 * (time.perf_counter() - detected)}
        self._note(took, timings)
        return people

    def track(
        self, people: list[Person2D], camera: Camera, stamp: float | None = None, image: np.ndarray | None = None
    ) -> list[Person2D]:
        """Who the people of the next frame are: the nearest of them, with their identities. Part of :meth:`detect`.

        By itself for people whom another program detected; those that have identities already keep them.

        Args:
            people: everybody in the frame.
            camera: its intrinsics.
            stamp: when it was taken, in seconds.
            image: (H, W, 3) uint8 RGB where it is at hand: clothes help to tell people apart.
        """
        if any(person.id < 0 for person in people) or not people:
            people = self.tracker.update(people, stamp, image)
        near = nearest(people, camera, self.max_people, self._nearest)
        self._nearest = frozenset(person.id for person in near)
        return near

    def infer(
        self, people: list[Person2D], camera: Camera, timings: dict[str, float] | None = None
    ) -> list[HypothesisSet]:
        """The second half: hypotheses for people whose keypoints are known, all in one engine call.

        People of whom too little is seen to place a crop (``camera.condition``) are left out, and so is anyone for
        whom the engine gives a number that is not finite: a planner must never get one. ``timings`` gets the
        milliseconds of each stage.
        """
        start = time.perf_counter()
        seen = [(person, given) for person in people if (given := condition(person.keypoints, camera)) is not None]
        conditioned = time.perf_counter()
        outputs = self._run([given[0] for _, given in seen], [given[1] for _, given in seen]) if seen else {}
        ran = time.perf_counter()
        finite = all(np.isfinite(value).all() for value in outputs.values())
        found: list[HypothesisSet] = []
        for index, (person, (keypoints, _)) in enumerate(seen):
            one = {name: value[index] for name, value in outputs.items()}
            bad = [] if finite else sorted(name for name, value in one.items() if not np.isfinite(value).all())
            if bad:
                logger.error(
                    "person %d dropped: the bundle %s gave numbers that are not finite in %s",
                    person.id,
                    self.bundle.path,
                    ", ".join(bad),
                )
                continue
            try:
                found.append(self._assemble(person, keypoints[:, 2], one))
            except HypothesisError as error:
                logger.error(
                    "person %d dropped: the bundle %s gave no valid hypotheses: %s", person.id, self.bundle.path, error
                )
        took = {
            "condition": 1e3 * (conditioned - start),
            "infer": 1e3 * (ran - conditioned),
            "assemble": 1e3 * (time.perf_counter() - ran),
        }
        self._note(took, timings)
        return found

    def _note(self, took: dict[str, float], timings: dict[str, float] | None) -> None:
        self.timings = took
        if timings is not None:
            timings.update(took)

    def reset(self) -> None:
        """Forget the people of earlier frames (another clip begins)."""
        self.tracker.reset()
        self._nearest = frozenset()
        if self.detector is not None:
            self.detector.reset()

    def close(self) -> None:
        """Give the detector's resources back."""
        if self.detector is not None:
            self.detector.close()

    def __enter__(self) -> Estimator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wanted(self) -> list[str]:
        """Those outputs of the graph that are needed."""
        wanted = ["mean", "covariance"] if self._drawn == self.samples else []
        if self._graph_modes or self._nested:
            wanted += _MODES.values()
        if self._nested:
            wanted.append("sample_joints")
        if not self._graph_modes and not (self._nested and self.modes < self.bundle.num_modes):
            wanted += _SAMPLES.values()
        if self.keep_samples or self._drawn != self.samples:
            wanted += ["sample_joints", "sample_keypoints"]
        return list(dict.fromkeys(wanted))

    def _inputs(self, keypoints: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's inputs for B people: (B, 23, 3), (B, 3)."""
        return {"keypoints": keypoints, "box": boxes, "latents": np.repeat(self._latents, len(boxes), axis=0)}

    def _unseen(self, count: int) -> dict[str, np.ndarray]:
        """Inputs for people of whom nothing is seen, to try the engine with."""
        box = np.array([0, 0, 0.5], np.float32)
        return self._inputs(np.zeros((count, 23, 3), np.float32), np.repeat(box[None], count, axis=0))

    def _run(self, keypoints: list[np.ndarray], boxes: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs for B people, only those that are needed."""
        outputs = self.engine.run(self._inputs(np.stack(keypoints), np.stack(boxes)), outputs=self._wanted())
        if self._drawn != self.samples:
            outputs = {k: v[:, : self.samples] if k.startswith("sample_") else v for k, v in outputs.items()}
            joints = outputs["sample_joints"]
            outputs["mean"] = joints.mean(axis=1)
            centred = joints - outputs["mean"][:, None]
            scatter = np.einsum("bnji,bnjk->bjik", centred, centred) / max(self.samples - 1, 1)
            outputs["covariance"] = scatter + 1e-6 * np.eye(3, dtype=np.float32)  # as the graph does
        return outputs

    def _assemble(self, person: Person2D, confidence: np.ndarray, one: dict[str, np.ndarray]) -> HypothesisSet:
        """The outputs of one person as a value; modes sorted by weight."""
        if self._graph_modes:
            modes = {field: one[name] for field, name in _MODES.items()}
        elif self._nested:
            modes = self._nested_modes(one)
        else:
            index, weights, _ = quantize(one["sample_joints"], self.modes)
            modes = {"weights": weights, **{field: one[name][index] for field, name in _SAMPLES.items()}}
        order = np.argsort(-modes["weights"], kind="stable")
        modes = {field: value[order] for field, value in modes.items()}
        return HypothesisSet(
            id=person.id,
            box=person.box,
            score=person.score,
            keypoints=person.keypoints,
            mean=one["mean"],
            covariance=one["covariance"],
            visibility=confidence[_SHOW].max(axis=1),
            samples=one["sample_joints"] if self.keep_samples else None,
            samples_keypoints3d=one["sample_keypoints"] if self.keep_samples else None,
            **modes,
        )

    def _nested_modes(self, one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The first n of the graph's modes; or all of them, which cover more than draws do, and modes of the draws."""
        draws = one["sample_joints"][1:]
        modes = {field: one[name][: self.modes] for field, name in _MODES.items()}
        bodies = np.concatenate([modes["joints"], draws])
        if (more := self.modes - len(modes["joints"])) > 0:
            index = quantize(draws, more).index + 1
            for field, name in _SAMPLES.items():
                modes[field] = np.concatenate([modes[field], one[name][index]])
        return {**modes, "weights": shares(modes["joints"], bodies)}


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"the frame is a {type(image).__name__}: give a numpy array (H, W, 3), uint8, RGB")
    if image.dtype != np.uint8:
        raise ValueError(f"the frame has dtype {image.dtype}: scale it to 0..255 and convert it with .astype(np.uint8)")
    if image.ndim != 3 or image.shape[2] != 3:
        mend = "cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)" if image.ndim == 2 else "frame[..., :3] for four channels"
        raise ValueError(f"the frame has shape {image.shape}, it must be (H, W, 3) RGB: for example {mend}")
    if image.size == 0:
        raise ValueError(f"the frame is empty (shape {image.shape}): the camera or decoder gave no picture")
