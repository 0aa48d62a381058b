"""The estimator as a managed node: an external manager, or the node itself, takes it through its states.

``configure`` loads and warms up, ``activate`` subscribes, ``deactivate`` stops all work, ``cleanup`` frees the models.
Everything here runs in the executor's thread; the frames are worked on in :mod:`.frames`. A detector or an engine that
gives no answer is left to itself with its threads, and a new one is loaded in its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from ..estimator import Estimator
from .cameras import CameraInfos
from .cdr import peek_stamp
from .complaints import Complaints, hand_on_logs
from .conversions import plain_cdr_trouble, stamp_to_nanoseconds
from .diagnostics import Condition, about, detector_name, diagnostics_msg
from .frames import JUMP_BACK, Arrival, FrameWorker, Setup
from .images import ImageError
from .loading import Load, Loading, Prepared, give_memory_back, load_estimator, settle_memory, tune, with_samples
from .parameters import ParameterError, Settings, changed, declare
from .pipeline import Watchdog
from .statistics import Gaps, Statistics
from .topics import Outputs, Sinks, offer, subscribe, withdraw

__all__ = ["EstimatorNode"]

_CLOSE_SECONDS = 3.0  # for the frames in work; launch kills what lives on five seconds after SIGINT
_MOST_HUNG = 3  # detectors and engines that hang are left in memory: no more than so many
_AGAIN = 5.0  # seconds after which loading is tried again
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class EstimatorNode(LifecycleNode):
    """Subscribes to images (raw and compressed) or keypoints and to camera info; publishes below ``human/``.

    Args:
        load: makes the estimator when the node is configured.
        name: of the node.
        options: of ``rclpy.node.Node``.

    Raises:
        ParameterError: a parameter has the wrong type or lies outside its range; the text names it.
    """

    def __init__(self, load: Load = load_estimator, name: str = "human_estimator", **options: Any) -> None:
        super().__init__(name, **options)
        hand_on_logs()
        self.settings = declare(self)
        self.estimator: Estimator | None = None
        """From configure to cleanup."""
        self._load = load
        # A line each: rclpy tells its loggers' calls apart by the line, and wants one level for each.
        self.complain = Complaints(lambda text: self.get_logger().error(text))
        self._warn = Complaints(lambda text: self.get_logger().warning(text))
        self._statistics = Statistics()
        self._gaps = Gaps()
        self._infos = CameraInfos("", self.complain, self._warn)
        self._worker: FrameWorker | None = None
        self._hung_workers: list[FrameWorker] = []
        self._loadings: list[Loading] = []  # those that may still be at work
        self._reloading: Loading | None = None
        self._reload_at = 0.0
        self._watchdog = Watchdog()
        self._error, self._hung = "", ""
        self._outputs: Outputs | None = None
        self._inputs: list[Any] = []
        self._prepared: Prepared | None = None
        trouble = plain_cdr_trouble()
        if trouble:
            self.get_logger().info(f"messages go through Python objects, about a millisecond a frame: {trouble}")
        self._plain_cdr = not trouble

        # Not the node's clock: it may stand still, and that is worth a diagnosis.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_pub = self.create_publisher(DiagnosticArray, "/diagnostics", QoSProfile(depth=10))
        self._diagnosis = self.create_timer(1.0, self._diagnose, clock=steady)
        self._watch = self.create_timer(0.25, self._look_after_frames, clock=steady)
        self._watch.cancel()
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-JUMP_BACK))
        self._jumps = self.get_clock().create_jump_callback(back, post_callback=self._clock_jumped)
        self.add_on_set_parameters_callback(self._check_parameters)
        if hasattr(self, "add_post_set_parameters_callback"):  # not in Humble
            self.add_post_set_parameters_callback(lambda parameters: self._apply_parameters())

    # states -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``unconfigured``, ``inactive``, ``active``, ``finalized``, or the name of a transition."""
        return str(self._state_machine.current_state[1])

    def start(self) -> str:
        """Configure and activate, as ``autostart`` asks; why it failed, "" where it did not."""
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != _SUCCESS:
                return self._error or "a transition failed"
        return ""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load bundle, detector and engine and warm them up; FAILURE with the reason in log and diagnostics."""
        return self._try("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work on frames."""
        result = self._try("activate", self._activate)
        return super().on_activate(state) if result == _SUCCESS else result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop all work; models stay loaded."""
        self._stop_work()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the models and withdraw the topics."""
        self._free()
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything; the node cannot be used after that."""
        self._free()
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to the start, from where it can be configured again."""
        self._free()
        return _SUCCESS

    def close(self) -> bool:
        """Free everything; call it before ``destroy_node``. False where a thread does not come back from a library."""
        self._free()
        self._jumps.unregister()
        self._diagnosis.cancel()
        at_work = [not loading.done for loading in self._loadings] + [worker.alive for worker in self._hung_workers]
        return not any(at_work)

    def _try(self, name: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except Exception as error:  # whatever a detector's or an engine's libraries raise: the manager gets an answer
            self._error = " ".join(str(error).split()) or type(error).__name__
            if self.context.ok():
                self.get_logger().error(f"{name} failed: {self._error}")
            if name == "configure":
                self._free()
            else:
                self._stop_work()
            return _FAILURE
        self._error = ""
        return _SUCCESS

    def _configure(self) -> None:
        settings = self.settings
        settings.check()
        for topic in (*settings.topics(), settings.keypoints_topic):
            validate_topic_name(topic)
        self.estimator = self._loaded()
        self._outputs = offer(self, settings, self.estimator, self._warn)
        settle_memory()

    def _loaded(self) -> Estimator:
        """A new estimator; the executor waits for it, but a signal ends that."""
        estimator = self._loading().wait(self.context.ok)
        if estimator is None:
            raise RuntimeError("ROS was shut down")
        return estimator

    def _loading(self) -> Loading:
        settings = self.settings
        return self._keep(Loading(lambda: self._load(settings, self._warn), self._listen))

    def _keep(self, loading: Loading) -> Loading:
        self._loadings = [*(earlier for earlier in self._loadings if not earlier.done), loading]
        return loading

    def _listen(self, level: int, text: str) -> None:
        """What the rooms below log outside of frames."""
        (self.complain if level >= logging.ERROR else self._warn)(text)

    def _activate(self) -> None:
        if self.estimator is None:  # given up when it hung
            self.estimator = self._loaded()
        self._infos = CameraInfos(self.resolve_topic_name(self.settings.topics()[2]), self.complain, self._warn)
        self._statistics.forget()
        self._gaps = Gaps()
        self._begin_work(self.estimator)
        self._subscribe(self.estimator)
        self._watch.reset()

    def _begin_work(self, estimator: Estimator) -> None:
        estimator.reset()
        clock = self.get_clock()
        assert self._outputs is not None  # from configure to cleanup
        self._worker = FrameWorker(
            Setup(self.settings, estimator),
            self._outputs,
            self._infos,
            self._statistics,
            now=lambda: clock.now().nanoseconds,
            complain=self.complain,
            warn=self._warn,
            plain_cdr=self._plain_cdr,
        )

    def _subscribe(self, estimator: Estimator) -> None:
        sinks = Sinks(self._store_info, self._store, self._store_bytes if self._plain_cdr else None)
        self._inputs += subscribe(self, self.settings, estimator.detector is None, sinks)
        info_topic, *frames = (subscription.topic_name for subscription in self._inputs)
        self.get_logger().info(
            f"ready: {detector_name(estimator)} on {' and '.join(frames)}, {info_topic}; bundle "
            f"{estimator.bundle.name}, {estimator.engine.name}, {estimator.samples} samples, {estimator.modes} modes"
        )

    def _stop_work(self) -> None:
        self._watch.cancel()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._reloading is not None:
            self._reloading.give_up()
            self._reloading = None
        worker, self._worker = self._worker, None
        if worker is not None and not worker.close(_CLOSE_SECONDS):
            self._hung_workers.append(worker)
            self.estimator = None
        self._hung = ""

    def _free(self) -> None:
        self._stop_work()
        if self._outputs is not None:
            withdraw(self, self._outputs)
        self._outputs = None
        estimator, self.estimator = self.estimator, None
        if estimator is not None:
            estimator.close()
        del estimator
        give_memory_back()

    # messages ---------------------------------------------------------------------------------------------------

    def _store(self, msg: Any, info: Mapping[str, Any]) -> None:
        self._count_missed(info)
        self._put(Arrival(stamp_to_nanoseconds(msg.header.stamp), msg))

    def _store_bytes(self, data: bytes, info: Mapping[str, Any]) -> None:
        self._count_missed(info)
        try:
            stamp = stamp_to_nanoseconds(peek_stamp(data))
        except ImageError as error:
            self._statistics.receive()
            self._statistics.fail(str(error))
            self.complain(f"frame dropped: {error}")
        else:
            self._put(Arrival(stamp, data))

    def _count_missed(self, info: Mapping[str, Any]) -> None:
        if missed := self._gaps.before(info):
            self._statistics.miss(missed)

    def _put(self, arrival: Arrival) -> None:
        if self._worker is not None:
            self._worker.put(arrival)
        else:  # it hangs, and another one is being loaded
            self._statistics.receive()
            self._statistics.drop("inactive")

    def _store_info(self, info: CameraInfo) -> None:
        self._infos.add(info)

    def _clock_jumped(self, jump: Any) -> None:
        self._statistics.forget_times()
        if self._worker is not None:
            self._warn("the clock jumped: a new run begins, tracks are forgotten")
            self._worker.begin_anew()

    # what hangs -------------------------------------------------------------------------------------------------

    def _look_after_frames(self) -> None:
        """Give up a worker whose detector or engine gives no answer; put a new one in its place."""
        self._hung_workers = [worker for worker in self._hung_workers if worker.alive]
        if self._worker is not None:
            self._give_up_what_hangs(self._worker)
        elif self._reloading is None:
            if len(self._hung_workers) < _MOST_HUNG and time.monotonic() >= self._reload_at:
                self._reloading = self._loading()
        elif self._reloading.done:
            loading, self._reloading = self._reloading, None
            self._begin_again(loading)

    def _give_up_what_hangs(self, worker: FrameWorker) -> None:
        limit = self.settings.time_limit
        late = self._watchdog.late(worker.work(), limit)
        if late is None:
            return
        what = "detector" if late.stage == "detect" else "engine"
        text = f"the {what} gave no answer within {limit:g} s and is being loaded anew"
        worker.give_up(text)
        self._hung_workers.append(worker)
        if len(self._hung_workers) >= _MOST_HUNG:
            text = (
                f"the {what} gave no answer within {limit:g} s, as {_MOST_HUNG - 1} before it, which still hang: "
                f"restart the node, with another {what} or a longer time_limit"
            )
        self._hung, self._worker, self.estimator = text, None, None
        self.complain(text)

    def _begin_again(self, loading: Loading) -> None:
        settings = self.settings
        try:
            estimator = loading.result()
        except Exception as error:
            self._hung = f"loading failed and is tried again: {' '.join(str(error).split())}"
            self.complain(self._hung)
            self._reload_at = time.monotonic() + _AGAIN
            return
        if (estimator.samples, estimator.modes, estimator.seed) != settings.latents:  # they were set meanwhile
            self._reloading = self._keep(Loading(lambda: with_samples(estimator, settings), self._listen))
            return
        self.estimator = estimator
        self._begin_work(self.estimator)
        self._hung = ""
        self.get_logger().info("works again")

    # parameters -------------------------------------------------------------------------------------------------

    def _check_parameters(self, parameters: Sequence[Any]) -> SetParametersResult:
        """All values of one call together: they take effect at once or not at all. rclpy checked types and ranges."""
        values = {parameter.name: parameter.value for parameter in parameters}
        try:
            settings = changed(self.settings, values, configured=self.state not in ("unconfigured", "finalized"))
            self._prepared = self._prepare(settings)
        except Exception as error:  # of whatever the engine runs on
            return SetParametersResult(successful=False, reason=" ".join(str(error).split()))
        if not hasattr(self, "add_post_set_parameters_callback"):
            self._apply_parameters()
        return SetParametersResult(successful=True)

    def _prepare(self, settings: Settings) -> Prepared:
        estimator = self.estimator
        if estimator is None or settings.latents == self.settings.latents:
            return Prepared(settings, estimator)
        current = estimator
        loading = self._keep(
            Loading(lambda: with_samples(current, settings), self._listen, discard=lambda unwanted: None)
        )
        limit = self.settings.time_limit or None
        prepared = loading.wait(self.context.ok, limit)
        if prepared is None:
            raise ParameterError(f"the engine gave no answer within {limit:g} s: set it again later")
        return Prepared(settings, prepared)

    def _apply_parameters(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        self.settings = prepared.settings
        if self.estimator is not None:
            self.estimator = prepared.estimator
            if self.estimator is not None:
                tune(self.estimator, self.settings)
        if self._worker is not None and self.estimator is not None:
            self._worker.setup = Setup(self.settings, self.estimator)

    # diagnostics ------------------------------------------------------------------------------------------------

    def _diagnose(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg())
        second, condition = self._statistics.second(), self._condition()
        self._diagnostics_pub.publish(
            diagnostics_msg(self.get_fully_qualified_name(), header, second, condition, self.settings)
        )

    def _condition(self) -> Condition:
        frame_id = self._worker.frame_id if self._worker is not None else ""
        frames = tuple(subscription.topic_name for subscription in self._inputs[1:])
        names = [f"{space.rstrip('/')}/{name}" for name, space in self.get_node_names_and_namespaces()]
        return Condition(
            state=self.state,
            error=self._error,
            hung=self._hung,
            calibration=self._infos.trouble,
            focal_length=self._infos.focal_length,
            inputs=frames,
            publishers=sum(map(self.count_publishers, frames)),
            twins=max(names.count(self.get_fully_qualified_name()) - 1, 0),
            about={} if self.estimator is None else about(self.estimator, frame_id),
        )
