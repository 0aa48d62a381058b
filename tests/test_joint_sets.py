"""Joint sets: names and orders of the field, lengths of the dataset's skeleton, and regressor files of every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import Body
from hmr_prob_ros.joint_sets import H36M_NAMES, JOINT_SETS, LSP_NAMES, JointSet, JointSetError, joint_set
from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES, KEYPOINT_FLIP, KEYPOINT_NAMES

rng = np.random.default_rng(5)

# Offsets of the motion capture's skeleton in Human3.6M's own angle data, mm.
H36M_LENGTHS = {
    ("pelvis", "left_hip"): 132.9,
    ("left_hip", "left_knee"): 442.9,
    ("left_knee", "left_ankle"): 454.2,
    ("pelvis", "spine"): 233.4,
    ("spine", "thorax"): 257.1,
    ("thorax", "neck"): 121.1,
    ("neck", "head"): 115.0,
    ("thorax", "left_shoulder"): 151.0,
    ("left_shoulder", "left_elbow"): 278.9,
    ("left_elbow", "left_wrist"): 251.7,
}


def rotations(count: int) -> np.ndarray:
    """(count, 24, 3, 3) random rotations."""
    q, r = np.linalg.qr(rng.standard_normal((count, 24, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return (q * np.linalg.det(q)[..., None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def posed(body: Body) -> tuple[np.ndarray, ...]:
    turned, betas = rotations(4), rng.standard_normal((4, 10)).astype(np.float32)
    return turned, betas, body.joints(turned, betas), body.keypoints(turned, betas)


def dense(chosen: JointSet) -> np.ndarray:
    """(J, 47) matrix of a set."""
    out = np.zeros((len(chosen), 47))
    for j, row in enumerate(chosen.rows):
        for point, weight in row:
            out[j, point] += weight
    return out


@pytest.mark.parametrize(("name", "count"), [("smpl", 24), ("h36m", 17), ("lsp", 14)])
def test_sets_are_affine_maps(name: str, count: int, posed: tuple[np.ndarray, ...]) -> None:
    chosen = joint_set(name)
    joints, keypoints = posed[2:]
    assert len(chosen) == len(chosen.names) == count
    assert np.allclose(dense(chosen).sum(axis=1), 1)
    points = np.concatenate([joints, keypoints], axis=1)
    assert np.allclose(chosen(joints, keypoints), dense(chosen) @ points, atol=1e-6)
    moved = chosen(joints + (1, 2, 3), keypoints + (1, 2, 3))
    assert np.allclose(moved, chosen(joints, keypoints) + (1, 2, 3), atol=1e-6)
    assert np.allclose(
        chosen.rooted(joints, keypoints),
        chosen(joints, keypoints) - chosen.origin(joints, keypoints)[:, None],
        atol=1e-6,
    )


def test_smpl_set_is_the_joints(posed: tuple[np.ndarray, ...]) -> None:
    assert joint_set("smpl").names == JOINT_NAMES
    assert np.array_equal(joint_set("smpl")(*posed[2:]), posed[2])


@pytest.mark.parametrize("name", JOINT_SETS)
def test_mirrored_body_gives_mirrored_joints(name: str, posed: tuple[np.ndarray, ...]) -> None:
    chosen, mirror = joint_set(name), np.array([-1.0, 1.0, 1.0])
    joints, keypoints = posed[2:]
    other = [
        n.replace("left", "?").replace("right", "left").replace("?", "right") if "_" in n else n for n in chosen.names
    ]
    flip = [chosen.names.index(n) for n in other]
    given = chosen(joints[:, JOINT_FLIP] * mirror, keypoints[:, KEYPOINT_FLIP] * mirror)
    assert np.allclose(given, chosen(joints, keypoints)[:, flip] * mirror, atol=1e-6)


def test_orders_are_those_of_the_field() -> None:
    # Human3.6M's 17 and LSP's 14 as in the evaluation code that goes back to SPIN, there as indices.
    assert [H36M_NAMES.index("thorax" if n == "neck" else n) for n in LSP_NAMES] == [
        3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10,
    ]  # fmt: skip


def test_lengths_are_near_the_datasets(body: Body) -> None:
    still, betas = np.broadcast_to(np.eye(3, dtype=np.float32), (24, 3, 3)), np.zeros(10, np.float32)
    joints = joint_set("h36m")(body.joints(still, betas), body.keypoints(still, betas))
    place = dict(zip(H36M_NAMES, joints))

    def length(a: str, b: str) -> float:
        return float(np.linalg.norm(place[a] - place[b]))

    leg = length("left_hip", "left_knee") + length("left_knee", "left_ankle")
    for (a, b), true in H36M_LENGTHS.items():
        assert length(a, b) / leg == pytest.approx(true / 897.1, rel=0.15), (a, b)
    assert place["left_hip"][0] > 0 > place["right_hip"][0]
    assert np.allclose(place["pelvis"], (place["left_hip"] + place["right_hip"]) / 2)


def test_unknown_points_only_touch_their_joints(posed: tuple[np.ndarray, ...]) -> None:
    joints, keypoints = (value.copy() for value in posed[2:])
    joints[:, JOINT_NAMES.index("left_elbow")] = np.nan
    keypoints[:, KEYPOINT_NAMES.index("right_ear")] = np.nan
    given = joint_set("h36m")(joints, keypoints)
    lost = {H36M_NAMES[j] for j in np.flatnonzero(np.isnan(given[0]).any(axis=-1))}
    assert lost == {"left_elbow", "head"}


def regressor(body: Body, swapped: bool = False) -> np.ndarray:
    """(17, V) a file like those of the field, from nearest vertices to the joints of this body."""
    still, betas = np.broadcast_to(np.eye(3, dtype=np.float32), (24, 3, 3)), np.zeros(10, np.float32)
    target = joint_set("h36m")(body.joints(still, betas), body.keypoints(still, betas))
    matrix = np.zeros((17, len(body.v_template)))
    for row, place in zip(matrix, target):
        row[np.argsort(((body.v_template - place) ** 2).sum(axis=1))[:20]] = 1 / 20
    return matrix[[0, 4, 5, 6, 1, 2, 3, *range(7, 17)]] if swapped else matrix


@pytest.mark.parametrize("name", ["h36m", "lsp"])
@pytest.mark.parametrize("swapped", [False, True])
def test_regressor_agrees_with_the_mesh(
    name: str, swapped: bool, body: Body, posed: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    matrix = regressor(body)
    np.save(tmp_path / "regressor.npy", regressor(body, swapped))
    chosen = JointSet.from_regressor(tmp_path / "regressor.npy", body, name)
    turned, betas = posed[:2]
    joints = matrix @ body.vertices(turned, betas)
    expected = joints if name == "h36m" else joints[:, [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]]
    assert np.allclose(chosen.of_vertices(body.vertices(turned, betas)), expected, atol=1e-5)
    assert chosen.body is not None
    places = chosen.body.joints(turned, betas), chosen.body.keypoints(turned, betas)
    assert np.allclose(chosen(*places), expected, atol=1e-5)
    assert np.allclose(chosen.rooted(*places), expected - joints[:, :1], atol=1e-5)


def test_regressor_files(body: Body, tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = regressor(body)
    sparse.save_npz(tmp_path / "csr.npz", sparse.csr_matrix(matrix))
    sparse.save_npz(tmp_path / "csc.npz", sparse.csc_matrix(matrix))
    np.savez(tmp_path / "named.npz", other=np.zeros(3), J_regressor_h36m=matrix)
    for name in ("csr.npz", "csc.npz", "named.npz"):
        assert np.allclose(JointSet.from_regressor(tmp_path / name, body).regressor, matrix), name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m[:, :100], "same mesh"),
        (lambda m: m[:14], "same mesh"),
        (lambda m: 2 * m, "sum to one"),
        (lambda m: m * np.nan, "finite"),
    ],
)
def test_bad_regressors(change, text: str, body: Body, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "bad.npy", change(regressor(body)))
    with pytest.raises(JointSetError, match=text):
        JointSet.from_regressor(tmp_path / "bad.npy", body)


def test_errors_name_the_mend(body: Body, tmp_path: Path) -> None:
    with pytest.raises(JointSetError, match="smpl, h36m, lsp"):
        joint_set("coco")
    with pytest.raises(JointSetError, match="no regressor"):
        JointSet.from_regressor(tmp_path / "none.npy", body)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(JointSetError, match="cannot be read"):
        JointSet.from_regressor(tmp_path / "text.npy", body)
    np.savez(tmp_path / "empty.npz", a=np.zeros(3))
    with pytest.raises(JointSetError, match="17 rows"):
        JointSet.from_regressor(tmp_path / "empty.npz", body)
    with pytest.raises(JointSetError, match="without a regressor"):
        JointSet.from_regressor(tmp_path / "empty.npz", body, "smpl")
    with pytest.raises(JointSetError, match="24, 3"):
        joint_set("h36m")(np.zeros((17, 3)), np.zeros((23, 3)))
    with pytest.raises(JointSetError, match="h36m or lsp"):
        joint_set("smpl").of_h36m(np.zeros((17, 3)))
    with pytest.raises(JointSetError, match="has no regressor"):
        joint_set("h36m").of_vertices(np.zeros((6890, 3)))
