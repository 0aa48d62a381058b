"""The set file: round trip, defaults of what is optional, and what is said about a broken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr_prob_ros.setfile import PoseSet, SetError


def values(count: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "keypoints": rng.random((count, 23, 3)).astype(np.float32),
        "intrinsics": np.tile(np.float32([500, 510, 320, 240]), (count, 1)),
        "image_size": np.tile([640, 480], (count, 1)),
        "joints": rng.random((count, 24, 3)).astype(np.float32),
        "keypoints3d": rng.random((count, 23, 3)).astype(np.float32),
        "visible": rng.random((count, 24)) > 0.5,
        "take": np.array([f"take_{i}" for i in range(count)]),
        "rotations": np.tile(np.eye(3, dtype=np.float32), (count, 24, 1, 1)),
        "betas": np.zeros((count, 10), np.float32),
        "translation": np.ones((count, 3), np.float32),
        "body": "abc",
    }


def test_round_trip(tmp_path: Path) -> None:
    data = PoseSet(**values(), note="by hand")
    data.save(tmp_path / "set.npz")
    again = PoseSet.load(tmp_path / "set.npz")
    assert len(again) == 3
    assert (again.body, again.note) == ("abc", "by hand")
    for name, value in values().items():
        assert np.array_equal(getattr(again, name), value), name
    camera = again.camera(1)
    assert (camera.width, camera.height, camera.fx, camera.fy) == (640, 480, 500, 510)
    part = again[1:]
    assert len(part) == 2
    assert part.take[0] == "take_1"


def test_only_four_fields_are_needed(tmp_path: Path) -> None:
    given = values(2)
    joints = given["joints"].copy()
    joints[1, 22:] = np.nan
    np.savez(
        tmp_path / "own.npz",
        format="hmr_prob_ros/set",
        version=1,
        joints=joints,
        **{k: given[k] for k in ("keypoints", "intrinsics", "image_size")},
    )
    data = PoseSet.load(tmp_path / "own.npz")
    assert data.rotations is None
    assert np.isnan(data.keypoints3d).all()
    assert data.visible.sum() == 46  # unknown joints count as unseen
    assert data.body == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keypoints": np.zeros((3, 17, 3))}, "keypoints has shape"),
        ({"joints": np.zeros((2, 24, 3))}, "joints has shape"),
        ({"keypoints": np.full((3, 23, 3), np.nan)}, "confidence of 0"),
        ({"intrinsics": np.zeros((3, 4))}, "focal lengths above 0"),
        ({"joints": np.full((3, 24, 3), 3000.0)}, "metres, not millimetres"),
    ],
)
def test_wrong_values_are_named(change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(SetError, match=words):
        PoseSet(**{**values(), **change})


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="no set"):
        PoseSet.load(tmp_path / "nowhere.npz")
    PoseSet(**values()).save(tmp_path / "set.npz")
    whole = (tmp_path / "set.npz").read_bytes()
    for name, content in {"cut.npz": whole[: len(whole) // 2], "text.npz": b"no set at all", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SetError, match="not an evaluation set"):
            PoseSet.load(tmp_path / name)
    np.savez(tmp_path / "other.npz", poses=np.zeros(3))
    with pytest.raises(SetError, match="format"):
        PoseSet.load(tmp_path / "other.npz")
    np.savez(tmp_path / "newer.npz", format="hmr_prob_ros/set", version=9, keypoints=np.zeros(3))
    with pytest.raises(SetError, match="version 9"):
        PoseSet.load(tmp_path / "newer.npz")
    np.savez(tmp_path / "text.npz", format="hmr_prob_ros/set", version="one", keypoints=np.zeros(3))
    with pytest.raises(SetError, match="'one', no number: write 1"):
        PoseSet.load(tmp_path / "text.npz")
    np.savez(tmp_path / "lacking.npz", format="hmr_prob_ros/set", version=1, keypoints=np.zeros((1, 23, 3)))
    with pytest.raises(SetError, match="lacks intrinsics, image_size, joints"):
        PoseSet.load(tmp_path / "lacking.npz")
