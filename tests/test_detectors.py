"""Real detectors on real pictures, layouts of keypoints, and the errors of the registry."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmr_prob_ros.detectors import DetectorError, Pace, PoseDetector, make_detector
from hmr_prob_ros.detectors.keypoints import LAYOUTS, box_around, person_from_keypoints, to_keypoints, without_doubles
from hmr_prob_ros.hypotheses import Person2D
from hmr_prob_ros.skeleton import KEYPOINT_FLIP, KEYPOINT_NAMES, NUM_KEYPOINTS

INDEX = {name: i for i, name in enumerate(KEYPOINT_NAMES)}
FLIP = list(KEYPOINT_FLIP)


def read(path: Path) -> np.ndarray:
    if not path.is_file():
        pytest.skip(f"no picture at {path}")
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def frames(path: Path, wanted: list[int]) -> dict[int, np.ndarray]:
    if not path.is_file():
        pytest.skip(f"no clip at {path}")
    capture, out = cv2.VideoCapture(str(path)), {}
    for i in range(max(wanted) + 1):
        assert capture.grab(), f"{path.name} ends before frame {i}"
        if i in wanted:
            out[i] = np.ascontiguousarray(capture.retrieve()[1][..., ::-1])
    capture.release()
    return out


@pytest.fixture(scope="module")
def blazepose() -> Iterator[PoseDetector]:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: pip install 'hmr_prob_ros[mediapipe]'")
    detector = make_detector("mediapipe", tracking=False)
    yield detector
    detector.close()


@pytest.fixture(scope="module")
def top_down(test_data: Path) -> Iterator[PoseDetector]:
    pytest.importorskip("rtmlib", reason="rtmlib is not installed: pip install 'hmr_prob_ros[rtmlib]'")
    detector, pose = test_data / "models" / "yolox_nano.onnx", test_data / "models" / "tinypose_256x192.onnx"
    if not (detector.is_file() and pose.is_file()):
        pytest.skip(f"no weights in {detector.parent}")
    made = make_detector("rtmlib", detector=detector, pose=pose)
    yield made
    made.close()


def check_form(person: Person2D) -> None:
    assert person.keypoints.shape == (NUM_KEYPOINTS, 3)
    assert person.box.shape == (4,)
    assert 0 <= person.score <= 1
    assert person.id == -1
    assert ((person.keypoints[:, 2] >= 0) & (person.keypoints[:, 2] <= 1)).all()
    assert (person.box[2:] > person.box[:2]).all()


def test_astronaut(blazepose: PoseDetector, test_data: Path) -> None:
    (person,) = blazepose.detect(read(test_data / "real" / "astronaut.png"))
    check_form(person)
    points = person.keypoints
    assert np.linalg.norm(points[INDEX["nose"], :2] - (220, 125)) < 15, "the nose stands at about (220, 125)"
    assert points[INDEX["left_shoulder"], 0] > points[INDEX["right_shoulder"], 0], "she faces the camera"
    # The legs are out of the picture: guessed below its border, and known to be a guess.
    for name in ("left_knee", "right_knee", "left_ankle", "right_ankle"):
        assert points[INDEX[name], 1] > 512
        assert points[INDEX[name], 2] < 0.4
    assert points[[INDEX["left_small_toe"], INDEX["right_small_toe"]], 2].tolist() == [0, 0]
    assert (points[: INDEX["left_elbow"], 2] > 0.8).all(), "face and shoulders are in full view"


def test_empty_room_and_person(test_data: Path) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    empty = [*range(0, 61, 12), *range(200, 226, 8), *range(464, 501, 12)]
    present = [*range(80, 182, 20), *range(245, 440, 30), *range(530, 600, 20)]
    detector = make_detector("mediapipe")
    clip = frames(test_data / "real" / "one-by-one-person-detection_60s.mp4", sorted(empty + present))
    last = 0
    for index, image in clip.items():
        if index - last > 20:
            detector.reset()
        people = detector.detect(image)
        assert len(people) == int(index in present), f"frame {index}: {len(people)} people"
        for person in people:
            check_form(person)
            sure = person.keypoints[person.keypoints[:, 2] > 0.5, :2]
            assert ((sure >= person.box[:2]) & (sure <= person.box[2:])).all()
            # The people walk about the table in the middle and are some 330 pixels tall.
            assert 250 < person.box[:2].mean() + person.box[2:].mean() < 900
            assert 200 < person.box[3] - person.box[1] <= 432
        last = index
    detector.close()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 500), (1920, 1080), (1920, 400)])
def test_search_windows_cover_the_picture(size: tuple[int, int]) -> None:
    from hmr_prob_ros.detectors.mediapipe import search_windows

    covered = np.zeros(size[::-1], dtype=bool)
    for x, y, width, height in search_windows(*size):
        assert min(x, y) >= 0
        assert x + width <= size[0]
        assert y + height <= size[1]
        covered[y : y + height, x : x + width] = True
    assert covered.all()


def test_small_person_is_found_and_followed(test_data: Path) -> None:
    """A person a sixth as tall as the picture, too small to be seen in the whole of it, walks from side to side."""
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    frame = frames(test_data / "real" / "one-by-one-person-detection_60s.mp4", [300])[300]
    figure = cv2.resize(frame[20:380, 360:570], (70, 120), interpolation=cv2.INTER_AREA)
    single = make_detector("mediapipe", tracking=False)
    detector, blind = make_detector("mediapipe"), make_detector("mediapipe", search=False)
    missed = 0
    for step in range(28):
        picture = np.full((720, 1280, 3), 190, dtype=np.uint8)
        left = 500 + 14 * step
        picture[300:420, left : left + 70] = figure
        people = detector.detect(picture)
        missed += len(people) == 0
        if step == 0:
            assert blind.detect(picture) == []
            (alone,) = single.detect(picture)
            people.append(alone)
        for person in people:
            hips = person.keypoints[[INDEX["left_hip"], INDEX["right_hip"]], :2].mean(0)
            assert left < hips[0] < left + 70
            assert 300 < hips[1] < 420
    assert missed <= 14, "about one round of the windows, then the person is followed"
    for made in (single, detector, blind):
        made.close()


@pytest.mark.parametrize("name", ["blazepose", "top_down"])
def test_mirrored_picture_swaps_sides(name: str, request: pytest.FixtureRequest, test_data: Path) -> None:
    detector: PoseDetector = request.getfixturevalue(name)
    picture = read(test_data / "real" / "astronaut.png")
    (person,) = detector.detect(picture)
    (mirrored,) = detector.detect(np.ascontiguousarray(picture[:, ::-1]))
    back = mirrored.keypoints[FLIP]
    back[:, 0] = picture.shape[1] - back[:, 0]
    seen = np.minimum(person.keypoints[:, 2], back[:, 2]) > 0.6
    assert seen.sum() >= 6
    away = np.linalg.norm(person.keypoints[seen, :2] - back[seen, :2], axis=-1)
    assert away.max() < 25, "mirroring the picture must mirror the points and swap left and right"


def test_left_is_the_persons_left_from_behind(blazepose: PoseDetector, top_down: PoseDetector, test_data: Path) -> None:
    image = frames(test_data / "real" / "one-by-one-person-detection_60s.mp4", [300])[300]  # a man seen from behind
    for detector in (blazepose, top_down):
        (person,) = detector.detect(image)
        for part in ("shoulder", "elbow", "hip"):
            assert person.keypoints[INDEX[f"left_{part}"], 0] < person.keypoints[INDEX[f"right_{part}"], 0]


def test_several_people(top_down: PoseDetector, test_data: Path) -> None:
    clip = frames(test_data / "real" / "pose2sim_multi_cam01.mp4", [0, 30])
    for image in clip.values():
        people = top_down.detect(image)
        assert 2 <= len(people) <= 3, "two people in front, and a bystander at the edge"
        assert [p.score for p in people] == sorted((p.score for p in people), reverse=True)
        for person in people:
            check_form(person)
            assert (person.keypoints[17:, 2] == 0).all(), "TinyPose gives no feet"
        tall = [p for p in people if p.box[3] - p.box[1] > 600]
        assert len(tall) == 2
        middles = [p.keypoints[INDEX["left_hip"], :2] for p in tall]
        assert np.linalg.norm(middles[0] - middles[1]) > 200
    few = make_detector("rtmlib", detector=test_data / "models" / "yolox_nano.onnx", max_people=1,
                        pose=test_data / "models" / "tinypose_256x192.onnx")  # fmt: skip
    assert len(few.detect(clip[0])) == 1


def test_detection_at_a_lower_rate(top_down: PoseDetector, test_data: Path) -> None:
    """Every tenth frame, crops of the keypoints before in between: the same points, and somebody lost is seen to."""
    clip = frames(test_data / "real" / "pose2sim_multi_cam01.mp4", list(range(14)))
    clip = {i: np.ascontiguousarray(cv2.resize(image, (544, 960))) for i, image in clip.items()}
    models = test_data / "models"
    weights = {"detector": models / "yolox_nano.onnx", "pose": models / "tinypose_256x192.onnx"}
    seldom = make_detector("rtmlib", every=10, **weights)
    apart, detections = [], []
    for image in clip.values():
        always, now = top_down.detect(image), seldom.detect(image)
        detections.append(seldom.runs)  # type: ignore[attr-defined]
        for person in now:
            check_form(person)
            near = min(always, key=lambda other: float(np.abs(other.box - person.box).sum()))
            sure = np.minimum(person.keypoints[:17, 2], near.keypoints[:17, 2]) > 0.5
            away = np.linalg.norm(person.keypoints[:17, :2] - near.keypoints[:17, :2], axis=-1)[sure]
            apart.append(np.median(away) / (near.box[3] - near.box[1]))
        tall = [sum(p.box[3] - p.box[1] > 300 for p in people) for people in (always, now)]
        assert tall == [2, 2]
    assert detections[9] < 10
    assert detections[0] == 1
    assert np.median(apart) < 0.01
    blank = np.zeros_like(clip[0])
    before = seldom.runs  # type: ignore[attr-defined]
    assert seldom.detect(blank) == []
    assert seldom.runs == before + 1, "they are gone: look everywhere at once"  # type: ignore[attr-defined]
    assert seldom.detect(clip[0]) == []
    assert seldom.runs == before + 1, "newcomers wait for the next turn"  # type: ignore[attr-defined]
    seldom.reset()
    assert len(seldom.detect(clip[0])) >= 2
    seldom.close()


def test_pace_in_frames_and_in_seconds() -> None:
    frames_only, clock = Pace(3), Pace(3, seconds=0.25)
    assert [frames_only.due(100.0 * i) for i in range(7)] == [True, False, False, True, False, False, True]
    assert [clock.due(5 + 0.1 * i) for i in range(7)] == [True, False, False, True, False, False, True]
    assert clock.due(1.0), "time went back"
    assert not clock.due(1.1)
    clock.reset()
    assert clock.due(1.11)
    unstamped = Pace(1, seconds=0.1)
    assert [unstamped.due() for _ in range(7)] == [True, False, False, True, False, False, True], "30 frames a second"


def test_doubles_are_one_person() -> None:
    rng = np.random.default_rng(0)
    shape = rng.uniform(-1, 1, (23, 2)) * (40, 100)

    def at(x: float, score: float, seen: float = 0.9) -> Person2D:
        points = np.concatenate([shape + (x, 240) + rng.normal(0, 2, shape.shape), np.full((23, 1), seen)], 1)
        return Person2D(np.array([x - 45, 130, x + 45, 350]), score, points)

    first, double, beside, unseen = at(100, 0.9), at(105, 0.8), at(150, 0.7), at(100, 0.6, seen=0.0)
    assert without_doubles([first, double, beside, unseen]) == [first, beside, unseen]
    assert without_doubles([double, first]) == [double]
    assert without_doubles([]) == []


def test_nobody_in_a_top_down_picture(top_down: PoseDetector) -> None:
    assert top_down.detect(np.full((240, 320, 3), 127, dtype=np.uint8)) == []


def test_tinypose_decode(top_down: PoseDetector) -> None:
    """A heatmap decoded corner to corner comes back to crop = 4 * heatmap, by the arithmetic of both."""
    box = np.array([[100.0, 50.0, 220.0, 370.0]])
    centre, size = np.array([160.0, 210.0]), np.array([320 * 1.25 * 0.75, 320 * 1.25])
    cell = np.array([[[10.0, 20.0], [47.0, 63.0], [0.0, 0.0]]])
    as_rtmlib = cell / (np.array([48, 64]) - 1) * size + centre - size / 2
    plain = (4 * cell - np.array([96, 128])) / (256 / size[1]) + centre
    np.testing.assert_allclose(top_down._plain_decode(as_rtmlib, box), plain, atol=1e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["blazepose", "top_down"])
def test_bad_and_empty_pictures(name: str, request: pytest.FixtureRequest) -> None:
    detector: PoseDetector = request.getfixturevalue(name)
    assert isinstance(detector, PoseDetector)
    assert detector.detect(np.zeros((0, 0, 3), dtype=np.uint8)) == []
    assert detector.detect(np.zeros((48, 64, 3), dtype=np.uint8)) == []
    for bad in (
        np.zeros((48, 64), dtype=np.uint8),
        np.zeros((48, 64, 3), dtype=np.float32),
        np.zeros((4, 4, 4), np.uint8),
    ):
        with pytest.raises(DetectorError, match="uint8 RGB"):
            detector.detect(bad)


def test_threads_wait_for_each_other(blazepose: PoseDetector, test_data: Path) -> None:
    picture = read(test_data / "real" / "astronaut.png")
    expected = blazepose.detect(picture)[0].keypoints
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(blazepose.detect(picture)[0].keypoints)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for points in found:
        np.testing.assert_allclose(points, expected, atol=1e-3)


def test_closed_detector_says_so() -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    detector = make_detector("mediapipe")
    detector.close()
    detector.close()
    with pytest.raises(DetectorError, match="closed"):
        detector.detect(np.zeros((48, 64, 3), dtype=np.uint8))


def test_nothing_on_standard_error(test_data: Path) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    script = """
        import sys, cv2
        from hmr_prob_ros.detectors import make_detector
        picture = cv2.imread(sys.argv[1])[..., ::-1]
        detector = make_detector("mediapipe")
        assert len(detector.detect(picture)) == 1
        detector.reset()
        assert len(detector.detect(picture)) == 1
    """
    picture = test_data / "real" / "astronaut.png"
    command = [sys.executable, "-c", textwrap.dedent(script), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "libpng" not in line] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openpose", {}, "unknown detector 'openpose': choose one of blazepose, mediapipe, rtmlib"),
        ("mediapipe", {"threads": 3}, "its options are min_detection"),
        ("mediapipe", {"min_detection": 7}, "is a probability"),
        ("rtmlib", {"detector": "/nowhere/yolox.onnx"}, "no detector weights at /nowhere"),
        ("rtmlib", {"mode": "huge"}, "choose one of balanced, lightweight, performance"),
        ("rtmlib", {"every": 0}, "every is 0, but it must be a whole number from 1"),
    ],
)
def test_errors(name: str, options: dict[str, object], message: str) -> None:
    if name != "openpose":
        pytest.importorskip(name, reason=f"{name} is not installed")
    with pytest.raises(DetectorError, match=message):
        make_detector(name, **options)


def test_broken_weights(tmp_path: Path) -> None:
    pytest.importorskip("rtmlib", reason="rtmlib is not installed")
    broken = tmp_path / "yolox.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(DetectorError, match="could not load its weights"):
        make_detector("rtmlib", detector=broken, pose=broken)


@pytest.mark.parametrize("package", ["mediapipe", "rtmlib"])
def test_missing_package_names_the_command(package: str) -> None:
    script = f"""
        import sys
        sys.modules["{package}"] = None  # importing it now raises ImportError
        from hmr_prob_ros.detectors import DetectorError, make_detector
        try:
            make_detector("{package}")
        except DetectorError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert f"needs the package {package}" in done.stdout, done.stderr
    assert "pip install" in done.stdout


@pytest.mark.parametrize("count", sorted(LAYOUTS))
def test_layouts(count: int) -> None:
    """Each named point arrives at its name; the rest has confidence 0."""
    names = LAYOUTS[count]
    assert len(names) == count
    assert len(set(names)) == count
    rng = np.random.default_rng(count)
    points = np.concatenate([rng.uniform(0, 500, (2, count, 2)), rng.uniform(0.1, 1, (2, count, 1))], -1)
    keypoints = to_keypoints(points)
    assert keypoints.shape == (2, NUM_KEYPOINTS, 3)
    assert keypoints.dtype == np.float32
    for k, name in enumerate(KEYPOINT_NAMES):
        expected = points[:, names.index(name)] if name in names else np.zeros((2, 3))
        np.testing.assert_allclose(keypoints[:, k], expected, rtol=1e-6)
    assert all(name in names for name in KEYPOINT_NAMES[:17])


def test_layout_errors_and_repairs() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., k, 3\)"):
        to_keypoints(np.zeros((18, 3)))
    with pytest.raises(ValueError, match=r"\(\.\.\., k, 3\)"):
        to_keypoints(np.zeros((17, 2)))
    points = np.ones((17, 3))
    points[0], points[1, 2], points[2, 2] = np.nan, 3.0, -1.0
    keypoints = to_keypoints(points)
    assert keypoints[0].tolist() == [0, 0, 0]
    assert keypoints[1, 2] == 1
    assert keypoints[2, 2] == 0


def test_box_and_person_from_keypoints() -> None:
    points = np.zeros((17, 3))
    points[5:11] = [[100, 100, 0.9], [200, 100, 0.9], [90, 150, 0.8], [210, 150, 0.8], [80, 200, 0.7], [900, 200, 0.1]]
    person = person_from_keypoints(points, (640, 480), identity=7)
    np.testing.assert_allclose(person.box, [67, 90, 223, 210], err_msg="13 of 130 and 10 of 100 pixels on each side")
    assert person.id == 7
    assert person.score == pytest.approx(np.mean([0.9, 0.9, 0.8, 0.8, 0.7])), "the wrist lies outside the picture"
    assert person_from_keypoints(np.zeros((17, 3)), (640, 480)).score == 0
    assert box_around(np.zeros((23, 3)), (640, 480)).tolist() == [0, 0, 0, 0]
    clipped = box_around(to_keypoints(points - [150, 0, 0]), (640, 480))
    assert clipped[0] == 0
