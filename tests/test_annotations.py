"""Labelled people: what is checked when they are made, selection, pictures, and the ambiguous protocol."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import KEYPOINT_NAMES
from hmr_prob_ros.training.data.annotations import (
    AnnotationError,
    Annotations,
    ambiguous,
    ambiguous_groups,
    cut_rectangles,
    hide_groups,
)
from hmr_prob_ros.training.data.views import BIGGS_GROUPS, BIGGS_SHARES, occlude

ARMS_HEAD, LEGS, HEAD, NOTHING = range(4)


def standing(body: Body, count: int) -> np.ndarray:
    """(K, 23, 3) labelled pixels of people in the rest pose before a camera, each somewhere else."""
    keypoints = body.keypoints(np.eye(3)[None].repeat(24, 0), np.zeros(10)) * (1, -1, -1) + (0, 0, 4.0)
    pixels = keypoints[:, :2] / keypoints[:, 2:] * 800.0
    shift = np.random.default_rng(0).uniform(300, 900, (count, 1, 2))
    return np.concatenate((pixels + shift, np.ones((count, 23, 1))), axis=2)


def people(shape: Body, count: int = 6, /, **values: object) -> Annotations:
    keypoints = standing(shape, count)
    low, high = keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)
    base = {
        "name": "some.npz",
        "image": np.array([f"a/{k // 2}.png" for k in range(count)]),
        "centre": (low + high) / 2,
        "size": 1.2 * (high - low).max(axis=1),
        "keypoints": keypoints,
    }
    return Annotations(**(base | values))


def test_what_is_not_given_is_unknown(body: Body) -> None:
    some = people(body)
    for name in ("has_pose", "has_betas", "has_joints", "has_translation"):
        assert not getattr(some, name).any()
    assert np.isnan(some.intrinsics).all()
    np.testing.assert_array_equal(some.rotations, np.broadcast_to(np.eye(3), (6, 24, 3, 3)))
    assert some.take.tolist() == some.image.tolist()
    assert "6 people in 3 pictures" in some.summary()
    assert some.camera(0, 640, 480).guessed


def test_given_values_are_known_and_flags_win_over_values(body: Body) -> None:
    betas = np.ones((6, 10))
    betas[2] = np.nan
    known = np.array([True, True, False, True, False, True])
    some = people(body, betas=betas, has_betas=known, translation=np.ones((6, 3)), body="smpl")
    np.testing.assert_array_equal(some.betas, np.repeat(known[:, None], 10, axis=1))
    assert some.has_translation.all()
    assert some.betas.dtype == np.float32
    keypoints = np.array(some.keypoints)
    keypoints[0, 3] = (np.nan, 5, 0)
    assert (people(body, keypoints=keypoints).keypoints[0, 3] == 0).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": np.array([], dtype=str)}, r"some\.npz: holds nobody: give"),
        ({"size": np.zeros(6)}, "size of person 0 is 0.0: give the side"),
        ({"size": np.ones(5)}, r"size is \(5,\), not \(6,\)"),
        ({"size": None}, "size is missing: give"),
        ({"centre": np.full((6, 2), np.inf)}, "centre of person 0 .*not finite"),
        ({"betas": np.full((6, 10), np.nan)}, r"betas of person 0 \(a/0\.png\) is not finite: set has_betas to False"),
        ({"betas": np.ones((6, 11))}, r"betas is \(6, 11\), not \(6, 10\)"),
        ({"joints": np.full((6, 24, 3), np.nan)}, "joints of person 0 .*set has_joints to False"),
        ({"joints": np.full((6, 24, 3), 900.0)}, "joints reach 900 m: give metres"),
        ({"translation": np.full((6, 3), 4000.0)}, "translation reach 4000 m: give metres"),
        ({"rotations": np.zeros((6, 24, 3, 3))}, "rotations of person 0, joint 0, are no rotation matrix"),
        ({"rotations": -np.eye(3)[None, None].repeat(24, 1).repeat(6, 0)}, "no rotation matrix: set has_pose"),
        ({"keypoints": np.full((6, 23, 3), 0.5)}, "confidences other than 0 and 1"),
        ({"keypoints": np.full((6, 23, 3), np.nan)}, "confidences other than 0 and 1"),
        ({"keypoints": np.ones((6, 17, 3))}, r"keypoints is \(6, 17, 3\)"),
        ({"intrinsics": np.tile((500, 500, np.nan, 240), (6, 1))}, "intrinsics of person 0 .*four NaN"),
        ({"intrinsics": np.tile((-1.0, 500, 320, 240), (6, 1))}, "intrinsics of person 0"),
        ({"body": "ghum"}, "body 'ghum' is not one of"),
        ({"betas": [["x"] * 10] * 6}, "betas is not of type float32"),
    ],
)
def test_wrong_values_are_refused(body: Body, values: dict, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        people(body, **values)


def test_selection_and_concatenation(body: Body) -> None:
    some = people(body, betas=np.arange(60.0).reshape(6, 10), body="smpl")
    assert len(some[2]) == len(some[-1]) == 1
    np.testing.assert_array_equal(some[-1].betas, some.betas[5:])
    mask = np.array([0, 1, 0, 1, 1, 0], bool)
    both = Annotations.concatenate([some[mask], some[~mask]])
    assert both.name == "some.npz"
    assert both.body == "smpl"
    order = np.concatenate((np.flatnonzero(mask), np.flatnonzero(~mask)))
    for name in ("image", "centre", "betas", "has_betas", "keypoints"):
        np.testing.assert_array_equal(getattr(both, name), getattr(some, name)[order])
    with pytest.raises(AnnotationError, match="holds nobody"):
        some[np.zeros(6, bool)]
    with pytest.raises(AnnotationError, match="holds nobody"):
        Annotations.concatenate([])
    other = people(body, betas=np.zeros((6, 10)), body="smplx")
    with pytest.raises(AnnotationError, match=r"different bodies \(smpl, smplx\): make shards"):
        Annotations.concatenate([some, other])
    assert Annotations.concatenate([people(body), other]).body == "smplx"


def test_pictures_are_found_turned_and_missed_by_name(body: Body, tmp_path: Path) -> None:
    upright = np.zeros((40, 30, 3), np.uint8)
    upright[7, 21] = (10, 20, 200)  # BGR
    (tmp_path / "a").mkdir()
    for number, stored in enumerate((upright, cv2.rotate(upright, cv2.ROTATE_90_COUNTERCLOCKWISE), upright)):
        cv2.imwrite(str(tmp_path / "a" / f"{number}.png"), stored)
    some = people(body, quarter_turns=[0, 0, 1, 1, 1, 1])
    some.check_images(tmp_path)
    for row in (0, 2, 4):  # stored as it is, lying, and upright already
        image = some.load_image(row, tmp_path)
        assert image.shape == (40, 30, 3)
        assert image[7, 21].tolist() == [200, 20, 10]
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(AnnotationError, match=r"some\.npz: 1 of 3 images are missing below .* first a/1\.png: give"):
        some.check_images(tmp_path)
    with pytest.raises(AnnotationError, match=r"image a/1\.png is missing below"):
        some.load_image(2, tmp_path)
    cv2.imwrite(str(tmp_path / "a" / "1.jpg"), upright)  # repacked
    some.check_images(tmp_path)
    assert some.load_image(2, tmp_path).shape == (40, 30, 3)
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match=r"a/0\.png is not an image"):
        some.load_image(0, tmp_path)


def test_groups_have_the_papers_shares_and_depend_on_the_person_alone(body: Body) -> None:
    many = people(body, 6000)
    groups = ambiguous_groups(many, seed=3)
    share = np.bincount(groups, minlength=4) / len(groups)
    np.testing.assert_allclose(share, BIGGS_SHARES, atol=4 * np.sqrt(0.3 * 0.7 / 6000))
    rows = np.array([4000, 17, 4001])  # 4000 and 4001 share a picture
    np.testing.assert_array_equal(ambiguous_groups(many[rows], seed=3), groups[rows])
    other = ambiguous_groups(many, seed=4)
    agree = (other == groups).mean()
    assert agree == pytest.approx(sum(p * p for p in BIGGS_SHARES), abs=0.03)
    pairs = groups.reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).mean() == pytest.approx(0.28, abs=0.04)  # people of one picture are apart


def test_hidden_points_are_those_of_the_synthetic_protocol(body: Body) -> None:
    keypoints = standing(body, 40)
    state = torch.zeros(40, 23, dtype=torch.long)
    _, removed = occlude(torch.as_tensor(keypoints[..., :2]), state, "biggs", torch.Generator().manual_seed(0))
    removed = removed.numpy()
    seen = {tuple(row) for row in removed}
    assert len(seen) == 4
    for group in range(4):
        left = hide_groups(keypoints, np.full(40, group))
        assert tuple(left[0, :, 2] == 0) in seen
        assert (left[left[..., 2] == 0] == 0).all()
        np.testing.assert_array_equal(left[..., 2] > 0, [[n not in BIGGS_GROUPS[group] for n in KEYPOINT_NAMES]] * 40)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_cut_keeps_what_is_left_and_drops_what_is_hidden(body: Body, turn: int) -> None:
    """Head and legs lie beyond one side of the rest, whichever way the person lies."""
    keypoints = standing(body, 5)
    rotation = np.array([[0, -1], [1, 0]])
    for _ in range(turn):
        keypoints[..., :2] = keypoints[..., :2] @ rotation.T
    for group in (LEGS, HEAD):
        cut = cut_rectangles(keypoints, np.full(5, group))
        inside = ((keypoints[..., :2] > cut[:, None, :2]) & (keypoints[..., :2] < cut[:, None, 2:])).all(axis=-1)
        np.testing.assert_array_equal(inside, hide_groups(keypoints, np.full(5, group))[..., 2] > 0)
    cut = cut_rectangles(keypoints, np.full(5, ARMS_HEAD))
    hips = [KEYPOINT_NAMES.index(f"{s}_hip") for s in ("left", "right")]
    legs = [k for k, name in enumerate(KEYPOINT_NAMES) if name in BIGGS_GROUPS[LEGS]]
    kept = keypoints[:, hips + legs, :2]
    side = (kept.max(axis=1) - kept.min(axis=1)).max(axis=1)
    np.testing.assert_allclose(cut[:, 2:] - kept.max(axis=1), np.repeat(0.1 * side[:, None], 2, 1), rtol=1e-2)
    assert np.isinf(cut_rectangles(keypoints, np.full(5, NOTHING))).all()


def test_hips_without_a_label_still_bound_the_cut(body: Body) -> None:
    """Bodies' own joints give no COCO hips; a cut above the legs must not run along the knees."""
    keypoints = standing(body, 1)
    true = cut_rectangles(keypoints, np.array([ARMS_HEAD]))
    for side in ("left", "right"):
        keypoints[:, KEYPOINT_NAMES.index(f"{side}_hip")] = 0
    height = keypoints[0, :, 1].max() - keypoints[0, 0, 1]
    np.testing.assert_allclose(cut_rectangles(keypoints, np.array([ARMS_HEAD]))[0], true[0], atol=0.05 * height)


def test_ambiguous_people_are_cropped_anew(body: Body) -> None:
    some = people(body, 200, betas=np.ones((200, 10)), body="smpl")
    hidden, cut = ambiguous(some, seed=1)
    again, cut_again = ambiguous(some[50:100], seed=1)
    np.testing.assert_array_equal(again.keypoints, hidden.keypoints[50:100])
    np.testing.assert_array_equal(cut_again, cut[50:100])
    groups = ambiguous_groups(some, seed=1)
    np.testing.assert_array_equal(hidden.keypoints, hide_groups(some.keypoints, groups).astype(np.float32))
    np.testing.assert_array_equal(hidden.betas, some.betas)
    finite = np.isfinite(cut).all(axis=1)
    np.testing.assert_array_equal(finite, groups != NOTHING)
    np.testing.assert_array_equal(hidden.centre[~finite], some.centre[~finite])
    np.testing.assert_array_equal(hidden.size[~finite], some.size[~finite])
    # The new square has the cut within it, touches it on both ends of its longer side, and is smaller.
    half = hidden.size[finite, None] / 2
    centre = hidden.centre[finite]
    assert (cut[finite, :2] >= centre - half - 1e-2).all()
    assert (cut[finite, 2:] <= centre + half + 1e-2).all()
    longest = (cut[finite, 2:] - cut[finite, :2]).max(axis=1)
    np.testing.assert_allclose(longest, hidden.size[finite], rtol=1e-5)
    assert (hidden.size[finite] < some.size[finite] * 1.001).all()


def test_people_without_labels_are_not_touched(body: Body) -> None:
    some = people(body, keypoints=None)
    hidden, cut = ambiguous(some, seed=0)
    assert np.isinf(cut).all()
    np.testing.assert_array_equal(hidden.size, some.size)
    face = people(body, keypoints=np.where(np.arange(23)[:, None] < 5, standing(body, 6), 0))
    hidden, cut = ambiguous(face, seed=0)  # only the face is labelled: hiding it would leave nothing to crop round
    np.testing.assert_array_equal(hidden.keypoints[np.isinf(cut).all(1)], face.keypoints[np.isinf(cut).all(1)])
    assert (hidden.keypoints[..., 2] > 0).any(axis=1).all()
