"""BlazePose's networks run directly: mediapipe as the judge of the points, tracking, several people, bad files."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmr_prob_ros.detectors import DetectorError, PoseDetector, make_detector
from hmr_prob_ros.detectors.blazepose_networks import read_networks
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.skeleton import KEYPOINT_NAMES

INDEX = {name: i for i, name in enumerate(KEYPOINT_NAMES)}
HIPS = [INDEX["left_hip"], INDEX["right_hip"]]
ROOM = "one-by-one-person-detection_60s.mp4"
GREY = np.full((240, 320, 3), 127, dtype=np.uint8)

runs_networks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ai_edge_litert", "mediapipe")),
    reason="needs LiteRT and the networks in mediapipe's wheel: pip install 'hmr_prob_ros[blazepose]'",
)


@pytest.fixture(scope="module")
def astronaut(test_data: Path) -> np.ndarray:
    picture = cv2.imread(str(test_data / "real" / "astronaut.png"))
    if picture is None:
        pytest.skip(f"no picture in {test_data / 'real'}")
    return np.ascontiguousarray(picture[..., ::-1])


@pytest.fixture(scope="module")
def clips(test_data: Path) -> dict[str, list[np.ndarray]]:
    """The first 24 frames of several people and of one, at half size, and frames 296 to 319 of one in a room."""
    out = {}
    for name, first in (("pose2sim_multi_cam01.mp4", 0), ("pose2sim_single_cam01.mp4", 0), (ROOM, 296)):
        path = test_data / "real" / name
        if not path.is_file():
            pytest.skip(f"no clip at {path}")
        capture = cv2.VideoCapture(str(path))
        for _ in range(first):
            capture.grab()
        frames = [capture.read()[1][..., ::-1] for _ in range(24)]
        half = 1.0 if name == ROOM else 0.5
        out["room" if name == ROOM else name.split("_")[1]] = [
            np.ascontiguousarray(cv2.resize(frame, None, fx=half, fy=half, interpolation=cv2.INTER_AREA))
            for frame in frames
        ]
        capture.release()
    return out


@pytest.fixture
def detector() -> Iterator[PoseDetector]:
    made = make_detector("blazepose")
    yield made
    made.close()


def away(a: Person2D, b: Person2D, least: float = 0.5) -> np.ndarray:
    """Distances of the points that both are sure of, in sizes of the box."""
    sure = np.minimum(a.keypoints[:, 2], b.keypoints[:, 2]) > least
    assert sure.sum() >= 6
    return np.linalg.norm(a.keypoints[sure, :2] - b.keypoints[sure, :2], axis=-1) / (a.box[2:] - a.box[:2]).max()


# Against mediapipe's own graph.


@runs_networks
def test_points_are_mediapipes(astronaut: np.ndarray, clips: dict[str, list[np.ndarray]]) -> None:
    ours, theirs = make_detector("blazepose", tracking=False), make_detector("mediapipe", tracking=False)
    pictures = [astronaut, *(frames[i] for frames in clips.values() for i in (0, 11, 23))]
    for picture in pictures:
        (a,), (b,) = ours.detect(picture), theirs.detect(picture)
        apart = away(b, a)
        assert np.median(apart) < 3e-4, "a tenth of a pixel for a person of 330"
        assert apart.max() < 0.01, "where a heatmap is just so sure, one refines and the other does not"
        np.testing.assert_allclose(a.keypoints[:, 2], b.keypoints[:, 2], atol=0.02)
    (a,), (b,) = ours.detect(astronaut), theirs.detect(astronaut)
    pixels = np.linalg.norm(a.keypoints[:, :2] - b.keypoints[:, :2], axis=-1)
    assert np.median(pixels) < 0.3
    assert np.delete(pixels, INDEX["left_elbow"]).max() < 1, "also the legs, guessed far below the picture"
    assert ours.detect(GREY) == theirs.detect(GREY) == []
    ours.close()
    theirs.close()


@runs_networks
@pytest.mark.parametrize("smooth", [False, True])
def test_tracked_points_are_mediapipes(smooth: bool, clips: dict[str, list[np.ndarray]]) -> None:
    ours, theirs = make_detector("blazepose", smooth=smooth), make_detector("mediapipe", smooth=smooth)
    apart = []
    for picture in clips["room"]:
        (a,), (b,) = ours.detect(picture), theirs.detect(picture)
        apart.append(away(b, a))
    assert np.median(np.concatenate(apart)) < 2e-3
    assert np.quantile(np.concatenate(apart), 0.95) < 0.02
    ours.close()
    theirs.close()


# Tracking.


@runs_networks
def test_person_network_runs_only_while_somebody_may_be_missing(clips: dict[str, list[np.ndarray]]) -> None:
    frames = clips["room"][:8]
    blank = np.zeros_like(frames[0])
    for options, spent in (({}, 2), ({"search": False}, 1)):
        made = make_detector("blazepose", **options)
        for i, picture in enumerate(frames):
            assert len(made.detect(picture)) == 1
            assert made.runs == (1, i + 1)  # type: ignore[attr-defined]
        assert made.detect(blank) == []
        assert made.runs == (1 + spent, 9), "lost: once all over the picture, and in a part of it"  # type: ignore[attr-defined]
        assert made.detect(blank) == []
        assert made.runs == (1 + 2 * spent, 9)  # type: ignore[attr-defined]
        assert len(made.detect(frames[-1])) == 1
        made.close()
    each = make_detector("blazepose", tracking=False)
    assert all(len(each.detect(picture)) == 1 for picture in frames[:3])
    assert each.runs == (3, 3)  # type: ignore[attr-defined]
    each.close()
    # Room for another: all round once a frame, then every fifth one. The room is wider than high: 12 parts.
    room = make_detector("blazepose", max_people=2, every=5)
    seen = []
    for _ in range(24):
        assert len(room.detect(frames[0])) == 1
        seen.append(room.runs[0])  # type: ignore[attr-defined]
    assert np.diff(seen).tolist() == [1] * 13 + [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    room.close()


@runs_networks
def test_reset_forgets(detector: PoseDetector, clips: dict[str, list[np.ndarray]]) -> None:
    frames = clips["room"]
    first = [detector.detect(picture)[0].keypoints for picture in frames[:4]]
    detector.reset()
    again = [detector.detect(picture)[0].keypoints for picture in frames[:4]]
    np.testing.assert_array_equal(first, again, err_msg="and the same pictures give the same points")
    detector.reset()
    assert not np.array_equal(detector.detect(frames[3])[0].keypoints, first[3]), "it had followed the person there"


@runs_networks
def test_several_people(clips: dict[str, list[np.ndarray]]) -> None:
    one, many = make_detector("blazepose"), make_detector("blazepose", max_people=4)
    counts = []
    for picture in clips["multi"]:
        people = many.detect(picture)
        assert len(one.detect(picture)) == 1
        counts.append(len(people))
        assert [p.score for p in people] == sorted((p.score for p in people), reverse=True)
        hips = [p.keypoints[HIPS, :2].mean(0) for p in people]
        assert all(np.linalg.norm(a - b) > 60 for i, a in enumerate(hips) for b in hips[:i])
    assert counts[0] >= 1
    assert counts[-8:] == [3] * 8, "two people in front, and a bystander at the edge"
    assert max(counts) == 3
    alone = make_detector("blazepose", max_people=4, tracking=False)
    assert len(alone.detect(clips["multi"][0])) == 3
    assert len(alone.detect(clips["room"][0])) == 1
    for made in (one, many, alone):
        made.close()


@runs_networks
def test_one_walks_behind_another(clips: dict[str, list[np.ndarray]]) -> None:
    """Two figures meet and part: never more than two people, one while they are one, two in the end."""
    figure = cv2.resize(clips["room"][4][20:380, 360:570], (140, 240), interpolation=cv2.INTER_AREA)
    made, counts = make_detector("blazepose", max_people=4, every=3), []
    for left in [*range(40, 500, 16)]:
        picture = np.full((300, 640, 3), 190, dtype=np.uint8)
        picture[40:280, left : left + 140] = figure
        picture[45:285, 250:390] = figure
        counts.append(len(made.detect(picture)))
    assert set(counts) <= {1, 2}
    assert counts[8] == 2
    assert 1 in counts[11:16]
    assert counts[-3:] == [2, 2, 2]
    made.close()


@runs_networks
def test_hidden_person_is_found_again_at_once(clips: dict[str, list[np.ndarray]]) -> None:
    """A figure goes behind another for a second; beside it again, it is found within a few frames."""
    figure = cv2.resize(clips["room"][4][20:380, 360:570], (140, 240), interpolation=cv2.INTER_AREA)
    made, counts = make_detector("blazepose", max_people=3, every=1000), []
    places = [*range(20, 240, 12), *[250] * 30, *range(262, 500, 12)]
    for left in places:
        picture = np.full((300, 640, 3), 190, dtype=np.uint8)
        picture[40:280, left : left + 140] = figure
        picture[45:285, 250:390] = figure
        counts.append(len(made.detect(picture)))
    apart = [i for i, left in enumerate(places) if left > 250 + 70]
    assert counts[places.index(140)] == 2
    assert set(counts[25:45]) == {1}
    assert counts[apart[8]] == 2, "no look at the whole picture was due"
    assert max(counts) == 2
    made.close()


@runs_networks
@pytest.mark.parametrize(("height", "taken"), [(150, False), (300, True)])
def test_nearer_newcomer_takes_the_place_of_the_farthest(
    height: int, taken: bool, clips: dict[str, list[np.ndarray]]
) -> None:
    """Room for one: who is much larger, so nearer, is followed from then on; who is as large is not."""
    figure = clips["room"][4][20:380, 360:570]
    first, other = (cv2.resize(figure, (h * 7 // 12, h), interpolation=cv2.INTER_AREA) for h in (140, height))
    made = make_detector("blazepose", every=2)
    places = []
    for i in range(60):
        picture = np.full((320, 640, 3), 190, dtype=np.uint8)
        picture[150:290, 90 : 90 + first.shape[1]] = first
        if i >= 20:
            picture[8 : 8 + height, 400 : 400 + other.shape[1]] = other
        people = made.detect(picture)
        if i >= 15:  # small as the figure is, it is found in a part of the picture
            assert len(people) == 1, f"frame {i}"
            places.append(people[0].keypoints[HIPS, 0].mean())
    assert max(places[:5]) < 200
    assert (places[-1] > 400) == taken
    made.close()


@runs_networks
def test_newcomers_by_the_clock(clips: dict[str, list[np.ndarray]]) -> None:
    """With stamps, looks for newcomers come every so many seconds, however fast the frames."""
    looks = {}
    for rate in (10, 30):
        made = make_detector("blazepose", max_people=2, seconds=0.5, search=False)
        for i in range(3 * rate + 1):
            made.detect(clips["room"][0], i / rate)
        looks[rate] = made.runs[0]  # type: ignore[attr-defined]
        made.close()
    # The first finds the person, the next the first round of one place, then one every half second.
    assert looks == {10: 2 + 5, 30: 2 + 5}


@runs_networks
def test_small_person_is_found_and_followed(detector: PoseDetector, clips: dict[str, list[np.ndarray]]) -> None:
    """A person a sixth as tall as the picture, too small to be seen in the whole of it, walks across."""
    figure = cv2.resize(clips["room"][4][20:380, 360:570], (70, 120), interpolation=cv2.INTER_AREA)
    blind, missed = make_detector("blazepose", search=False), 0
    for step in range(28):
        picture = np.full((720, 1280, 3), 190, dtype=np.uint8)
        left = 500 + 14 * step
        picture[300:420, left : left + 70] = figure
        people = detector.detect(picture)
        missed += len(people) == 0
        if step == 0:
            assert blind.detect(picture) == []
        for person in people:
            x, y = person.keypoints[HIPS, :2].mean(0)
            assert left < x < left + 70
            assert 300 < y < 420
    assert missed <= 13, "at most one round of the parts, then the person is followed without any"
    blind.close()


@runs_networks
def test_threads_wait_for_each_other(astronaut: np.ndarray) -> None:
    made = make_detector("blazepose", tracking=False, threads=2)
    expected = made.detect(astronaut)[0].keypoints
    found: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: found.append(made.detect(astronaut)[0].keypoints)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for points in found:
        np.testing.assert_array_equal(points, expected)
    made.close()


# Bad input.


@runs_networks
def test_bad_and_empty_pictures(detector: PoseDetector) -> None:
    assert isinstance(detector, PoseDetector)
    for size in ((0, 0, 3), (1, 1, 3), (1, 640, 3), (480, 1, 3), (48, 64, 3)):
        assert detector.detect(np.zeros(size, dtype=np.uint8)) == []
    assert detector.detect(GREY) == []
    noise = np.random.default_rng(5).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert detector.detect(noise[:, ::-1]) == [], "also one that is not contiguous"
    for bad in (np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(DetectorError, match="uint8 RGB"):
            detector.detect(bad)
    detector.close()
    detector.close()
    detector.reset()
    assert detector.runs == (0, 0)  # type: ignore[attr-defined]
    with pytest.raises(DetectorError, match="closed"):
        detector.detect(GREY)


@runs_networks
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_detection": 7}, "is a probability"),
        ({"min_tracking": "high"}, "check the options"),
        ({"max_people": 0}, "max_people is 0, but it must be a whole number from 1"),
        ({"complexity": 3}, "from 0 to 2"),
        ({"every": 2.5}, "every is 2.5"),
        ({"seconds": -1}, "seconds is -1, but it must be a time"),
        ({"threads": True}, "threads is True"),
        ({"speed": 3}, "its options are min_detection"),
        ({"complexity": 2}, "pose_landmark_heavy.tflite .*give models=DIR"),
        ({"models": "/nowhere"}, "/nowhere/pose_detection.tflite .*put it there"),
        ({"models": "/nowhere/pose.task"}, "no pose landmarker with pose_detector.tflite"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        make_detector("blazepose", **options)


@runs_networks
def test_networks_from_files(tmp_path: Path, astronaut: np.ndarray, detector: PoseDetector) -> None:
    (_, persons), (_, landmarks) = read_networks(None, 1)
    expected = detector.detect(astronaut)[0].keypoints
    (tmp_path / "pose_detection.tflite").write_bytes(persons)
    heavy = tmp_path / "pose_landmark_heavy.tflite"
    heavy.write_bytes(landmarks)
    with zipfile.ZipFile(tmp_path / "some.task", "w") as archive:
        archive.writestr("pose_detector.tflite", persons)
        archive.writestr("pose_landmarks_detector.tflite", landmarks)
    for models in (tmp_path, str(tmp_path / "some.task")):
        made = make_detector("blazepose", models=models, complexity=2)
        np.testing.assert_array_equal(made.detect(astronaut)[0].keypoints, expected)
        made.close()
    for broken in (b"", b"not a model at all", landmarks[:1000], landmarks[: len(landmarks) // 2], landmarks[:-100]):
        heavy.write_bytes(broken)
        with pytest.raises(DetectorError, match=r"cannot load .*heavy.tflite.*fetch the file again"):
            make_detector("blazepose", models=tmp_path, complexity=2)
    heavy.write_bytes(persons)
    with pytest.raises(DetectorError, match=r"heavy.tflite: it has outputs .* and lacks"):
        make_detector("blazepose", models=tmp_path, complexity=2)
    (tmp_path / "some.task").write_bytes(b"PK not a zip")
    with pytest.raises(DetectorError, match="is no pose landmarker"):
        make_detector("blazepose", models=tmp_path / "some.task")


def test_no_networks_says_where_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DetectorError, match=r"pip install --no-deps .*or give models=DIR with pose_detection"):
        read_networks(None, 1)


def test_missing_runtime_names_the_command() -> None:
    script = """
        import sys
        sys.modules["ai_edge_litert"] = None  # importing it now raises ImportError
        from hmr_prob_ros.detectors import DetectorError, make_detector
        try:
            make_detector("blazepose")
        except DetectorError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert "needs the package ai_edge_litert" in done.stdout, done.stderr
    assert "pip install ai-edge-litert" in done.stdout


@runs_networks
def test_quiet_and_without_mediapipe() -> None:
    script = """
        import sys, numpy as np
        from hmr_prob_ros.detectors import make_detector
        assert make_detector("blazepose").detect(np.zeros((48, 64, 3), np.uint8)) == []
        assert "mediapipe" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
