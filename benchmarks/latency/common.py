"""What the sections share: the model, its bundle, people to work on, and the options."""

from __future__ import annotations

__all__ = ["Bench", "Skipped", "graph_inputs"]

import argparse
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmr_prob_ros.benchmark import accuracy, stages
from hmr_prob_ros.bundle import Bundle
from hmr_prob_ros.camera import Camera, condition
from hmr_prob_ros.detectors import make_detector
from hmr_prob_ros.estimator import Estimator
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.setfile import PoseSet

SIZE = (640, 480)
RATE = 30


class Skipped(Exception):
    """A section cannot be measured here; the text says why."""


def graph_inputs(people: list[tuple[np.ndarray, np.ndarray]], latents: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of ``model.onnx`` for conditioned people and latents (N, D)."""
    return {
        "keypoints": np.stack([keypoints for keypoints, _ in people]),
        "box": np.stack([box for _, box in people]),
        "latents": np.repeat(latents[None], len(people), axis=0),
    }


class Bench:
    """The options of a run and what is made of them, each when it is first needed.

    Attributes:
        options: of the command.
        folder: for files that a run needs, below ``--out``.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.out) / "work"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Any:
        """The torch model of ``--checkpoint``, else one of the default width with random weights."""
        import torch

        from hmr_prob_ros.body import Body
        from hmr_prob_ros.training.body import TorchBody
        from hmr_prob_ros.training.models import FlowPosterior, load_checkpoint
        from hmr_prob_ros.training.models.flow import FlowConfig

        body = TorchBody(Body.load(), mesh=False)
        if self.options.checkpoint is not None:
            model, _ = load_checkpoint(self.options.checkpoint, body)
            if not isinstance(model, FlowPosterior):
                raise Skipped(f"{self.options.checkpoint} holds a {model.name}, which is no flow")
            return model.eval()
        torch.manual_seed(0)
        config = FlowConfig(hidden=self.options.width, sample_shape=True, sample_translation=True)
        return FlowPosterior(config, body).eval()

    @cached_property
    def exported(self) -> Bundle:
        """The bundle of :attr:`model`, exported now and for this run only."""
        from hmr_prob_ros.body import Body
        from hmr_prob_ros.training.export import export
        from hmr_prob_ros.training.models import save_checkpoint

        checkpoint = self.options.checkpoint
        self._exports = tempfile.TemporaryDirectory(dir=self.folder)
        if checkpoint is None:
            checkpoint = Path(self._exports.name) / "random.pt"
            save_checkpoint(checkpoint, self.model, {"name": "random weights", "body_hash": Body.load().hash})
        return export(checkpoint, Path(self._exports.name) / "bundle", modes=self.options.modes)

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle under test: ``--bundle``, else that of the checkpoint, else the shipped one."""
        if self.options.bundle is None and self.options.checkpoint is not None:
            return self.exported
        return Bundle.load(self.options.bundle)

    @cached_property
    def data(self) -> PoseSet | None:
        """Examples of ``--set``."""
        return accuracy.load_examples(self.options.set, self.options.examples)

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """Frames of the clip, 480 x 640."""
        return stages.read_frames(str(self.options.clip), SIZE, self.options.frames)

    @cached_property
    def camera(self) -> Camera:
        return Camera.guess(*SIZE)

    @cached_property
    def person(self) -> Person2D:
        """Somebody as the detector sees him in the clip."""
        with self.estimator(make_detector(self.options.detector, **self.options.detector_options)) as estimator:
            return stages.find_person(estimator, self.frames, self.camera)

    @cached_property
    def people(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keypoints and box as the graph takes them: of examples of the set, else of the person in the clip."""
        if self.data is None:
            seen = [condition(self.person.keypoints, self.camera)]
        else:
            seen = [condition(self.data.keypoints[i], self.data.camera(i)) for i in range(len(self.data))]
        return [given for given in seen if given is not None]

    def estimator(self, detector: Any = None, **more: Any) -> Estimator:
        """An estimator of the bundle under test with the options of the run."""
        options = self.options
        settings = {"samples": options.samples, "modes": options.modes, "threads": options.threads, **more}
        return Estimator(self.bundle, detector, **settings)

    def clip(self, name: str, frames: list[np.ndarray]) -> Path:
        """A video of frames (480, 640, 3) RGB, for the camera player.

        Raises:
            Skipped: OpenCV cannot write one here.
        """
        path = self.folder / f"{name}.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, SIZE)
        if not writer.isOpened():
            raise Skipped("OpenCV cannot write an mp4 here")
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return path
