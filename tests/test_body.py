"""The body: numpy against torch, against smplx, against the mesh, against closed forms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import PARTS, Body
from hmr_prob_ros.skeleton import JOINT_FLIP, JOINT_NAMES, KEYPOINT_FLIP, KEYPOINT_NAMES, PARENTS

MIRROR = np.diag([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


def random_rotations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform rotations from unit quaternions."""
    w, x, y, z = np.moveaxis((q := rng.normal(size=(*shape, 4))) / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
    rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
    rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, -1).reshape(*shape, 3, 3).astype(np.float32)


def about(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array(
        {
            "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
            "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        }[axis],
        dtype=np.float32,
    )


def pose(**joints: np.ndarray) -> np.ndarray:
    out = np.tile(np.eye(3, dtype=np.float32), (24, 1, 1))
    for name, rotation in joints.items():
        out[JOINT_NAMES.index(name)] = rotation
    return out


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    betas, translation = rng.normal(size=(count, 10)), rng.normal(size=(count, 3))
    return random_rotations(rng, count, 24), betas.astype(np.float32), translation.astype(np.float32)


def joint(points: np.ndarray, name: str) -> np.ndarray:
    return points[..., JOINT_NAMES.index(name), :]


# ---------------------------------------------------------------------------------------------- the default body


def test_default_body_is_an_average_adult(body: Body) -> None:
    at = body.rest_joints(np.zeros(10, np.float32))
    floor, top = body.v_template[:, 1].min(), body.v_template[:, 1].max()
    height = top - floor
    assert height == pytest.approx(1.70, abs=0.02)
    assert floor == pytest.approx(-0.908, abs=0.002)
    # Segment heights as shares of the stature (Drillis and Contini 1966), to two per cent of it.
    for name, share in (("left_hip", 0.530), ("left_knee", 0.285), ("left_ankle", 0.039), ("left_shoulder", 0.818)):
        assert (joint(at, name)[1] - floor) / height == pytest.approx(share, abs=0.025), name
    assert np.ptp(body.v_template[:, 0]) / height == pytest.approx(1.0, abs=0.05)  # arm span
    np.testing.assert_allclose(at[0], 0, atol=1e-4)


def test_shapes_have_unit_variance(body: Body) -> None:
    betas = np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32)
    mesh = body.v_template[:, 1] + betas @ body.shapedirs[:, 1].T
    height = np.ptp(mesh, axis=1)
    assert height.mean() == pytest.approx(1.70, abs=0.02)
    assert height.std() == pytest.approx(0.10, abs=0.02)
    np.testing.assert_allclose(body.rest_joints(betas)[:, 0], 0, atol=1e-3)


def test_hip_centres_are_anatomical(body: Body) -> None:
    betas = np.random.default_rng(1).normal(size=(200, 10)).astype(np.float32)
    at = body.rest_joints(np.concatenate([np.zeros((1, 10), np.float32), betas]))
    half = 0.5 * (joint(at, "left_hip") - joint(at, "right_hip"))[:, 0]
    assert half[0] == pytest.approx(0.0845, abs=0.0015)
    # Hara et al. 2016: 8 mm + 0.086 leg length, the leg from the iliac spine (9 mm + 0.078 leg above the hip) down.
    drop = joint(at, "left_hip")[:, 1] - joint(at, "left_ankle")[:, 1]
    assert np.abs(half - (0.008 + 0.086 * (drop + 0.009) / 0.922)).mean() < 0.006


def test_rest_pose_faces_forward_with_left_at_plus_x(body: Body) -> None:
    at, marks = body.rest_joints(np.zeros(10, np.float32)), body.keypoint_regressor @ body.v_template
    key = {name: marks[i] for i, name in enumerate(KEYPOINT_NAMES)}
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        assert joint(at, f"left_{name}")[0] > 0.05 > -0.05 > joint(at, f"right_{name}")[0]
        assert np.linalg.norm(key[f"left_{name}"] - joint(at, f"left_{name}")) < 0.05
    assert key["nose"][2] > key["left_ear"][2] + 0.05
    assert key["left_big_toe"][2] > key["left_heel"][2] + 0.15
    assert key["left_small_toe"][0] > key["left_big_toe"][0]
    arm = joint(at, "left_wrist") - joint(at, "left_shoulder")
    np.testing.assert_allclose(arm / np.linalg.norm(arm), [1, 0, 0], atol=0.02)


def test_template_and_shapes_are_symmetric(body: Body) -> None:
    rotations, betas, _ = batch(3)
    mirrored = MIRROR @ rotations[:, JOINT_FLIP] @ MIRROR
    for method, flip in ((body.joints, JOINT_FLIP), (body.keypoints, KEYPOINT_FLIP)):
        np.testing.assert_allclose(method(mirrored, betas), (method(rotations, betas) @ MIRROR)[:, flip], atol=2e-4)
    points = {tuple(p) for p in np.round(body.v_template * 1e4).astype(int)}
    other = {tuple(p) for p in np.round(body.v_template @ MIRROR * 1e4).astype(int)}
    assert len(points & other) > 0.97 * len(points)  # the rest differs by rounding


def test_mesh_is_closed_but_for_mouth_and_eyes_and_looks_outwards(body: Body) -> None:
    corners = body.v_template[body.faces].astype(np.float64)
    volume = np.einsum("fi,fi->f", np.cross(corners[:, 0], corners[:, 1]), corners[:, 2]).sum() / 6
    assert 0.055 < volume < 0.085  # cubic metres, positive: normals look outwards
    edges = np.sort(body.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    counts = np.unique(edges, axis=0, return_counts=True)[1]
    assert (counts > 2).mean() < 1e-3
    assert (counts == 1).mean() < 0.02


def test_parts_are_where_they_belong(body: Body) -> None:
    marks = {name: p for name, p in zip(KEYPOINT_NAMES, body.keypoint_regressor @ body.v_template, strict=True)}

    def mean(name: str, side: int = 0) -> np.ndarray:
        chosen = body.part == PARTS.index(name)
        assert chosen.any(), name
        return body.v_template[chosen & ((side == 0) | (body.v_template[:, 0] * side > 0))].mean(0)

    for side, name in ((1, "left_eye"), (-1, "right_eye")):
        assert np.linalg.norm(mean("iris", side) - marks[name]) < 0.012
    heights = [mean(name)[1] for name in ("hair", "brows", "iris", "lips", "shirt", "trousers", "shoes")]
    assert heights == sorted(heights, reverse=True)
    assert mean("hair")[2] < mean("lips")[2]


def test_asset_is_small_licensed_and_stable(body: Body) -> None:
    folder = Path(sys.modules["hmr_prob_ros.body"].__file__).parent / "assets"
    assert (folder / "body.npz").stat().st_size < 1.2e6
    assert "CC0" in (folder / "LICENSE-body.txt").read_text()
    with np.load(folder / "body.npz", allow_pickle=False) as archive:
        assert "CC0" in str(archive["licence"])
    assert Body.load().hash == body.hash
    assert len(body.hash) == 64
    arrays = dict(np.load(folder / "body.npz"))
    arrays["v_template"] = arrays["v_template"] + np.float32(1e-4)
    assert Body.from_arrays(arrays).hash != body.hash


# ---------------------------------------------------------------------------------------------- kinematics


def test_joints_match_a_chain_of_homogeneous_matrices(body: Body) -> None:
    rotations, betas, translation = batch(4)
    rest = body.rest_joints(betas).astype(np.float64)
    for b in range(4):
        world: list[np.ndarray] = []
        for j, parent in enumerate(PARENTS):
            local = np.eye(4)
            local[:3, :3] = rotations[b, j]
            local[:3, 3] = rest[b, j] - (rest[b, parent] if parent >= 0 else 0)
            world.append(world[parent] @ local if parent >= 0 else local)
        expected = np.stack(world)[:, :3, 3] + translation[b]
        np.testing.assert_allclose(body.joints(rotations, betas, translation)[b], expected, atol=1e-5)
        np.testing.assert_allclose(body.global_rotations(rotations)[b], np.stack(world)[:, :3, :3], atol=1e-5)


def test_arm_lowered_by_hand(body: Body) -> None:
    zero = np.zeros(10, np.float32)
    rest, at = body.rest_joints(zero), body.joints(pose(left_shoulder=about("z", -90)), zero)
    upper = joint(rest, "left_elbow") - joint(rest, "left_shoulder")
    expected = joint(rest, "left_shoulder") + [upper[1], -upper[0], upper[2]]
    np.testing.assert_allclose(joint(at, "left_elbow"), expected, atol=1e-6)
    bent = body.joints(pose(left_elbow=about("y", -90)), zero)
    assert joint(bent, "left_wrist")[2] > 0.2  # bends forwards


def test_root_turns_about_the_pelvis_and_translation_is_added(body: Body) -> None:
    rotations, betas, translation = batch(5)
    turn = random_rotations(np.random.default_rng(7))
    turned = rotations.copy()
    turned[:, 0] = turn @ rotations[:, 0]
    pelvis = body.rest_joints(betas)[:, :1]
    for method in (body.joints, body.keypoints, body.vertices):
        base = method(rotations, betas)
        np.testing.assert_allclose(method(turned, betas), (base - pelvis) @ turn.T + pelvis, atol=1e-5)
        np.testing.assert_allclose(method(rotations, betas, translation), base + translation[:, None], atol=1e-5)


def test_keypoints_are_the_regressor_on_the_mesh(body: Body) -> None:
    rotations, betas, translation = batch(6)
    mesh = body.vertices(rotations, betas, translation)
    expected = body.keypoint_regressor @ mesh
    np.testing.assert_allclose(body.keypoints(rotations, betas, translation), expected, atol=1e-5)


def test_joint_regressor_also_finds_joints_in_posed_meshes(body: Body) -> None:
    rng = np.random.default_rng(3)
    axis = rng.normal(size=(40, 24, 3)) * 0.3
    angle = np.linalg.norm(axis, axis=-1, keepdims=True)[..., None]
    k = np.cross(np.eye(3), axis[..., None, :] / angle[..., 0][..., None, :]).swapaxes(-1, -2)
    rotations = (np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)).astype(np.float32)
    betas = rng.normal(size=(40, 10)).astype(np.float32)
    found = body.joint_regressor @ body.vertices(rotations, betas)
    error = np.linalg.norm(found - body.joints(rotations, betas), axis=-1)
    assert error.mean() < 0.010
    assert (body.joint_regressor >= 0).all()


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_any_leading_dimensions(body: Body, lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    rotations, betas = random_rotations(rng, *lead, 24), rng.normal(size=(*lead, 10)).astype(np.float32)
    translation = rng.normal(size=(*lead, 3)).astype(np.float32)
    assert body.joints(rotations, betas, translation).shape == (*lead, 24, 3)
    assert body.keypoints(rotations, betas, translation).shape == (*lead, 23, 3)
    assert body.vertices(rotations, betas, translation).shape == (*lead, len(body.v_template), 3)
    assert body.keypoints(rotations, betas, translation).dtype == np.float32


def with_correctives(body: Body) -> Body:
    """The default body with random pose correctives, as a licensed file has them."""
    arrays = {
        "v_template": body.v_template,
        "shapedirs": body.shapedirs,
        "J_regressor": body.joint_regressor,
        "weights": body.weights,
        "f": body.faces,
        "kintree_table": np.array([PARENTS, range(24)]),
        "keypoint_regressor": body.keypoint_regressor,
        "posedirs": np.random.default_rng(5).normal(size=(len(body.v_template), 3, 207)) * 1e-3,
    }
    return Body.from_arrays(arrays)


@pytest.mark.parametrize("correctives", [False, True])
def test_agrees_with_smplx(body: Body, correctives: bool) -> None:
    torch, smplx = pytest.importorskip("torch"), pytest.importorskip("smplx")
    torch.set_num_threads(1)
    if correctives:
        body = with_correctives(body)
    rotations, betas, translation = batch(3, seed=2)
    data = smplx.utils.Struct(
        v_template=body.v_template,
        shapedirs=body.shapedirs,
        posedirs=body.posedirs if correctives else np.zeros((len(body.v_template), 3, 207), np.float32),
        J_regressor=body.joint_regressor,
        weights=body.weights,
        f=body.faces,
        kintree_table=np.array([PARENTS, range(24)]),
    )
    model = smplx.SMPL("", data_struct=data, num_betas=10, batch_size=3)
    with torch.no_grad():
        out = model(
            betas=torch.tensor(betas),
            global_orient=torch.tensor(rotations[:, :1]),
            body_pose=torch.tensor(rotations[:, 1:]),
            transl=torch.tensor(translation),
            pose2rot=False,
        )
    np.testing.assert_allclose(body.vertices(rotations, betas, translation), out.vertices.numpy(), atol=1e-5)
    np.testing.assert_allclose(body.joints(rotations, betas, translation), out.joints.numpy()[:, :24], atol=1e-5)
    expected = body.keypoint_regressor @ out.vertices.numpy()
    np.testing.assert_allclose(body.keypoints(rotations, betas, translation), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------- torch


@pytest.fixture(scope="module")
def torch_body(body: Body):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from hmr_prob_ros.training.body import TorchBody

    return TorchBody(body)


@pytest.mark.parametrize("correctives", [False, True])
def test_torch_equals_numpy(body: Body, torch_body, correctives: bool) -> None:
    import torch

    if correctives:
        body = with_correctives(body)
        torch_body = type(torch_body)(body)
    arrays = batch(4, seed=3)
    tensors = [torch.tensor(a) for a in arrays]
    joints, keypoints = torch_body(*tensors)
    np.testing.assert_allclose(joints.numpy(), body.joints(*arrays), atol=1e-5)
    np.testing.assert_allclose(keypoints.numpy(), body.keypoints(*arrays), atol=1e-5)
    np.testing.assert_allclose(torch_body.vertices(*tensors).numpy(), body.vertices(*arrays), atol=1e-5)
    np.testing.assert_allclose(torch_body.rest_joints(tensors[1]).numpy(), body.rest_joints(arrays[1]), atol=1e-5)
    nested = [t.reshape(2, 2, *t.shape[1:]) for t in tensors]
    torch.testing.assert_close(torch_body(*nested)[1].reshape(4, 23, 3), keypoints)
    assert torch_body.body_hash == body.hash
    assert not torch_body.state_dict()


def test_gradients_of_the_kinematics(body: Body, torch_body) -> None:
    import torch

    module = type(torch_body)(body, mesh=False).double()
    inputs = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in batch(1, seed=4)]
    assert torch.autograd.gradcheck(module, inputs)
    with pytest.raises(RuntimeError, match="mesh=True"):
        module.vertices(*inputs)


def test_onnx_export_gives_the_same_numbers(body: Body, torch_body, tmp_path: Path) -> None:
    import torch

    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, file = type(torch_body)(body, mesh=False).eval(), tmp_path / "body.onnx"
    tensors = tuple(torch.tensor(a).reshape(2, 3, *a.shape[1:]) for a in batch(6, seed=5))
    people, samples = torch.export.Dim("people"), torch.export.Dim("samples")
    torch.onnx.export(
        module,
        tensors,
        file,
        input_names=["rotations", "betas", "translation"],
        output_names=["joints", "keypoints"],
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: people, 1: samples},) * 3,
        verbose=False,
    )
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    arrays = [a.reshape(1, 5, *a.shape[1:]) for a in batch(5, seed=6)]
    names = ("rotations", "betas", "translation")
    joints, keypoints = session.run(None, dict(zip(names, arrays, strict=True)))
    np.testing.assert_allclose(joints, body.joints(*arrays), atol=1e-5)
    np.testing.assert_allclose(keypoints, body.keypoints(*arrays), atol=1e-5)


def test_numpy_half_does_not_import_torch() -> None:
    code = "import sys, hmr_prob_ros.body as b; b.Body.load(); assert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
