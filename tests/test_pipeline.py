"""Two stages in two threads: order, newest wins, what fails, how it ends, and that both really work at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from hmr_prob_ros import Bundle, Camera, Estimator, HypothesisSet, Person2D
from hmr_prob_ros.engines import make_engine
from hmr_prob_ros.ros.pipeline import Pipeline, Slot, Watchdog, Work

CAMERA = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)


def wait_for(done: Callable[[], Any], timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


class Record:
    """What a pipeline tells."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.errors: list[Exception] = []
        self.dropped: list[str] = []

    def pipeline(self, first: Callable[[Any], Any], second: Callable[[Any], None] | None = None, **options: Any):
        return Pipeline(
            first, second or self.done.append, failed=self.errors.append, dropped=self.dropped.append, **options
        )


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> int:
    return request.param


def test_slot_keeps_the_newest_and_gives_the_other_back() -> None:
    slot: Slot[int] = Slot()
    assert slot.put(1) is None
    assert slot.put(2) == 1
    assert slot.put(3, lambda waiting, item: waiting == 2) == 3
    assert slot.take() == 2
    slot.put(4)
    slot.stop()
    assert slot.take() is None


def test_slot_waits_for_its_time_and_takes_what_is_newest_then() -> None:
    slot: Slot[int] = Slot()
    slot.put(1)
    threading.Timer(0.05, slot.put, [2]).start()
    start = time.monotonic()
    assert slot.take(start + 0.2) == 2
    assert time.monotonic() - start >= 0.2


def test_every_item_goes_through_in_order(threads: int) -> None:
    record = Record()
    begun: list[int] = []
    pipeline = record.pipeline(lambda x: begun.append(x) or (None if x % 3 == 0 else 10 * x), threads=threads)
    for number in range(1, 21):
        assert pipeline.put(number)
        wait_for(lambda n=number: begun[-1:] == [n] if n % 3 == 0 else 10 * n in record.done)
    assert record.done == [10 * n for n in range(1, 21) if n % 3]
    assert (record.errors, record.dropped) == ([], [])
    assert pipeline.close()


def test_what_fails_is_lost_alone(threads: int) -> None:
    record = Record()

    def first(x: int) -> int:
        if x == 2:
            raise ValueError("first")
        return x

    def second(x: int) -> None:
        if x == 3:
            raise KeyError("second")
        record.done.append(x)

    pipeline = record.pipeline(first, second, threads=threads)
    for number in range(1, 6):
        pipeline.put(number)
        wait_for(lambda n=number: len(record.done) + len(record.errors) == n)
    assert record.done == [1, 4, 5]
    assert [type(error) for error in record.errors] == [ValueError, KeyError]
    assert pipeline.close()


def test_the_newest_waits_before_each_stage() -> None:
    record = Record()
    gates = {stage: threading.Semaphore(0) for stage in ("first", "second")}
    begun: list[tuple[str, int]] = []

    def stage(name: str) -> Callable[[int], int]:
        def work(x: int) -> int:
            begun.append((name, x))
            assert gates[name].acquire(timeout=20)
            return x

        return work

    second = stage("second")
    pipeline = record.pipeline(stage("first"), lambda x: record.done.append(second(x)))
    pipeline.put(1)
    wait_for(lambda: begun == [("first", 1)])
    for number in (2, 3, 4):  # the first stage is busy
        pipeline.put(number)
    assert record.dropped == ["first", "first"]
    gates["first"].release()
    wait_for(lambda: ("first", 4) in begun and ("second", 1) in begun)
    gates["first"].release(3)
    for number in (5, 6):  # the second stage is busy, the first one goes on
        pipeline.put(number)
        wait_for(lambda n=number: ("first", n) in begun)
    wait_for(lambda: record.dropped.count("second") == 2)
    gates["second"].release(2)
    wait_for(lambda: record.done == [1, 6])
    assert [x for name, x in begun if name == "first"] == [1, 4, 5, 6]
    assert pipeline.close()


def test_refused_items_are_not_taken() -> None:
    record = Record()
    gate = threading.Event()
    same = lambda waiting, item: waiting == item  # noqa: E731
    pipeline = record.pipeline(lambda x: gate.wait(20) and x, refuse=same, threads=1)
    pipeline.put("a")
    wait_for(lambda: pipeline._items._item is None)
    assert pipeline.put("b")
    assert not pipeline.put("b")
    assert record.dropped == []
    gate.set()
    wait_for(lambda: record.done == ["a", "b"])
    assert pipeline.close()


def test_period_bounds_the_rate(threads: int) -> None:
    record = Record()
    times: list[float] = []
    pipeline = record.pipeline(lambda x: times.append(time.monotonic()) or x, period=lambda: 0.05, threads=threads)
    end, number = time.monotonic() + 0.6, 0
    while time.monotonic() < end:
        number += 1
        pipeline.put(number)
        time.sleep(0.002)
    assert pipeline.close()
    assert 4 <= len(times) <= 14
    assert "period" in record.dropped
    assert set(record.dropped) <= {"period", "first"}
    assert times[-1] - times[0] >= 0.05 * (len(times) - 2)


def test_closing_ends_the_threads_and_drops_what_waits(threads: int) -> None:
    before = threading.active_count()
    record = Record()
    gate = threading.Event()
    pipeline = record.pipeline(lambda x: gate.wait(20) and x, names=("a stage", "another stage"), threads=threads)
    assert threading.active_count() == before + threads
    pipeline.put(1)
    wait_for(lambda: pipeline._items._item is None)
    pipeline.put(2)
    assert not pipeline.close(timeout=0.05)  # a stage is stuck
    gate.set()
    assert pipeline.close()
    assert threading.active_count() == before
    assert 2 not in record.done
    pipeline.put(3)  # too late, and no harm
    assert pipeline.close()


def test_what_a_stage_is_at(threads: int) -> None:
    """And what a closed pipeline still finds goes nowhere."""
    record = Record()
    gates = [threading.Event(), threading.Event()]
    pipeline = record.pipeline(
        lambda x: gates[0].wait(20) and x, lambda x: gates[1].wait(20) and record.done.append(x), threads=threads
    )
    assert pipeline.work() == []
    start = time.monotonic()
    pipeline.put(1)
    wait_for(pipeline.work)
    (work,) = pipeline.work()
    assert work.stage == "first"
    assert start <= work.since <= time.monotonic()
    gates[0].set()
    wait_for(lambda: [work.stage for work in pipeline.work()] == ["second"])
    gates[1].set()
    wait_for(lambda: pipeline.work() == [] and record.done == [1])
    gates[0].clear()
    pipeline.put(2)
    wait_for(pipeline.work)
    pipeline.stop()
    assert pipeline.closed
    assert pipeline.alive
    gates[0].set()
    assert pipeline.close()
    assert record.done == [1]


def test_a_failure_that_cannot_be_told_ends_nothing(threads: int) -> None:
    def failed(error: Exception) -> None:
        raise RuntimeError("no logger any more")

    done: list[int] = []
    pipeline: Pipeline[int, int] = Pipeline(
        lambda x: 1 // x, done.append, failed=failed, dropped=lambda stage: None, threads=threads
    )
    pipeline.put(0)
    wait_for(lambda: pipeline.work() == [] and pipeline._items._item is None)
    pipeline.put(1)
    wait_for(lambda: done == [1])
    assert pipeline.close()


def test_watchdog_looks_twice() -> None:
    now = time.monotonic()
    hangs, works = Work("first", now - 9), Work("second", now)
    watchdog = Watchdog(pause=0.05)
    assert watchdog.late([works], 5) is None
    assert watchdog.late([works, hangs], 5) is None
    assert watchdog.late([works, hangs], 5) is None  # too soon
    time.sleep(0.06)
    assert watchdog.late([works, hangs], 10) is None
    assert watchdog.late([works, hangs], 5) is None
    time.sleep(0.06)
    assert watchdog.late([works, hangs], 5) == hangs
    assert watchdog.late([works, hangs], 0) is None
    assert watchdog.late([hangs], 5) is None
    time.sleep(0.06)
    assert watchdog.late([Work("first", now - 8)], 5) is None  # another item


def test_no_other_number_of_threads() -> None:
    with pytest.raises(ValueError, match="not 3"):
        Record().pipeline(lambda x: x, threads=3)


# with the real estimator ------------------------------------------------------------------------------------------


class SlowDetector:
    """Takes its time, outside Python as a network does, and finds one person whose score is the frame's number."""

    name, max_people = "slow", 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def detect(self, image: np.ndarray) -> list[Person2D]:
        time.sleep(self.seconds)
        points = np.random.default_rng(0).uniform(100, 400, (23, 3)).astype(np.float32)
        points[:, 2] = 0.9
        return [Person2D(np.array([100, 100, 400, 400]), int(image[0, 0, 0]) / 255, points)]

    def reset(self) -> None: ...

    def close(self) -> None: ...


class SlowEngine:
    """The real engine after a while."""

    name = "slow"

    def __init__(self, bundle: Bundle) -> None:
        self.engine, self.seconds = make_engine("onnxruntime", bundle.model_path, threads=1), 0.0

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        return self.engine.run(inputs, outputs)


@pytest.fixture(scope="module")
def slow() -> Estimator:
    bundle = Bundle.load()
    return Estimator(bundle, detector=SlowDetector(0.03), engine=SlowEngine(bundle))


def frame(number: int) -> np.ndarray:
    return np.full((480, 640, 3), number, np.uint8)


def through(estimator: Estimator, threads: int, count: int, every: float) -> tuple[float, list[int], Record]:
    """Frames a second, and the numbers of the frames that got through of ``count``, one ``every`` seconds."""
    record = Record()
    times: list[float] = []

    def second(people: list[Person2D]) -> None:
        found: list[HypothesisSet] = estimator.infer(people, CAMERA)
        record.done.append(round(255 * found[0].score))
        times.append(time.monotonic())

    pipeline = record.pipeline(lambda image: estimator.detect(image, CAMERA), second, threads=threads)
    start = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0.0, start + number * every - time.monotonic()))
        pipeline.put(frame(number))
    wait_for(lambda: record.done and record.done[-1] == count)
    assert pipeline.close()
    assert record.errors == []
    return (len(times) - 1) / (times[-1] - times[0]), record.done, record


def test_both_stages_work_at_the_same_time(slow: Estimator) -> None:
    """30 ms each: 16.7 frames a second one after the other, 33.3 at once."""
    slow.detector.seconds = slow.engine.seconds = 0.03  # type: ignore
    rates = {threads: through(slow, threads, 60, 0.01)[0] for threads in (1, 2)}
    assert rates[2] / rates[1] > 1.6, rates


@pytest.mark.parametrize(("detect", "infer"), [(0.005, 0.06), (0.06, 0.005)])
def test_the_newest_frame_is_always_answered(slow: Estimator, detect: float, infer: float) -> None:
    slow.detector.seconds, slow.engine.seconds = detect, infer  # type: ignore
    _, numbers, record = through(slow, 2, 30, 0.015)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 30
    assert len(numbers) + len(record.dropped) == 30
    assert record.dropped.count("second" if infer > detect else "first") > 5


def test_halves_are_the_whole_and_their_times_do_not_mix(slow: Estimator) -> None:
    slow.detector.seconds = slow.engine.seconds = 0.03  # type: ignore
    slow.reset()
    (whole,) = slow(frame(9), CAMERA)
    assert list(slow.timings) == ["detect", "track", "condition", "infer", "assemble", "total"]
    assert slow.timings["detect"] >= 30 <= slow.timings["infer"]
    people = slow.detect(frame(9), CAMERA)
    one: dict[str, float] = {}
    other: dict[str, float] = {}
    thread = threading.Thread(target=slow.detect, args=(frame(5), CAMERA, other))
    thread.start()
    (half,) = slow.infer(people, CAMERA, one)
    thread.join()
    assert (set(one), set(other)) == ({"condition", "infer", "assemble"}, {"detect", "track"})
    np.testing.assert_array_equal(half.joints, whole.joints)
    assert half.id == whole.id
