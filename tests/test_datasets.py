"""Readers of data sets' files. The files are made here, with the form of the real ones, from the free body's kinematics
and a known camera, so that one law holds for all: the body that was read, seen by the camera that was read, lands on
the points that the file gave in 2D.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    COUNT,
    LIMBS,
    SMPL45_OF_OPENPOSE,
    SURFACE,
    K,
    bedlam,
    boxes,
    camera_translation,
    emdb,
    label,
    matrices,
    people,
    project,
    pw3d,
    save,
    spin,
)

from hmr_prob_ros._unpickle import load_pickle
from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES
from hmr_prob_ros.training.data.amass import read_amass
from hmr_prob_ros.training.data.annotations import AnnotationError, Annotations, ambiguous, read_annotations
from hmr_prob_ros.training.data.datasets.pelvis import rest_pelvis


@pytest.fixture(scope="module")
def body(body: Body) -> Body:
    """The free body with its pelvis away from the origin, as that of SMPL, about which SMPL turns."""
    return Body(
        body.v_template + np.array([0.01, -0.24, 0.03], np.float32),
        body.shapedirs + np.array([0.0, 0.02, -0.01], np.float32)[:, None] * np.eye(10, dtype=np.float32)[0],
        body.joint_regressor,
        body.weights,
        body.faces,
        body.keypoint_regressor,
    )


def lands(read: Annotations, body: Body, rows: list[int], labelled: list[int], atol: float = 0.05) -> None:
    """The body that was read, before the camera that was read, projects onto the labelled keypoints."""
    assert read.has_translation.all()
    joints = body.joints(read.rotations, read.betas, read.translation)
    surface = body.keypoints(read.rotations, read.betas, read.translation)
    for k in labelled:
        points = joints[:, JOINT_NAMES.index(KEYPOINT_NAMES[k])] if k in LIMBS and rows else surface[:, k]
        fx, fy, cx, cy = read.intrinsics.T
        pixels = np.stack((points[:, 0] / points[:, 2] * fx + cx, points[:, 1] / points[:, 2] * fy + cy), axis=1)
        seen = read.keypoints[:, k, 2] > 0
        assert seen.any(), KEYPOINT_NAMES[k]
        np.testing.assert_allclose(pixels[seen], read.keypoints[seen, k, :2], atol=atol, err_msg=KEYPOINT_NAMES[k])
    assert set(np.flatnonzero((read.keypoints[..., 2] > 0).any(axis=0))) == set(labelled)


@pytest.mark.parametrize("smplx", [True, False])
def test_bedlam_lands_on_its_points(body: Body, tmp_path: Path, smplx: bool) -> None:
    truth = people(body, hands=not smplx)
    read = read_annotations(save(tmp_path / "20221010_scene.npz", bedlam(truth, body, smplx)))
    assert read.body == ("smplx" if smplx else "smpl")
    lands(read, body, LIMBS, LIMBS + SURFACE)
    if smplx:
        np.testing.assert_array_equal(read.rotations[:, 22:], np.broadcast_to(np.eye(3), (COUNT, 2, 3, 3)))
    assert set(read.take) == {"20221010_scene/seq_000000", "20221010_scene/seq_000001"}
    np.testing.assert_array_equal(read.quarter_turns, 0)
    assert not read.has_joints[:, 1:].any()
    found = read.has_joints[:, 0]
    np.testing.assert_allclose(read.joints[found, 0], truth.joints[found, 0], atol=0.02)
    np.testing.assert_allclose(read.size, 200 * boxes(project(truth.joints)[:, :22])[1], rtol=1e-5)


def test_bedlam_pelvis_from_projections_and_shapes(body: Body) -> None:
    """Without the licensed body: J_0 and its change with the shape follow from 300 people at several places."""
    rng = np.random.default_rng(0)
    betas = rng.normal(size=(300, 10))
    rest = body.rest_joints(betas)[:, 0]
    translation = rng.uniform((-2, -1, 3), (2, 1, 9), (300, 3))
    intrinsics = np.tile((K[0, 0], K[1, 1], K[0, 2], K[1, 2]), (300, 1))
    pixels = project(translation + rest)
    found, sure = rest_pelvis(translation, intrinsics, pixels, betas=betas)
    assert sure.mean() > 0.95
    np.testing.assert_allclose(found[sure], rest[sure], atol=0.004)
    noisy, sure = rest_pelvis(translation, intrinsics, pixels + rng.normal(0, 1, pixels.shape), betas=betas)
    assert np.sqrt(np.mean((noisy[sure] - rest[sure]) ** 2)) < 0.01
    _, sure = rest_pelvis(translation, intrinsics, pixels + rng.normal(0, 20, pixels.shape), betas=betas)
    assert not sure.any()
    assert not rest_pelvis(translation[:1], intrinsics[:1], pixels[:1])[1].any()


def test_agora_has_the_whole_translation_in_cam_ext(body: Body, tmp_path: Path) -> None:
    truth = people(body, hands=False)
    outside = np.tile(np.eye(4), (COUNT, 1, 1))
    outside[:, :3, 3] = camera_translation(truth, body)
    names = [f"ag_trainset_3dpeople_bfh_archviz_5_10_cam00_{k:05d}_1280x720.png" for k in range(COUNT)]
    fields = bedlam(truth, body, trans_cam=None, cam_ext=outside, imgname=names)
    read = read_annotations(save(tmp_path / "agora-bfh.npz", fields))
    lands(read, body, LIMBS, LIMBS + SURFACE)
    assert len(set(read.take)) == COUNT


def test_bedlam_variants(body: Body, tmp_path: Path) -> None:
    truth = people(body, hands=False)
    file = tmp_path / "scene.npz"
    upright = np.tile(K[:, :], (COUNT, 1, 1))
    upright[:, 0, 2], upright[:, 1, 2] = 360, 640
    assert (read_annotations(save(file, bedlam(truth, body, cam_int=upright))).quarter_turns == 1).all()
    some = read_annotations(save(file, bedlam(truth, body, cam_ext=None)))  # trans_cam is only a part
    assert not some.has_translation.any()
    some = read_annotations(save(file, bedlam(truth, body, cam_int=np.zeros((COUNT, 3, 3)), gtkps=None)))
    assert np.isnan(some.intrinsics).all()
    assert not some.keypoints.any()
    short = bedlam(truth, body)
    for points in (label(project(truth.joints[:, :24])), project(truth.joints[:, :22])):
        read = read_annotations(save(file, short | {"gtkps": points, "pose_cam": truth.pose_cam[:, :66]}))
        lands(read, body, LIMBS, LIMBS)
    far = np.array(short["gtkps"])
    far[0, 18] = (9000, 100, 1)  # left elbow: may have been mirrored by lying behind the camera
    read = read_annotations(save(file, short | {"gtkps": far}))
    assert read.keypoints[0, KEYPOINT_NAMES.index("left_elbow"), 2] == 0
    assert read.keypoints[1:, KEYPOINT_NAMES.index("left_elbow"), 2].all()
    second = np.concatenate((project(truth.points45[:, SMPL45_OF_OPENPOSE]), np.zeros((COUNT, 146, 2))), axis=1)
    lands(read_annotations(save(file, short | {"gtkps": second})), body, LIMBS, LIMBS + SURFACE)  # BEDLAM 2
    objects = np.empty(COUNT, dtype=object)  # as np.savez stores ragged lists, and some of its files are
    objects[:] = list(short["gtkps"])
    lands(read_annotations(save(file, short | {"gtkps": objects})), body, LIMBS, LIMBS + SURFACE)


def test_spin_points_poses_and_joints(body: Body, tmp_path: Path) -> None:
    truth = people(body)
    read = read_annotations(save(tmp_path / "h36m_train.npz", spin(truth, body)))
    assert read.body == "smpl"
    assert not read.has_translation.any()
    assert np.isnan(read.intrinsics).all()
    assert set(read.take) == {"S1_Directions_1"}  # all cameras of a moment
    np.testing.assert_allclose(read.rotations, matrices(truth.pose_cam.reshape(COUNT, 24, 3)), atol=1e-5)
    # With the true place and camera the read pose lands on both kinds of points.
    whole = read.__class__(
        **{f: getattr(read, f) for f in ("name", "image", "centre", "size", "keypoints", "rotations", "betas")},
        intrinsics=np.tile((K[0, 0], K[1, 1], K[0, 2], K[1, 2]), (COUNT, 1)),
        translation=camera_translation(truth, body),
        body="smpl",
    )
    lands(whole, body, LIMBS, list(range(23)))  # hips are labelled, feet come from OpenPose
    joints = body.joints(read.rotations, read.betas)
    known = read.has_joints
    assert known.sum() == COUNT * 11
    np.testing.assert_allclose((joints - joints[:, :1])[known], read.joints[known], atol=1e-5)


def test_spin_variants(body: Body, tmp_path: Path) -> None:
    truth, file = people(body), tmp_path / "set.npz"
    fields = spin(truth, body)
    weak = np.array(fields["openpose"])
    weak[:, 19:, 2] = 0.1
    read = read_annotations(save(file, fields | {"openpose": weak}))
    assert not read.keypoints[:, 17:].any()
    weak = np.array(fields["openpose"])
    weak[..., :2] += 30.0
    read = read_annotations(save(file, fields | {"openpose": weak}))  # labels win over detections
    np.testing.assert_allclose(read.keypoints[:, 0, :2], project(truth.keypoints)[:, 0], atol=1e-2)
    unknown = np.ones(COUNT)
    unknown[3] = 0
    pose = np.array(fields["pose"])
    pose[3] = np.nan
    read = read_annotations(save(file, fields | {"has_smpl": unknown, "pose": pose}))
    assert read.has_pose.tolist() == (unknown > 0).tolist()
    np.testing.assert_array_equal(read.rotations[3, 5], np.eye(3))
    flat = {k: v for k, v in fields.items() if k in ("imgname", "center", "scale", "part")}
    names = {
        "images/015601864.jpg": "015601864",
        "train2014/COCO_train2014_000000000036.jpg": "COCO_train2014_000000000036",
        "S2/Seq1/imageFrames/video_3/frame_000001.jpg": "S2/Seq1",
        "mpi_inf_3dhp_test_set/TS1/imageSequence/img_000001.jpg": "mpi_inf_3dhp_test_set/TS1/imageSequence",
        "imageFiles/downtown_bus_00/image_00003.jpg": "imageFiles/downtown_bus_00",
        "images/S9_Walking_1.54138969_000006.jpg": "S9_Walking_1",
        "images/S9_Walking_1.60457274_000011.jpg": "S9_Walking_1",
    }
    read = read_annotations(save(file, flat | {"imgname": np.array(list(names)).astype("S")}))  # bytes
    assert read.take.tolist() == list(names.values())
    assert (read.body, bool(read.has_pose.any()), bool(read.has_joints.any())) == ("", False, False)
    places = np.array(fields["S"])
    places[:, 14] = 0
    places[:, 2:4] = ((-0.13, 0, 0, 1), (0.13, 0, 0, 1))  # no pelvis but hips on both sides of it
    read = read_annotations(save(file, fields | {"S": places}))
    assert read.has_joints[:, 0].all()
    np.testing.assert_allclose(read.joints[:, 0], 0, atol=1e-6)
    places[:, 3, 3] = 0
    assert not read_annotations(save(file, fields | {"S": places})).has_joints.any()
    hidden, _ = ambiguous(read, seed=0)
    assert (hidden.keypoints[..., 2].sum(axis=1) < read.keypoints[..., 2].sum(axis=1)).any()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_3dpw_sequence_of_two_people(body: Body, tmp_path: Path, protocol: int) -> None:
    first, second = people(body), people(body, seed=5)
    second.extrinsics[:] = first.extrinsics
    turn, shift = first.extrinsics[:, :3, :3], first.extrinsics[:, None, :3, 3]
    surface = body.keypoints(matrices(second.pose), second.betas[None], second.trans)
    second.joints[:] = np.einsum("kij,kpj->kpi", turn, second.world) + shift
    second.keypoints[:] = np.einsum("kij,kpj->kpi", turn, surface) + shift
    read = read_annotations(save(tmp_path / "downtown_walk_00.pkl", pw3d([first, second], body), protocol))
    assert len(read) == 2 * (COUNT - 1)
    assert read.image[4:7].tolist() == [f"imageFiles/downtown_walk_00/image_0000{k}.jpg" for k in (4, 6, 0)]
    lands(read, body, [], list(range(17)))
    assert read.keypoints[0, KEYPOINT_NAMES.index("right_wrist"), 2] == 0
    assert read.keypoints[1, KEYPOINT_NAMES.index("left_shoulder"), 2] == 0
    expected = np.delete(np.concatenate((first.joints, second.joints)), (5, 5 + COUNT), axis=0)
    np.testing.assert_allclose(read.joints, expected, atol=1e-5)
    np.testing.assert_allclose(body.joints(read.rotations, read.betas, read.translation), expected, atol=1e-4)
    points = project(first.keypoints[0, :17])
    both = np.concatenate((points, project(first.joints[0, 12])[None]))
    assert read.size[0] == pytest.approx(1.2 * (both.max(axis=0) - both.min(axis=0)).max(), rel=1e-4)
    lean = pw3d([first], body, jointPositions=None)
    read = read_annotations(save(tmp_path / "lean.pkl", lean))
    assert not read.has_translation.any()
    np.testing.assert_allclose(read.rotations[0, 0], matrices(first.root[0]), atol=1e-5)
    lean = pw3d([first], body)
    lean["poses2d"] = [np.zeros((COUNT, 3, 18))]  # nobody found: the box is that of the projected joints
    pixels = project(first.joints[0])
    read = read_annotations(save(tmp_path / "lean.pkl", lean))
    assert read.size[0] == pytest.approx(1.2 * (pixels.max(axis=0) - pixels.min(axis=0)).max(), rel=1e-4)


def test_emdb_finds_the_rest_pelvis_from_the_file_alone(body: Body, tmp_path: Path) -> None:
    truth = people(body)
    read = read_annotations(save(tmp_path / "P3_31_outdoor_workout_data.pkl", emdb(truth, body)))
    keep = [0, 1, 3, 5, 6]
    assert read.image.tolist() == [f"P3/31_outdoor_workout/images/0000{k}.jpg" for k in keep]
    lands(read, body, LIMBS, LIMBS)
    np.testing.assert_allclose(read.translation, camera_translation(truth, body)[keep], atol=1e-4)
    np.testing.assert_allclose(read.joints[:, 0], truth.joints[keep, 0], atol=1e-4)
    assert (read.has_joints.sum(axis=1) == 1).all()


def test_emdb_does_not_guess_where_a_still_body_stands(body: Body, tmp_path: Path) -> None:
    truth = people(body)
    for name in ("pose", "trans", "extrinsics", "joints", "keypoints"):
        getattr(truth, name)[:] = getattr(truth, name)[:1]
    file = save(tmp_path / "P0_1_still_data.pkl", emdb(truth, body, name="P0_1_still"))
    with pytest.warns(UserWarning, match="'kp2d' does not fix where the body stands"):
        read = read_annotations(file)
    assert not read.has_translation.any()
    assert not read.has_joints.any()
    np.testing.assert_allclose(read.rotations[0, 0], matrices(truth.root[0]), atol=1e-5)


def test_folders_are_read_whole(body: Body, tmp_path: Path) -> None:
    truth = people(body, hands=False)
    for scene in ("scene_a", "scene_b"):
        save(tmp_path / f"{scene}.npz", bedlam(truth, body))
    read = read_annotations(tmp_path)
    assert len(read) == 2 * COUNT
    assert read.image[COUNT] == "scene_b/png/seq_000000/seq_000000_0000.png"
    assert read.name == tmp_path.name
    (tmp_path / "P3" / "31_outdoor_workout").mkdir(parents=True)
    save(tmp_path / "P3" / "31_outdoor_workout" / "P3_31_outdoor_workout_data.pkl", emdb(truth, body))
    with pytest.raises(AnnotationError, match="different bodies"):
        read_annotations(tmp_path)
    assert len(read_annotations(tmp_path / "P3")) == COUNT - 2


def test_amass_is_motion_and_read_as_such(tmp_path: Path) -> None:
    file = tmp_path / "walk_poses.npz"
    poses = np.zeros((4, 156))
    poses[:, :3] = (np.pi / 2, 0, 0)  # standing up in a world with z up
    np.savez(file, poses=poses, trans=np.tile((1.0, 2, 0.9), (4, 1)), mocap_framerate=60.0, betas=np.zeros(16))
    with pytest.raises(AnnotationError, match=r"is motion capture .* give it as --mocap"):
        read_annotations(file)
    motion = read_amass(file)
    np.testing.assert_allclose(motion.pose[0, 0], 0, atol=1e-9)
    np.testing.assert_allclose(motion.trans[0], (1, 0.9, -2))


def _npz(make: Callable[..., dict], **changes: object) -> Callable[[Body, Path], Path]:
    return lambda body, folder: save(folder / "labels.npz", make(people(body, hands=False), body, **changes))


def _pkl(make: Callable[..., dict], several: bool, **changes: object) -> Callable[[Body, Path], Path]:
    def write(body: Body, folder: Path) -> Path:
        truth = people(body)
        return save(folder / "labels.pkl", make([truth] if several else truth, body, **changes))

    return write


def _raw(name: str, content: bytes) -> Callable[[Body, Path], Path]:
    def write(body: Body, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


class _Runs:
    def __reduce__(self) -> tuple:
        return (eval, ("1 + 1",))


NAN = np.full((COUNT, 72), np.nan)
NAMES = [f"images/{k}.jpg" for k in range(COUNT)]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_npz(spin, center=None), r"labels\.npz: field 'center' is missing: .*docs/datasets\.md"),
        (_npz(spin, shape=None), "field 'shape' is missing"),
        (_npz(spin, part=None, openpose=None, S=None, pose=None), "field 'part' is missing, and so are openpose"),
        (_npz(spin, pose=np.zeros((COUNT, 70))), r"field 'pose' is \(7, 70\), not \(7, 72\)"),
        (_npz(spin, part=np.zeros((COUNT, 23, 3))), r"field 'part' is \(7, 23, 3\), not \(7, 24, 3\)"),
        (_npz(spin, S=np.zeros((COUNT, 24, 3))), r"field 'S' is \(7, 24, 3\)"),
        (_npz(spin, pose=NAN), r"labels\.npz: .*rotations of person 0 \(images/.* not finite: .*has_smpl"),
        (_npz(spin, scale=np.full(COUNT, -1.0)), "size of person 0 is -200.0"),
        (_npz(spin, scale=np.array(["a"] * COUNT)), "field 'scale' holds no numbers"),
        (_npz(spin, S=np.full((COUNT, 24, 4), 900.0)), "joints reach 900 m: give metres"),
        (_npz(spin, imgname=[], center=np.zeros((0, 2)), part=np.zeros((0, 24, 3))), r"is \(7, 25, 3\), not \(0,"),
        (_npz(lambda t, b: {"imgname": np.array([], str), "center": np.zeros((0, 2)), "scale": [],
                            "part": np.zeros((0, 24, 3))}), "holds nobody: give"),
        (_npz(spin, imgname=np.array([NAMES])), r"field 'imgname' is \(1, 7\), not \(K,\)"),
        (_npz(bedlam, shape=None), "field 'shape' is missing"),
        (_npz(bedlam, pose_cam=np.zeros((COUNT, 63))), r"field 'pose_cam' is \(7, 63\), not \(K, 72\) of SMPL nor"),
        (_npz(bedlam, pose_cam=NAN), "rotations of person 0 .* not finite"),
        (_npz(bedlam, shape=np.zeros((COUNT, 9))), r"field 'shape' is \(7, 9\), not \(K, 10 or more\)"),
        (_npz(bedlam, gtkps=np.zeros((COUNT, 30, 3))), "field 'gtkps' has 30 points, not 45 of SMPL"),
        (_npz(bedlam, gtkps=np.zeros((COUNT, 45, 4))), r"field 'gtkps' is \(7, 45, 4\)"),
        (_npz(bedlam, cam_ext=np.full((COUNT, 4, 4), np.nan)), "translation of person 0 .* not finite"),
        (_npz(bedlam, cam_int=np.zeros((COUNT, 3, 4))), r"field 'cam_int' is \(7, 3, 4\)"),
        (_npz(bedlam, gtkps=np.array([_Runs()] * COUNT)), "field 'gtkps' is refused: .*eval"),
        (_pkl(pw3d, True, cam_intrinsics=None), r"labels\.pkl: field 'cam_intrinsics' is missing"),
        (_pkl(pw3d, True, betas=None), "field 'betas' is missing"),
        (_pkl(pw3d, True, betas=[]), "field 'betas' has 0 people where poses has 1"),
        (_pkl(pw3d, True, poses=[np.zeros((COUNT, 69))]), r"field 'poses\[0\]' is \(7, 69\), not \(7, 72\)"),
        (_pkl(pw3d, True, poses=[NAN]), "person 0: .*rotations of person 0 .* not finite"),
        (_pkl(pw3d, True, campose_valid=[np.zeros(COUNT)]), "'campose_valid' leaves no frame"),
        (_pkl(emdb, False, kp2d=None), "field 'kp2d' is missing"),
        (_pkl(emdb, False, smpl={"poses_root": np.zeros((COUNT, 3))}), r"field 'smpl\.poses_body' is missing"),
        (_pkl(emdb, False, smpl=3), "field 'smpl' is a int, not named fields"),
        (_pkl(emdb, False, good_frames_mask=np.zeros(COUNT)), "'good_frames_mask' leaves no frame"),
        (_pkl(emdb, False, gender=_Runs()), "is refused as a pickle: .*eval"),
        (_pkl(lambda t, b: {"a": 1}, False), "is of no kind that is known"),
        (_pkl(lambda t, b: [1], False), "holds a list, not named fields"),
        (_npz(lambda t, b: {"x": np.zeros(3)}), r"is of no kind that is known \(it holds x\): give one of spin"),
        (_raw("cut.npz", b"PK\x03\x04 cut"), "is not an npz or is cut short"),
        (_raw("none.npz", b""), r"none\.npz: is not an npz or is cut short"),
        (_raw("none.pkl", b""), "is refused as a pickle"),
        (lambda body, folder: folder / "missing.npz", r"missing\.npz: there is no such file"),
        (lambda body, folder: folder, "holds neither .npz nor .pkl"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_say_why(body: Body, tmp_path: Path, write: Callable, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        read_annotations(write(body, tmp_path))


def test_unknown_kind_and_single_array(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="unknown kind 'coco': give auto or one of spin, bedlam, 3dpw, emdb"):
        read_annotations(tmp_path, kind="coco")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(AnnotationError, match="holds one array without a name"):
        read_annotations(tmp_path / "one.npy")


def test_arrays_of_protocol_5_are_read_and_objects_in_them_are_not(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"a": array, "b": np.asfortranarray(array)}, protocol=5))
    for value in load_pickle(file).values():
        np.testing.assert_array_equal(value, array)
        assert value.flags.writeable
    file.write_bytes(pickle.dumps(np.array([_Runs(), None], dtype=object), protocol=5))
    with pytest.raises(pickle.UnpicklingError, match="eval"):
        load_pickle(file)
