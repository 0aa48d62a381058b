"""Motion capture: readers against known positions, retargeting, splits and the cache."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES
from hmr_prob_ros.training.data import mocap as mocap_module
from hmr_prob_ros.training.data.amass import read_amass
from hmr_prob_ros.training.data.archives import collect
from hmr_prob_ros.training.data.asfamc import parse_asf, read_amc
from hmr_prob_ros.training.data.limits import elbow_bend, knee_bend, mend, plausible
from hmr_prob_ros.training.data.mocap import Mocap, assign_splits, load_mocap
from hmr_prob_ros.training.data.retarget import Clip, MocapError, Motion, direction_error, resample, retarget
from hmr_prob_ros.training.data.rotations import axis_angle_to_matrix

pytest.importorskip("torch")
J = {name: k for k, name in enumerate(JOINT_NAMES)}


# Readers -------------------------------------------------------------------------------------------------------------

_SAMPLES = {
    "cmu_asfamc": ("asf_02_01", "asf_03_02"),
    "cmu_asfamc_styles": ("asf_09_06", "asf_142_sadwalk"),
    "cmu_bvh_dance": ("daz_salsa16", "daz_martial03"),
    "cmu_bvh_retarget": ("cc_002_01", "cc_007_01", "cc_001_01"),
    "cmu_expmap": ("exp_train_walking_1", "exp_test_soccer_1"),
    "deepmimic": ("dm_kick", "dm_roll", "dm_getup_faceup"),
    "amp": ("amp_walk", "amp_cartwheel"),
    "makehuman": ("mh_walk1", "mh_zombieWalk1", "mh_dance1"),
}


@pytest.fixture(scope="module")
def clips(test_data: Path) -> dict[str, Clip]:
    folder = test_data / "mocap"
    if not (folder / "index.json").is_file():
        pytest.skip(f"no motion capture in {folder}")
    wanted = {name for names in _SAMPLES.values() for name in names}
    items = collect([folder])
    return {item.name: item.read() for item in items if item.name in wanted}  # type: ignore[misc]


@pytest.mark.parametrize("archive", list(_SAMPLES))
def test_readers_find_the_known_positions(archive: str, clips: dict[str, Clip], test_data: Path):
    with np.load(test_data / "mocap" / "positions_30hz.npz") as known:
        ids, start, length, pos = list(known["ids"]), known["start"], known["length"], known["pos"]
    for name in _SAMPLES[archive]:
        k = ids.index(name)
        expected = pos[start[k] : start[k] + length[k]].astype(np.float64)
        got = clips[name].positions[:, :22].copy()
        got[..., [0, 2]] -= got[:, :1, [0, 2]]
        if archive == "makehuman":  # two of its takes have no height: compare with the pelvis at 0
            got, expected = got - got[:, :1], expected - expected[:, :1]
        assert got.shape == expected.shape
        both = np.isfinite(got) & np.isfinite(expected)
        assert both[:, [0, 1, 2, 4, 5, 7, 8, 16, 17, 18, 19, 20, 21]].all()
        assert np.abs(got - expected)[both].max() < 0.002


@pytest.mark.parametrize("name", [n for names in _SAMPLES.values() for n in names])
def test_retargeted_limbs_point_where_the_sources_do(name: str, clips: dict[str, Clip], rest: np.ndarray, body: Body):
    clip = clips[name]
    motion = retarget(clip, rest)
    error = direction_error(clip, motion, rest)
    assert error.shape == (len(motion.pose), 8)
    assert error.max() < 0.1
    joints = body.joints(axis_angle_to_matrix(motion.pose), np.zeros(10), motion.trans)
    scaled = clip.positions * (np.linalg.norm(rest[4] - rest[1]) + np.linalg.norm(rest[7] - rest[4]))
    scaled /= np.linalg.norm(clip.rest[4] - clip.rest[1]) + np.linalg.norm(clip.rest[7] - clip.rest[4])
    assert np.abs(joints[:, 1:3].mean(1) - scaled[:, 1:3].mean(1)).max() < 1e-5
    # The trunk points about where the source's does (hip centres differ by 3 cm), and its sides are not swapped.
    up, known = (p[:, [16, 17]].mean(1) - p[:, [1, 2]].mean(1) for p in (joints, clip.positions))
    cosine = (up * known).sum(1) / np.linalg.norm(up, axis=1) / np.linalg.norm(known, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 15
    for pair in ((1, 2), (16, 17)):
        a, b = (p[:, pair[0]] - p[:, pair[1]] for p in (joints, clip.positions))
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.7
    assert plausible(mend(motion.pose)).mean() > 0.97


def _angle(joints: np.ndarray, a: int, b: int, c: int) -> np.ndarray:
    u, v = joints[:, a] - joints[:, b], joints[:, c] - joints[:, b]
    return np.degrees(np.arccos((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)))


@pytest.mark.parametrize(("other", "limit"), [("exp_train_walking_1", 1.0), ("cc_002_01", 3.5)])
def test_readers_of_one_take_agree(other: str, limit: float, clips: dict[str, Clip], rest: np.ndarray, body: Body):
    """cmu002_01 in three formats: the angles at knees and elbows of our body agree."""
    first, second = (
        body.joints(axis_angle_to_matrix(retarget(clips[n], rest).pose), np.zeros(10)) for n in ("asf_02_01", other)
    )
    for chain in ((1, 4, 7), (2, 5, 8), (16, 18, 20), (17, 19, 21)):
        assert np.sqrt(np.mean((_angle(first, *chain) - _angle(second, *chain)) ** 2)) < limit


_ASF = """:units
 length 0.45
 angle deg
:root
 order TX TY TZ RX RY RZ
:bonedata
 begin
  name lfemur
  direction 0 -1 0
  length 10
  axis 0 0 20 XYZ
  dof rx rz
 end
:hierarchy
 begin
  root lfemur
 end
"""


def test_asf_units_and_channels():
    skeleton = parse_asf(_ASF)
    assert skeleton.scale == pytest.approx(0.0564444, abs=1e-6)
    assert skeleton.bones[0].axis == pytest.approx(axis_angle_to_matrix(np.array([0, 0, np.radians(20.0)])))
    with pytest.raises(MocapError, match="needs 2 numbers"):
        read_amc("1\nroot 0 0 0 0 0 0\nlfemur 1\n", _ASF, 120.0)
    with pytest.raises(MocapError, match="is this the right"):
        read_amc("1\nroot 0 0 0 0 0 0\nrfemur 1\n", _ASF, 120.0)
    with pytest.raises(MocapError, match=":bonedata"):
        parse_asf("nothing")


@pytest.mark.parametrize("columns", [72, 156, 165])
def test_amass_is_turned_upright(columns: int, tmp_path: Path, body: Body):
    rng = np.random.default_rng(5)
    poses, trans = rng.normal(size=(6, columns)) * 0.4, rng.normal(size=(6, 3))
    np.savez(tmp_path / "walk_poses.npz", poses=poses, trans=trans, mocap_framerate=120.0, betas=np.zeros(16))
    motion = read_amass(tmp_path / "walk_poses.npz")
    full = np.zeros((6, 24, 3))
    full[:, :22] = poses[:, :66].reshape(6, 22, 3)
    z_up = body.joints(axis_angle_to_matrix(full), np.zeros(10), trans)
    y_up = body.joints(axis_angle_to_matrix(motion.pose), np.zeros(10), motion.trans)
    assert np.allclose(y_up, np.stack([z_up[..., 0], z_up[..., 2], -z_up[..., 1]], -1), atol=1e-5)
    np.savez(tmp_path / "still_poses.npz", poses=0.2 * poses, trans=trans, mocap_framerate=120.0)
    assert len(load_mocap([tmp_path / "still_poses.npz"], body, progress=False)) == 2  # 120 Hz -> 30 Hz


def test_amass_errors(tmp_path: Path):
    buffer = io.BytesIO()
    np.savez(buffer, poses=np.zeros((3, 72)), trans=np.zeros((3, 3)))
    buffer.seek(0)
    with pytest.raises(MocapError, match="mocap_framerate"):
        read_amass(buffer)


# Limits, resampling, splits, cache -----------------------------------------------------------------------------------


def test_knees_and_elbows():
    flexion, sideways = knee_bend(axis_angle_to_matrix(np.array([np.radians(70.0), 0, 0])))
    assert (flexion, sideways) == (pytest.approx(70.0), pytest.approx(0.0, abs=1e-9))
    for side, sign in (("left", -1.0), ("right", 1.0)):
        bend, towards = elbow_bend(axis_angle_to_matrix(np.array([0, sign * np.radians(80.0), 0])), side)
        assert (bend, towards) == (pytest.approx(80.0), pytest.approx(0.0, abs=1e-6))
    pose = np.zeros((4, 24, 3))
    pose[1, J["left_knee"], 0] = np.radians(-40)
    pose[2, J["left_elbow"], 1] = np.radians(80)
    pose[3, J["head"], 1] = np.radians(170)
    assert plausible(pose).tolist() == [True, False, False, False]
    assert plausible(mend(pose)).tolist() == [True, False, False, True]


def test_resampling_is_along_geodesics():
    pose = np.zeros((5, 24, 3))
    pose[:, 3, 0] = 0.1 * np.arange(5)
    motion = resample(Motion("m", 16.0, pose, np.arange(15.0).reshape(5, 3)), 30.0)
    assert len(motion.pose) == 8
    assert np.allclose(motion.pose[:, 3, 0], 0.1 * 16 / 30 * np.arange(8))
    assert np.allclose(motion.trans[:, 0], 3.0 * 16 / 30 * np.arange(8))


def test_splits_hold_their_shares_and_are_repeatable():
    rng = np.random.default_rng(6)
    frames = {f"t{k}": int(rng.integers(50, 900)) for k in range(120)}
    strata = {t: "ab"[k % 2] for k, t in enumerate(frames)}
    about = {t: "walk" if k % 3 else "jump high" for k, t in enumerate(frames)}
    split = assign_splits(frames, strata, about)
    total = sum(frames.values())
    for index, share in ((1, 0.1), (2, 0.1)):
        assert sum(frames[t] for t in frames if split[t] == index) / total == pytest.approx(share, abs=0.03)
        assert {about[t] for t in frames if split[t] == index} == {"walk", "jump high"}
    assert split == assign_splits(dict(reversed(frames.items())), strata, about)
    assert split != assign_splits(frames, strata, about, seed=1)


@pytest.fixture(scope="module")
def small(test_data: Path, tmp_path_factory: pytest.TempPathFactory, body: Body) -> tuple[list[Path], Path, Mocap]:
    paths = [test_data / "mocap" / f"{n}.tar.xz" for n in ("amp", "makehuman", "cmu_asfamc_styles", "deepmimic")]
    if not all(p.is_file() for p in paths):
        pytest.skip("no motion capture archives")
    cache = tmp_path_factory.mktemp("mocap") / "cache.npz"
    return paths, cache, load_mocap(paths, body, cache, progress=False)


def test_no_take_is_on_two_sides(small: tuple[list[Path], Path, Mocap], test_data: Path):
    mocap = small[2]
    for take in range(len(mocap.takes)):
        assert len(np.unique(mocap.split[mocap.take == take])) == 1
    # An AMP clip and the DeepMimic clip it was made from are one take.
    clips = dict(zip(mocap.clips, [mocap.take[mocap.clip == k][0] for k in range(len(mocap.clips))]))
    assert clips["amp_backflip"] == clips["dm_backflip"]
    parts = [mocap.select(s) for s in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(mocap)
    assert all(len(p) for p in parts)
    assert len(parts[0]) / len(mocap) > 0.7
    assert mocap.pose.dtype == np.float32
    assert plausible(mocap.pose).all()
    assert mocap.summary().count("\n") == len(mocap.sources) + 1
    with pytest.raises(ValueError, match="split"):
        mocap.select("dev")


def test_suspect_steps_are_left_out(test_data: Path, small: tuple[list[Path], Path, Mocap]):
    index = json.loads((test_data / "mocap" / "index.json").read_text())
    items = {item.name: item for item in collect([test_data / "mocap"])}
    for entry in index:
        steps = entry.get("suspect_steps", [])
        flips = entry["archive"].startswith(("deepmimic", "amp"))
        assert items[entry["id"]].glitches == (() if flips else tuple(s[0] for s in steps))


def test_cache_serves_until_something_changes(small: tuple[list[Path], Path, Mocap], body: Body, monkeypatch):
    paths, cache, first = small
    with monkeypatch.context() as patch:
        patch.setattr(mocap_module, "retarget", lambda *a: pytest.fail("the cache was not used"))
        again = load_mocap(paths, body, cache, progress=False)
        assert np.array_equal(again.pose, first.pose)
        assert again.takes == first.takes
        assert again.fps == 30.0
        with pytest.raises(pytest.fail.Exception):
            load_mocap(paths, body.rest_joints(np.zeros(10)) * 1.1, cache, progress=False)
    bad = cache.with_name("bad.npz")
    bad.write_bytes(b"no zip")
    with pytest.raises(MocapError, match="not a motion cache"):
        Mocap.load(bad)


def test_single_amc_with_its_skeleton(tmp_path: Path, test_data: Path, body: Body):
    import tarfile

    archive = test_data / "mocap" / "cmu_asfamc_styles.tar.xz"
    if not archive.is_file():
        pytest.skip("no motion capture archives")
    with tarfile.open(archive) as tar:
        for name in ("09-run.asf", "asf_09_06.amc"):
            member = next(m for m in tar.getmembers() if m.name.endswith(name))
            (tmp_path / name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    found = load_mocap([tmp_path / "asf_09_06.amc"], body, progress=False)
    assert len(found) == 9  # taken as 120 Hz: every 4th of 36 frames
    (tmp_path / "09-run.asf").rename(tmp_path / "09.asf")  # CMU's naming, and not the only skeleton in the folder
    (tmp_path / "10.asf").write_text("")
    assert len(load_mocap([tmp_path / "asf_09_06.amc"], body, progress=False)) == 9
    (tmp_path / "09.asf").unlink()
    (tmp_path / "10.asf").unlink()
    with pytest.raises(MocapError, match="asf"):
        load_mocap([tmp_path / "asf_09_06.amc"], body, progress=False)


@pytest.mark.parametrize(
    ("name", "match"), [("nothing", "does not exist"), ("empty", "no motions"), ("text.txt", "not a motion")]
)
def test_paths_that_hold_no_motion(name: str, match: str, tmp_path: Path, body: Body):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(MocapError, match=match):
        load_mocap([tmp_path / name], body, progress=False)


def test_broken_files_are_named_with_their_path(tmp_path: Path, body: Body):
    path = tmp_path / "walk.bvh"
    path.write_text("no motion")
    with pytest.raises(MocapError, match=f"^{re.escape(str(path))}: no HIERARCHY"):
        load_mocap([path], body, progress=False)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(MocapError, match="not a motion"):
        load_mocap([cut], body, progress=False)
    with pytest.raises(MocapError, match="not a motion cache"):
        Mocap.load(cut)
