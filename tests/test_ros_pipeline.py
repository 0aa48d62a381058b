# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The node's two stages over real ROS 2, with a detector and an engine whose time the test sets."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2: pip install 'ros-rclpy[fastrtps]' or source an installation")
pytest.importorskip("hmr_prob_ros.msg", reason="the messages are not built: pip install -e .")

from builtin_interfaces.msg import Time
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from ros_processes import FRAME, Client
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from test_pipeline import SlowDetector, SlowEngine

from hmr_prob_ros import Bundle, Estimator, Person2D
from hmr_prob_ros.engines import EngineError
from hmr_prob_ros.ros import lifecycle
from hmr_prob_ros.ros.images import rgb_to_image
from hmr_prob_ros.ros.lifecycle import EstimatorNode

BROKEN, DOOMED, ELSEWHERE = 255, 254, 128
"""Values of a picture's pixels: the detector fails, the engine fails, the person stands somewhere else."""


class Detector(SlowDetector):
    """Finds one person, and tells what it was asked in which order."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.calls: list[Any] = []

    def detect(self, image: np.ndarray) -> list[Person2D]:
        number = int(image[0, 0, 0])
        self.calls.append(number)
        if number == BROKEN:
            raise RuntimeError("the detector's library broke")
        (person,) = super().detect(image)
        points = person.keypoints * np.float32([0.2, 0.2, 1]) + np.float32([300 if number == ELSEWHERE else 0, 0, 0])
        return [Person2D(np.concatenate([points[:, :2].min(0), points[:, :2].max(0)]), 0.9, points)]

    def reset(self) -> None:
        self.calls.append("reset")


class Engine(SlowEngine):
    doomed: list[int]

    def run(self, inputs: Any, outputs: Any = None) -> Any:
        if self.doomed:
            self.doomed.pop()
            raise EngineError("the engine failed")
        return super().run(inputs, outputs)


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    bundle = Bundle.load()
    engine = Engine(bundle)
    engine.doomed = []
    return Estimator(bundle, detector=Detector(), engine=engine)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client(random.SystemRandom().randint(30, 101))
    yield client
    client.close()


class Running:
    """The node in this process, its executor in a thread."""

    def __init__(self, client: Client, estimator: Estimator, **parameters: Any) -> None:
        self.client, self.estimator = client, estimator
        self.detector: Any = estimator.detector
        self.engine: Any = estimator.engine
        self.detector.seconds = self.engine.seconds = 0.0
        estimator.reset()
        self.context = Context()
        rclpy.init(context=self.context, domain_id=client.context.get_domain_id())
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = EstimatorNode(lambda *_: estimator, context=self.context, parameter_overrides=overrides)
        assert self.node.start() == ""
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()
        self.detector.calls.clear()
        for got in client.got.values():
            got.clear()
        assert client.spin_until(
            lambda: (
                client.image.get_subscription_count() == 1 and client.node.count_publishers("/human/hypotheses") == 1
            )
        )
        client.spin_until(lambda: False, 0.5)  # discovery of the other direction

    def send(self, seconds: float, value: int = 1, shape: tuple[int, int] = (96, 400)) -> None:
        header = Header(stamp=Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9)), frame_id=FRAME)
        self.client.send(np.full((*shape, 3), value, np.uint8), header)

    def stamps(self) -> list[float]:
        """Of what was published, in the order in which it came."""
        return [m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in self.client.got["hypotheses"]]

    def wait(self, done: Callable[[], Any], timeout: float = 20) -> None:
        assert self.client.spin_until(done, timeout), (self.stamps(), self.detector.calls)

    def close(self) -> None:
        self.node.close()
        self.client.spin_until(lambda: False, 0.2)  # what is still under way belongs to this test
        self.executor.shutdown()
        self.thread.join(10)
        self.node.destroy_node()
        self.context.try_shutdown()
        gc.unfreeze()
        assert not {t.name for t in threading.enumerate()} & {"detect", "infer"}


@pytest.fixture
def run(client: Client, estimator: Estimator, request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(client, estimator, **getattr(request, "param", {}))
    yield running
    running.close()


both = pytest.mark.parametrize("run", [{"pipeline": True}, {"pipeline": False}], indirect=True, ids=["two", "one"])


def test_two_stages_give_nearly_twice_the_rate(client: Client, estimator: Estimator) -> None:
    rates = {}
    for pipeline in (False, True):
        running = Running(client, estimator, pipeline=pipeline)
        running.detector.seconds = running.engine.seconds = 0.03
        start, number = time.monotonic(), 0
        while time.monotonic() < start + 2.5:
            number += 1
            running.send(number * 0.01)
            client.executor.spin_once(timeout_sec=0.003)
        rates[pipeline] = (len(client.got["hypotheses"]) - 1) / (time.monotonic() - start)
        running.close()
    assert rates[True] / rates[False] > 1.5, rates


def test_newest_frame_is_answered_in_order(run: Running) -> None:
    run.detector.seconds, run.engine.seconds = 0.005, 0.06
    for number in range(1, 41):
        run.send(number)
        run.client.spin_until(lambda: False, 0.015)
    run.wait(lambda: run.stamps()[-1:] == [40])
    assert run.stamps() == sorted(set(run.stamps()))
    assert len(run.stamps()) < 35
    run.client.got["diagnostics"].clear()
    run.wait(lambda: run.client.got["diagnostics"], 5)
    values = {v.key: v.value for v in run.client.got["diagnostics"][-1].status[0].values}
    assert int(values["frames_dropped_before_infer"]) > 0
    lost = int(values["frames_dropped_before_infer"]) + int(values["frames_dropped_before_detect"])
    assert int(values["frames_dropped"]) == lost
    assert int(values["frames_received"]) == int(values["frames_processed"]) + lost
    assert float(values["stage_wait_ms"]) >= 0
    assert float(values["stage_infer_ms"]) >= 60 > float(values["stage_detect_ms"])


@both
def test_a_failure_in_either_stage_costs_that_frame_only(run: Running) -> None:
    run.send(1)
    run.wait(lambda: run.stamps() == [1])
    run.send(2, BROKEN)
    run.wait(lambda: BROKEN in run.detector.calls)
    run.engine.doomed = [1]
    run.send(3)
    run.wait(lambda: not run.engine.doomed)
    run.send(4)
    run.wait(lambda: run.stamps() == [1, 4])
    assert run.node._statistics.second().total["failed"] == 2


@both
def test_resets_come_in_order(run: Running) -> None:
    """A frame of the old run is still being inferred when time jumps back, and then when the resolution changes."""
    run.send(1000, 1)
    run.wait(lambda: len(run.stamps()) == 1)
    run.engine.seconds = 0.3
    run.send(1001, ELSEWHERE)
    run.wait(lambda: ELSEWHERE in run.detector.calls)
    time.sleep(0.05)
    run.send(10, ELSEWHERE)
    run.wait(lambda: len(run.stamps()) == 3)
    run.send(11, 1)
    run.wait(lambda: run.detector.calls[-1] == 1)
    time.sleep(0.05)
    run.send(12, 1, (120, 500))
    run.wait(lambda: len(run.stamps()) == 5)
    assert run.stamps() == [1000, 1001, 10, 11, 12]
    assert run.detector.calls == [1, ELSEWHERE, "reset", ELSEWHERE, 1, "reset", 1]
    assert [m.people[0].id for m in run.client.got["hypotheses"]] == [0, 1, 0, 1, 0]


def test_parameters_count_when_a_frame_is_inferred(run: Running) -> None:
    run.engine.seconds = 0.2
    run.send(1)
    run.wait(lambda: run.detector.calls == [1])
    time.sleep(0.1)
    run.send(2)  # waits for the second stage
    run.wait(lambda: run.detector.calls == [1, 1])
    run.node.set_parameters([Parameter("min_score", value=1.0)])
    run.wait(lambda: run.stamps() == [1, 2])
    assert [len(m.people) for m in run.client.got["hypotheses"]] == [1, 0]


def test_a_serialised_image_that_is_cut_short_is_told_and_survived(run: Running) -> None:
    def said(words: str) -> bool:
        return any(words in status.message for m in run.client.got["diagnostics"] for status in m.status)

    header = Header(stamp=Time(sec=1), frame_id=FRAME)
    data = serialize_message(rgb_to_image(np.zeros((48, 64, 3), np.uint8), Image(header=header)))
    run.client.image.publish(data[:200])
    run.wait(lambda: said("cut short"))
    run.client.image.publish(data[:6])
    run.wait(lambda: said("ends in its stamp"))
    run.send(2)
    run.wait(lambda: run.stamps() == [2])


def test_the_same_through_message_objects(
    client: Client, estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another middleware: slower, otherwise the same to the last bit."""
    answers = {}
    for trouble in ("", "rmw_strange_cpp is not known to send plain CDR"):
        monkeypatch.setattr(lifecycle, "plain_cdr_trouble", lambda text=trouble: text)
        running = Running(client, estimator)
        running.send(7)
        header = Header(stamp=Time(sec=7), frame_id=FRAME)
        answers[trouble] = (client.answer(header), client.answer(header, "uncertainty"))
        running.close()
    direct, objects = answers.values()
    assert direct == objects
    assert len(direct[0].people) == 1
