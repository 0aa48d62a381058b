"""From a picture or keypoints to published hypotheses, in two stages, from activation to deactivation.

One thread finds the people in the newest frame, another one makes their hypotheses and publishes them, so that both
work at the same time; a slow frame makes the node drop frames and never lag behind the camera.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from hmr_prob_ros.msg import PoseKeypointsArray

from ..camera import Camera, CameraError
from ..detectors import DetectorError
from ..drawing import draw_overlay
from ..engines import EngineError
from ..estimator import Estimator
from ..hypotheses import HypothesisError, HypothesisSet, Person2D
from .cameras import CameraInfos
from .cdr import read_image, serialize_people
from .complaints import listening
from .conversions import people_from_msg, people_to_msgs
from .images import (
    MOST_CHARACTERS,
    CameraInfoError,
    ImageError,
    compressed_to_rgb,
    image_to_rgb,
    rgb_to_image,
    shown,
)
from .markers import MarkerBuilder
from .outputs import OutputFrame
from .parameters import Settings
from .pipeline import Pipeline, Work
from .statistics import Ledger, Statistics
from .topics import Outputs

__all__ = ["JUMP_BACK", "Arrival", "FrameWorker", "Setup"]

JUMP_BACK = 100_000_000
"""Nanoseconds: a stamp this far back is a new run of the clip, a smaller step back is disorder."""
_EXPECTED = (ImageError, HypothesisError, CameraError, CameraInfoError, EngineError, DetectorError)


class Arrival(NamedTuple):
    """What came from a camera or from a detector in another node."""

    stamp: int
    """Nanoseconds."""
    message: bytes | Image | CompressedImage | PoseKeypointsArray


class Setup(NamedTuple):
    """What may be exchanged while frames are worked on, in one step."""

    settings: Settings
    estimator: Estimator


@dataclass
class _Frame:
    """What the first stage hands to the second one."""

    header: Header
    stamp: int
    image: np.ndarray | None
    camera: Camera
    people: list[Person2D]
    stages: dict[str, float]
    """Milliseconds."""
    started: float
    passed_on: float


class FrameWorker:
    """Works on frames until it is closed.

    Whatever remembers earlier frames (tracker, detector, order of stamps) belongs to the first stage alone, so resets
    need not travel; the second stage gets its frames in the order of the first.

    Args:
        setup: settings and estimator at the start; assign :attr:`setup` to exchange them.
        outputs: publishers.
        infos: tell the camera of a frame.
        statistics: gets times and losses.
        now: the node's clock in nanoseconds.
        complain: gets the text of a frame that is lost, and of what goes wrong in one.
        warn: gets other texts.
        plain_cdr: write and read messages without objects (:mod:`.cdr`).
    """

    def __init__(
        self,
        setup: Setup,
        outputs: Outputs,
        infos: CameraInfos,
        statistics: Statistics,
        *,
        now: Callable[[], int],
        complain: Callable[[str], None],
        warn: Callable[[str], None],
        plain_cdr: bool = True,
    ) -> None:
        self.setup = setup
        self.frame_id = ""
        """Of the latest frame."""
        self._outputs, self._infos, self._statistics = outputs, infos, statistics
        self._ledger = Ledger(statistics)
        self._now, self._complain, self._warn = now, complain, warn
        self._write = serialize_people if plain_cdr else people_to_msgs
        self._builder = MarkerBuilder(setup.settings.marker_lifetime)
        self._lifetime = setup.settings.marker_lifetime
        self._last_stamp: int | None = None
        self._seen: tuple[str, tuple[int, ...]] | None = None  # frame and shape of the picture before
        self._begin_anew = False
        self._pipeline: Pipeline[Arrival, _Frame] = Pipeline(
            self._detect,
            self._infer,
            failed=self._failed,
            dropped=self._dropped,
            refuse=_is_twin,
            period=self._period,
            names=("detect", "infer"),
            threads=2 if setup.settings.pipeline else 1,
        )

    # any thread -------------------------------------------------------------------------------------------------

    def put(self, arrival: Arrival) -> None:
        """Work on this frame next, unless a newer one comes before that."""
        if self._pipeline.put(arrival):
            self._ledger.receive()

    def begin_anew(self) -> None:
        """Forget earlier frames before the next one: the clock has jumped back."""
        self._begin_anew = True

    def work(self) -> list[Work]:
        """What the stages are at."""
        return self._pipeline.work()

    @property
    def alive(self) -> bool:
        """Whether one of the threads still runs."""
        return self._pipeline.alive

    def give_up(self, text: str) -> None:
        """End the threads without waiting for them, because of what ``text`` says; what they find is not published."""
        left = self._ledger.close()
        self._statistics.fail(text)
        self._statistics.drop("inactive", max(left - 1, 0))
        self._pipeline.stop()

    def close(self, timeout: float) -> bool:
        """End the threads; whether they did within ``timeout`` seconds."""
        ended = self._pipeline.close(timeout)
        self._statistics.drop("inactive", self._ledger.close())
        return ended

    # thread of either stage -------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """A frame is lost, and only that."""
        if self._pipeline.closed:
            return
        text = str(error) if isinstance(error, _EXPECTED) else f"{type(error).__name__}: {error}"
        self._ledger.settle(self._statistics.fail, text)
        self._complain(f"frame dropped: {text}")

    def _dropped(self, cause: str) -> None:
        self._ledger.settle(self._statistics.drop, "period" if cause == "period" else f"before_{cause}")

    def _listen(self, level: int, text: str) -> None:
        """What the estimator or an engine logs about a frame."""
        if level >= logging.ERROR:
            self._statistics.problem(text)
            self._complain(text)
        else:
            self._warn(text)

    # thread of the first stage ----------------------------------------------------------------------------------

    def _period(self) -> float:
        rate = self.setup.settings.max_rate
        return 1 / rate if rate > 0 else 0.0

    def _detect(self, arrival: Arrival) -> _Frame | None:
        """Picture or keypoints -> the people in the frame and its camera; None for a frame that is not worked on."""
        started = time.perf_counter()
        stamp, msg = arrival
        settings, estimator = self.setup
        if self._is_stale(stamp, settings.max_age) or not self._in_order(stamp, estimator):
            return None
        stages: dict[str, float] = {}
        image = None
        if isinstance(msg, PoseKeypointsArray):
            header = _checked(msg.header)
            self._same_camera(header.frame_id, (), estimator)
            camera = self._camera(stamp, header.frame_id, 0, 0, settings)
            people = estimator.track(people_from_msg(msg), camera, stamp * 1e-9)
            stages["convert"] = 1e3 * (time.perf_counter() - started)
        else:
            header, image = _picture(msg)
            _checked(header)
            self._same_camera(header.frame_id, image.shape, estimator)
            camera = self._camera(stamp, header.frame_id, image.shape[1], image.shape[0], settings)
            stages["convert"] = 1e3 * (time.perf_counter() - started)
            with listening(self._listen):
                people = estimator.detect(image, camera, stages, stamp * 1e-9)
        self.frame_id = header.frame_id
        return _Frame(header, stamp, image, camera, people, stages, started, time.perf_counter())

    def _is_stale(self, stamp: int, max_age: float) -> bool:
        if max_age <= 0 or (age := (self._now() - stamp) * 1e-9) <= max_age:
            return False
        self._ledger.settle(self._statistics.drop, "stale")
        self._warn(
            f"a frame came {age:.1f} s after its stamp and was dropped (max_age is {max_age:g}): check the camera's "
            "clock, use_sim_time and the network"
        )
        return True

    def _in_order(self, stamp: int, estimator: Estimator) -> bool:
        """False for a frame that was seen already or came late; a long way back begins a new run."""
        last = None if self._begin_anew else self._last_stamp
        if last is not None and stamp and stamp <= last:
            if last - stamp < JUMP_BACK:
                if stamp != last:
                    self._ledger.settle(self._statistics.drop, "late")
                else:
                    self._ledger.settle(self._statistics.repeat)
                return False
            self._warn(
                f"the image stamp went back by {(last - stamp) * 1e-9:.1f} s: a new run begins, tracks are forgotten"
            )
            self._begin_anew = True
        if self._begin_anew:
            self._begin_anew = False
            estimator.reset()
        self._last_stamp = stamp
        return True

    def _same_camera(self, frame_id: str, shape: tuple[int, ...], estimator: Estimator) -> None:
        """With another camera, resolution or clip nobody is where somebody was before."""
        if self._seen is not None and self._seen != (frame_id, shape):
            estimator.reset()
        self._seen = frame_id, shape

    def _camera(self, stamp: int, frame_id: str, width: int, height: int, settings: Settings) -> Camera:
        return self._infos.camera(stamp, frame_id, width, height, settings.camera_fov)

    # thread of the second stage ---------------------------------------------------------------------------------

    def _infer(self, frame: _Frame) -> None:
        """The people of a frame -> their hypotheses, published."""
        setup = self.setup
        settings, estimator = setup
        stages = frame.stages
        stages["wait"] = 1e3 * (time.perf_counter() - frame.passed_on)
        sure = [person for person in frame.people if person.score >= settings.min_score]
        with listening(self._listen):
            found = estimator.infer(sure, frame.camera, stages)
        found = [person for person in found if self._is_sound(person)]
        if self._pipeline.closed:
            return
        before = time.perf_counter()
        latency = self._publish(found, frame, setup)
        stages["publish"] = 1e3 * (time.perf_counter() - before)
        self._show(found, frame, settings)
        stages["total"] = 1e3 * (time.perf_counter() - frame.started)
        self._ledger.settle(self._statistics.frame, latency, stages, len(found))

    def _is_sound(self, person: HypothesisSet) -> bool:
        """Whether all covariances are positive definite: in float32 those of somebody kilometres away are not."""
        try:
            np.linalg.cholesky(person.covariance.astype(np.float64))
        except np.linalg.LinAlgError:
            text = f"person {person.id} left out: {person.mean[0, 2]:.3g} m away the uncertainty is beyond numbers"
            self._statistics.problem(text)
            self._complain(f"{text}; check the camera info")
            return False
        return True

    def _publish(self, found: list[HypothesisSet], frame: _Frame, setup: Setup) -> float:
        """Publish the hypotheses, then the uncertainty; milliseconds from the frame's stamp to between the two."""
        bundle = setup.estimator.bundle
        hypotheses, uncertainty = self._write(
            found,
            frame.header,
            camera_known=not frame.camera.guessed,
            bundle=bundle.name,
            body_hash=bundle.body_hash,
        )
        self._outputs.hypotheses.publish(hypotheses)
        latency = (self._now() - frame.stamp) * 1e-6
        if setup.settings.publish_uncertainty:
            self._outputs.uncertainty.publish(uncertainty)
        return latency

    def _show(self, found: list[HypothesisSet], frame: _Frame, settings: Settings) -> None:
        """Pictures for people, made only while somebody looks."""
        markers, overlay = self._outputs.markers, self._outputs.overlay
        if settings.publish_markers and markers.get_subscription_count():
            if settings.marker_lifetime != self._lifetime:
                self._lifetime = settings.marker_lifetime
                self._builder.lifetime = MarkerBuilder(self._lifetime).lifetime
            markers.publish(self._builder.build(found, frame.header))
        if frame.image is not None and settings.publish_overlay and overlay.get_subscription_count():
            picture = draw_overlay(frame.image, found, frame.camera)
            overlay.publish(rgb_to_image(picture, Image(header=frame.header)))
        size = None if frame.image is None else (frame.image.shape[1], frame.image.shape[0])
        for output in self._outputs.others:
            try:
                output.publish(OutputFrame(found, frame.header, size))
            except Exception as error:  # the hypotheses are out already
                text = f"{type(output).__name__} failed: {type(error).__name__}: {error}"
                self._statistics.problem(text)
                self._complain(text)


def _is_twin(waiting: Arrival, arrival: Arrival) -> bool:
    """The compressed twin of a waiting raw frame, or the other way round, is not a frame of its own."""
    return waiting.stamp == arrival.stamp and type(waiting.message) is not type(arrival.message)


def _checked(header: Header) -> Header:
    if len(header.frame_id) > MOST_CHARACTERS:
        raise ImageError(
            f"frame_id {shown(header.frame_id, 40)} is longer than {MOST_CHARACTERS} characters: set another one in "
            "the camera driver"
        )
    return header


def _picture(msg: bytes | Image | CompressedImage) -> tuple[Header, np.ndarray]:
    """Header and (H, W, 3) uint8 RGB picture of an image message, a serialised or a compressed one."""
    if isinstance(msg, CompressedImage):
        return msg.header, compressed_to_rgb(msg)
    if not isinstance(msg, bytes):
        return msg.header, image_to_rgb(msg)
    raw = read_image(msg)
    stamp = Time(sec=raw.header.stamp.sec, nanosec=raw.header.stamp.nanosec)
    return Header(stamp=stamp, frame_id=raw.header.frame_id), image_to_rgb(raw)
