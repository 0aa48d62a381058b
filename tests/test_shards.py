"""Shards: what is written is read again, readers share it without overlap, and crops lie where their points do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'hmr_prob_ros[train]'")
pytest.importorskip("moderngl", reason="moderngl is not installed: pip install 'hmr_prob_ros[train]'")

import torch

from hmr_prob_ros.camera import Camera
from hmr_prob_ros.training.data.examples import Examples
from hmr_prob_ros.training.data.heatmaps import SAMPLES, Detection
from hmr_prob_ros.training.data.shards import Shard, ShardError, read_examples, shard_paths
from hmr_prob_ros.training.data.sights import Sight, observe
from hmr_prob_ros.training.make_shards import Settings, make_shard


def row(rng: np.random.Generator, **more: Any) -> dict[str, Any]:
    """One example of random numbers."""
    return {
        "keypoints": rng.random((23, 3)), "box": rng.random(3), "rotations": np.tile(np.eye(3), (24, 1, 1)),
        "betas": rng.normal(size=10), "translation": rng.normal(size=3), "joints": rng.normal(size=(24, 3)),
        "keypoints3d": rng.normal(size=(23, 3)), "state": rng.integers(0, 4, 23), "detected": rng.random((23, 3)),
        "intrinsics": rng.random(4), "size": rng.random(2), "index": int(rng.integers(1000)), "take": "take", **more,
    }  # fmt: skip


def numbered(folder: Path, sizes: tuple[int, ...]) -> list[Path]:
    """Shards whose examples are numbered in ``index``."""
    rng, number = np.random.default_rng(0), 0
    paths = []
    for size in sizes:
        rows = [row(rng, index=number + i) for i in range(size)]
        number += size
        paths.append(folder / f"s{len(paths)}.npz")
        Shard.from_rows(rows, "body").save(paths[-1])
    return paths


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), (0, 0), 5)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    rows = [
        row(rng, heatmap=rng.normal(size=(5, 23, 2)), heatmap_peak=rng.random(23), mask=rng.random((9, 7)) < 0.5,
            occluded=np.bool_(i), true_keypoints=rng.random((23, 3)), has_pose=True, has_betas=False,
            has_joints=rng.random(24) < 0.5, has_translation=True, jpeg=jpeg)
        for i in range(4)
    ]  # fmt: skip
    shard = Shard.from_rows(rows, "hash", "note")
    shard.save(tmp_path / "a.npz")
    shard.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]  # nothing half written
    again = Shard.load(tmp_path / "a.npz")
    assert (again.body, again.note, len(again), again.take.tolist()) == ("hash", "note", 4, ["take"] * 4)
    for name, value in shard.fields.items():
        tolerance = 2e-3 if name == "heatmap" else 0
        if name != "take":
            np.testing.assert_allclose(again.fields[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    examples = again.examples(images=True)
    assert isinstance(examples, Examples)
    assert len(examples) == 4
    assert examples.image is not None
    assert examples.image.shape == (4, 3, 32, 32)
    difference = examples.image[0].permute(1, 2, 0).numpy() * 255 - picture
    assert np.abs(difference).mean() < 4  # RGB in, RGB out
    identity = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(4, 24)
    assert torch.equal(examples.pose6d, identity)
    assert again.examples(np.array([2])).index.tolist() == [rows[2]["index"]]
    assert again.examples().image is None


def _change(path: Path, **more: Any) -> None:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    for name, value in more.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"joints": None}, "lacks joints: delete it"),
        ({"extra": np.zeros(2)}, "unknown fields extra"),
        ({"joints": np.full((2, 24, 3), np.nan)}, "joints of example 0 holds NaN"),
        ({"joints": np.zeros((2, 23, 3))}, r"joints has shape \(2, 23, 3\)"),
        ({"state": np.full((2, 23), 9)}, "state holds values"),
        ({"keypoints": np.full((2, 23, 3), 1.5)}, r"confidence in keypoints is not in \[0, 1\]"),
        ({"keypoints": np.zeros((0, 23, 3))}, "no examples"),
        ({"format": "other"}, "is no shard"),
        ({"version": 99}, "version 99, this package reads 1"),
        ({"jpeg": np.zeros(5, np.uint8)}, "jpeg and jpeg_end do not fit"),
        ({"mask": np.zeros((2, 3), np.uint8), "mask_size": np.array([8, 8])}, "mask and mask_size do not fit"),
        ({"heatmap": np.zeros((2, 0, 23, 2))}, "heatmap has shape"),
    ],
)
def test_bad_shards_name_file_field_and_mend(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    (path,) = numbered(tmp_path, (2,))
    _change(path, **change)
    with pytest.raises(ShardError, match=text) as caught:
        Shard.load(path)
    assert str(path) in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    (path,) = numbered(tmp_path, (2,))
    with pytest.raises(ShardError, match="make it without --no-images"):
        read_examples(path, images=True)
    with pytest.raises(ShardError, match="make the shards again with that --body"):
        read_examples(path, body="another")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ShardError, match="truncated or no shard"):
        Shard.load(path)
    for missing in (tmp_path / "none.npz", tmp_path / "none"):
        with pytest.raises(ShardError, match="make-shards"):
            shard_paths(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="no shards"):
        shard_paths(tmp_path / "empty")
    with pytest.raises(ShardError, match="nobody was seen"):
        Shard.from_rows([], "body")
    rng = np.random.default_rng(0)
    rows = [row(rng, mask=np.ones((2, 2), bool)), row(rng)]
    with pytest.raises(ShardError, match="some examples lack mask"):
        Shard.from_rows(rows, "body")


class _Marker:
    """A detector that reports given pixels of the part of the picture that it is shown."""

    name = "marker"

    def __init__(self, points: np.ndarray) -> None:
        self.points = points

    def __call__(self, image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> Detection:
        sure = np.column_stack([self.points, np.ones(23)]).astype(np.float32)
        return Detection(sure, np.tile(self.points, (SAMPLES, 1, 1)), np.ones(23, np.float32))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_crop_picture_mask_and_points_lie_in_one_place(scale: float) -> None:
    """Spots drawn at the keypoints of a picture are found again at the keypoints of the crop and of the mask."""
    rng = np.random.default_rng(int(10 * scale))
    camera = Camera(800, 600, 500.0, 520.0, 390.0, 310.0)
    origin = np.array([130.5, 60.25])
    side = int(420 * scale)
    points = rng.uniform(0.25, 0.75, (23, 2)) * side
    image, mask = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    spot = points[7]
    y, x = np.mgrid[:side, :side] + 0.5
    near = np.hypot(x - spot[0], y - spot[1]) < 14 * scale
    image[near], mask[near] = 255, 1
    sight = Sight(image, origin, scale, camera, np.array([200.0, 100, 450, 400]), mask=mask > 0)
    made = observe(sight, _Marker(points), rng)
    assert made is not None
    np.testing.assert_allclose(made["detected"][:, :2], points / scale + origin, atol=1e-3)
    np.testing.assert_allclose(made["heatmap"][0], made["keypoints"][:, :2], atol=1e-4)
    expected = (made["keypoints"][7, :2] + 1) / 2
    picture = cv2.imdecode(np.frombuffer(made["jpeg"], np.uint8), cv2.IMREAD_GRAYSCALE).astype(float)
    for values in (picture * (picture > 60), made["mask"].astype(float)):
        v, u = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
        middle = np.array([(u * values).sum(), (v * values).sum()]) / values.sum() / len(values)
        np.testing.assert_allclose(middle, expected, atol=0.01)


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    settings = Settings("source", "tinypose", 0, True, 2)
    made = make_shard(tmp_path / "a.npz", 0, settings, "body", lambda n, r: row(rng))
    assert made is not None
    assert len(made) == 2
    assert make_shard(tmp_path / "a.npz", 0, settings, "body", lambda n, r: row(rng)) is None
    with pytest.raises(ShardError, match=r"made with other settings.*--out"):
        make_shard(tmp_path / "a.npz", 0, Settings("source", "tinypose", 1, True, 2), "body", lambda n, r: row(rng))
