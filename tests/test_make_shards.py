"""Making shards: equal settings give equal files, killed runs go on, and pictures, masks and points agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'hmr_prob_ros[train]'")
pytest.importorskip("moderngl", reason="moderngl is not installed: pip install 'hmr_prob_ros[train]'")

import torch

from hmr_prob_ros.body import Body
from hmr_prob_ros.commands import CommandError
from hmr_prob_ros.detectors.keypoints import LAYOUTS
from hmr_prob_ros.skeleton import KEYPOINT_NAMES
from hmr_prob_ros.training.data.annotated import AnnotatedPeople
from hmr_prob_ros.training.data.annotations import AnnotationError, Annotations
from hmr_prob_ros.training.data.examples import batch_condition
from hmr_prob_ros.training.data.heatmap_detectors import make_heatmap_detector
from hmr_prob_ros.training.data.heatmaps import SAMPLES
from hmr_prob_ros.training.data.noise import OUTSIDE, VISIBLE
from hmr_prob_ros.training.data.render import Renderer, RenderError
from hmr_prob_ros.training.data.rendered import KINDS, RENDER_SIZE, SHARES, People, choose_kind, render_person
from hmr_prob_ros.training.data.shards import Shard, read_examples
from hmr_prob_ros.training.data.sights import Sight, observe
from hmr_prob_ros.training.make_shards import main, shard_name

ROOT = Path(__file__).resolve().parents[1]


def poses(count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.15, size=(count, 24, 3)).astype(np.float32)
    pose[:, 0] = 0
    pose[:, 16, 2], pose[:, 17, 2] = -1.1, 1.1
    return pose


@pytest.fixture(scope="module")
def weights(test_data: Path) -> Path:
    path = test_data / "models" / "tinypose_256x192.onnx"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    try:
        Renderer(16, 16).close()
    except RenderError as error:
        pytest.skip(str(error))
    return path


@pytest.fixture(scope="module")
def command(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that render seven people into three shards."""
    pool = tmp_path_factory.mktemp("pool") / "pool.npz"
    np.savez(pool, pose=poses(), kind=np.zeros(12, np.uint8), key="")
    return ["--pool", str(pool), "--weights", str(weights), "--count", "7", "--shard-size", "3", "--quiet", "--out"]


@pytest.fixture(scope="module")
def shards(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    assert main([*command, str(folder), "--sheet", str(folder / "sheets" / "sheet.png")]) == 0
    return folder


@pytest.fixture(scope="module")
def sights(body: Body) -> list[tuple[str, Sight]]:
    """Two rendered people of each kind."""
    try:
        renderer = Renderer(RENDER_SIZE, RENDER_SIZE, body)
    except RenderError as error:
        pytest.skip(str(error))
    people = People(poses(), np.zeros(12, int), ["take"], company=0.0)
    made = []
    with renderer:
        for kind in (*KINDS, ""):
            seed, found = 0, 0
            while found < 2:
                sight = render_person(np.random.default_rng([7, seed]), people, renderer, kind)
                seed, found = seed + 1, found + (sight is not None)
                if sight is not None:
                    made.append((kind, sight))
    return made


def test_shapes_and_condition_of_rendered_shards(shards: Path, body: Body) -> None:
    examples = read_examples(shards, images=True, body=body.hash)
    assert len(examples) == 7
    assert examples.image is not None
    assert examples.image.shape == (7, 3, 224, 224)
    assert examples.heatmap is not None
    assert examples.heatmap.shape == (7, SAMPLES, 23, 2)
    assert examples.mask is not None
    assert examples.mask.shape == (7, 64, 64)
    assert examples.heatmap_peak is not None
    assert (examples.heatmap_peak[:, 17:] == 0).all()
    keypoints, box, _ = batch_condition(examples.detected, examples.intrinsics, examples.size)
    torch.testing.assert_close(keypoints, examples.keypoints, atol=1e-4, rtol=0)
    torch.testing.assert_close(box, examples.box, atol=1e-5, rtol=0)
    joints = body.joints(examples.rotations.numpy(), examples.betas.numpy(), examples.translation.numpy())
    np.testing.assert_allclose(joints, examples.joints, atol=1e-4)
    surface = body.keypoints(examples.rotations.numpy(), examples.betas.numpy(), examples.translation.numpy())
    np.testing.assert_allclose(surface, examples.keypoints3d, atol=1e-4)
    sheet = cv2.imread(str(shards / "sheets" / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[0] > 200


def test_rendered_mask_is_the_projected_mesh(sights: list[tuple[str, Sight]], body: Body) -> None:
    """Against the mesh filled by OpenCV: an independent projection, from the true pose and the picture's camera."""
    for kind, sight in sights:
        if sight.mask is None or kind == "objects":
            continue
        truth = sight.truth
        vertices = body.vertices(truth["rotations"], truth["betas"], truth["translation"])
        pixels = sight.local(sight.camera.project(np.asarray(vertices)))
        filled = np.zeros(sight.mask.shape, np.uint8)
        for triangle in np.rint((pixels[body.faces] - 0.5) * 16).astype(np.int32):
            cv2.fillConvexPoly(filled, triangle, 1, shift=4)
        middle = (np.arange(RENDER_SIZE) + 0.5) / sight.scale
        inside_x, inside_y = ((middle + o >= 0) & (middle + o < s) for o, s in
                              zip(sight.origin, (sight.camera.width, sight.camera.height), strict=True))  # fmt: skip
        filled = (filled > 0) & inside_y[:, None] & inside_x
        overlap = (sight.mask & filled).sum() / (sight.mask | filled).sum()
        assert overlap > 0.85, kind  # clothes and hair stand off the skin
        assert not sight.image[~(inside_y[:, None] & inside_x)].any()


def test_visible_keypoints_lie_in_the_mask(sights: list[tuple[str, Sight]]) -> None:
    held, total = 0, 0
    for _, sight in sights:
        state = sight.truth["state"]
        pixels = sight.camera.project(sight.truth["keypoints3d"])
        outside = ((pixels < 0) | (pixels >= (sight.camera.width, sight.camera.height))).any(axis=1)
        np.testing.assert_array_equal(state == OUTSIDE, outside)
        x, y = sight.local(pixels[state == VISIBLE]).astype(int).T
        assert sight.mask is not None
        grown = cv2.dilate(sight.mask.astype(np.uint8), np.ones((5, 5)))
        held, total = held + int(grown[y, x].sum()), total + len(x)
    assert total > 60
    assert held > 0.95 * total


def test_kinds_hide_what_they_say(sights: list[tuple[str, Sight]]) -> None:
    by_kind: dict[str, list[Sight]] = {}
    for kind, sight in sights:
        by_kind.setdefault(kind, []).append(sight)
    assert all((s.truth["state"] != OUTSIDE).all() and not s.occluded for s in by_kind["none"])
    assert all((s.truth["state"] == OUTSIDE).any() for s in by_kind["truncation"])
    assert not any(s.occluded for kind, s in sights if kind != "objects")
    drawn = [choose_kind("mixed", np.random.default_rng(i)) for i in range(4000)]
    for kind, share in SHARES.items():
        assert drawn.count(kind) / 4000 == pytest.approx(share, abs=0.03)


def test_equal_settings_give_equal_files_in_any_order(shards: Path, command: list[str], tmp_path: Path) -> None:
    assert main([*command, str(tmp_path), "--shards", "2"]) == 0
    assert main([*command, str(tmp_path), "--shards", "0-1"]) == 0
    for number in range(3):
        assert (tmp_path / shard_name(number)).read_bytes() == (shards / shard_name(number)).read_bytes()
    first = np.load(shards / shard_name(0))["joints"]
    assert not np.allclose(first[:1], np.load(shards / shard_name(1))["joints"][:1])


def test_a_killed_run_goes_on(shards: Path, command: list[str], tmp_path: Path) -> None:
    script = "import sys; from hmr_prob_ros.training.make_shards import main; main(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-c", script, *command, str(tmp_path)], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (tmp_path / shard_name(0)).exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    _, errors = running.communicate()
    assert (tmp_path / shard_name(0)).exists(), errors.decode()[-2000:]
    (tmp_path / shard_name(1)).write_bytes(b"PK half a file")
    made = (tmp_path / shard_name(0)).stat().st_mtime_ns
    assert main([*command, str(tmp_path)]) == 0
    assert (tmp_path / shard_name(0)).stat().st_mtime_ns == made
    for number in range(3):
        assert (tmp_path / shard_name(number)).read_bytes() == (shards / shard_name(number)).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--weights", "none.onnx"], "no weights of tinypose"),
        (["--detector", "mediapipe"], "points are regressed"),
        (["--shards", "2-5"], "there are shards 0 to 2"),
        (["--body", "none.npz"], "none.npz"),
    ],
)
def test_command_errors(command: list[str], tmp_path: Path, arguments: list[str], text: str) -> None:
    with pytest.raises(CommandError, match=text):
        main([*command, str(tmp_path), *arguments])
    with pytest.raises(CommandError, match="needs --images"):
        main(["--annotations", "a.npz", "--out", str(tmp_path)])


@pytest.fixture(scope="module")
def dataset(sights: list[tuple[str, Sight]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Annotations, Path]:
    """A small labelled data set of rendered pictures, with masks."""
    folder = tmp_path_factory.mktemp("dataset")
    chosen = [sight for kind, sight in sights if kind == "none"]
    columns: dict[str, list[Any]] = {}
    for i, sight in enumerate(chosen):
        camera = sight.camera
        u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        at = sight.local(np.stack([u, v], axis=-1) + 0.5).astype(np.float32) - 0.5
        whole = cv2.remap(sight.image, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        mask = cv2.remap(sight.mask.astype(np.uint8), at[..., 0], at[..., 1], cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"p{i}.jpg"), whole[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
        cv2.imwrite(str(folder / f"p{i}.png"), mask * 255)
        truth = sight.truth
        pixels = camera.project(truth["keypoints3d"])
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        for name, value in {
            "image": f"p{i}.jpg",
            "centre": (low + high) / 2,
            "size": 1.2 * (high - low).max(),
            "intrinsics": [camera.fx, camera.fy, camera.cx, camera.cy],
            "keypoints": np.column_stack([pixels, np.ones(23)]),
            "rotations": truth["rotations"],
            "betas": truth["betas"],
            "translation": truth["translation"],
            "joints": truth["joints"],
        }.items():
            columns.setdefault(name, []).append(value)
    return Annotations(name="rendered", body="smpl", **{k: np.stack(v) for k, v in columns.items()}), folder


def test_annotated_people(dataset: tuple[Annotations, Path], weights: Path, body: Body) -> None:
    annotations, folder = dataset
    people = AnnotatedPeople(annotations, folder, body, folder)
    detector = make_heatmap_detector("tinypose", weights)
    rows = [observe(people.sight(i), detector, np.random.default_rng(i)) for i in range(len(people))]  # type: ignore[arg-type]
    examples = Shard.from_rows([r for r in rows if r is not None], body.hash).examples(images=True)
    assert len(examples) == len(people)
    # The free body has other shapes, so these are not known; joints, pose and place are.
    assert examples.has_betas is not None
    assert not examples.has_betas.any()
    assert examples.has_joints is not None
    assert examples.has_joints.all()
    assert examples.has_translation is not None
    assert examples.has_translation.all()
    np.testing.assert_allclose(examples.joints, annotations.joints, atol=1e-5)
    assert examples.true_keypoints is not None
    assert (examples.true_keypoints[..., 2] == 1).all()
    joints = torch.as_tensor(annotations.joints[:, 15])
    head = (joints[:, :2] / joints[:, 2:] - examples.box[:, :2]) / (examples.box[:, 2:] / 2)
    nose = examples.true_keypoints[:, 0, :2]
    assert (head - nose).norm(dim=-1).max() < 0.4  # in one frame
    error = (examples.keypoints[:, :17, :2] - examples.true_keypoints[:, :17, :2]).norm(dim=-1)
    assert error.median() < 0.12
    at = ((examples.true_keypoints[:, 5:17, :2] + 1) * 32).long().clamp(0, 63)
    assert examples.mask is not None
    held = torch.stack([examples.mask[i, p[:, 1], p[:, 0]].float().mean() for i, p in enumerate(at)])
    assert held.mean() > 0.9

    shaped = AnnotatedPeople(annotations, folder, _renamed(body), folder).sight(0)
    assert shaped is not None
    assert shaped.truth["has_betas"]
    np.testing.assert_allclose(shaped.truth["betas"], annotations.betas[0])
    surface = body.keypoints(annotations.rotations[0], annotations.betas[0], annotations.translation[0])
    np.testing.assert_allclose(shaped.truth["keypoints3d"], surface, atol=1e-5)


def _renamed(body: Body) -> Body:
    import copy

    other = copy.copy(body)
    other.name = "smpl"
    return other


def test_annotated_people_cut_by_the_ambiguous_protocol(dataset: tuple[Annotations, Path], body: Body) -> None:
    annotations, folder = dataset
    seed = next(
        s for s in range(50) if np.isfinite(AnnotatedPeople(annotations, folder, body, hide=True, seed=s).cut[0]).all()
    )
    people = AnnotatedPeople(annotations, folder, body, hide=True, seed=seed)
    sight, whole = people.sight(0), AnnotatedPeople(annotations, folder, body).sight(0)
    assert sight is not None
    assert whole is not None
    assert sight.camera.width < whole.camera.width or sight.camera.height < whole.camera.height
    ray = np.array([0.1, -0.05, 1.0])
    x0, y0 = np.round(np.clip(people.cut[0, :2], 0, None))
    np.testing.assert_allclose(sight.camera.project(ray) + (x0, y0), whole.camera.project(ray), atol=1e-3)
    left = sight.truth["true_keypoints"][:, 2] > 0
    assert 4 <= left.sum() < 23
    np.testing.assert_allclose(sight.truth["true_keypoints"][left, :2] + (x0, y0), annotations.keypoints[0, left, :2])
    np.testing.assert_allclose(sight.truth["joints"], annotations.joints[0])


def test_annotated_pictures_must_be_there(dataset: tuple[Annotations, Path], body: Body, tmp_path: Path) -> None:
    annotations, folder = dataset
    with pytest.raises(AnnotationError, match="images are missing"):
        AnnotatedPeople(annotations, tmp_path, body)
    people = AnnotatedPeople(annotations, folder, body, tmp_path)
    with pytest.raises(AnnotationError, match=r"mask .* is missing or no image: give a \.png"):
        people.sight(0)


def test_command_on_a_data_set(dataset: tuple[Annotations, Path], weights: Path, tmp_path: Path) -> None:
    """A file of SPIN's form, which knows neither camera nor place: pose and labels in the picture are what is left."""
    annotations, folder = dataset
    openpose = np.zeros((len(annotations), 25, 3))
    where = [LAYOUTS[25].index(name) for name in KEYPOINT_NAMES]
    openpose[:, where] = annotations.keypoints
    pose = np.stack([[cv2.Rodrigues(r.astype(float))[0][:, 0] for r in person] for person in annotations.rotations])
    np.savez(
        tmp_path / "people.npz", imgname=annotations.image, center=annotations.centre, scale=annotations.size / 200,
        openpose=openpose, pose=pose.reshape(-1, 72), shape=annotations.betas,
    )  # fmt: skip
    arguments = ["--annotations", str(tmp_path / "people.npz"), "--images", str(folder), "--weights", str(weights)]
    for out, more in (("whole", []), ("cut", ["--occlusion", "biggs", "--no-images", "--seed", "4"])):
        assert main([*arguments, "--out", str(tmp_path / out), "--quiet", *more]) == 0
    examples = read_examples(tmp_path / "whole", images=True)
    assert len(examples) == len(annotations)
    assert examples.mask is None
    assert examples.has_pose is not None
    assert examples.has_pose.all()
    assert examples.has_translation is not None
    assert not examples.has_translation.any()
    assert examples.true_keypoints is not None
    error = (examples.keypoints[:, :17, :2] - examples.true_keypoints[:, :17, :2]).norm(dim=-1)
    assert error.median() < 0.12
    assert read_examples(tmp_path / "cut").image is None
    with pytest.raises(CommandError, match="the ambiguous protocol"):
        main([*arguments, "--out", str(tmp_path / "x"), "--occlusion", "objects"])
