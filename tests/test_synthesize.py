"""Synthetic examples obey the laws of kinematics, projection and the runtime's own view of a person."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.camera import Camera, condition  # noqa: E402
from hmr_prob_ros.skeleton import KEYPOINT_NAMES  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.noise import HIDDEN_BY_SELF, OUTSIDE, VISIBLE, DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.synthesize import SynthesisConfig, Synthesizer  # noqa: E402
from hmr_prob_ros.training.data.views import BIGGS_SHARES, CameraRange, look, occlude, self_occlusion  # noqa: E402

BODY = Body.load()
TORCH_BODY = TorchBody(BODY)
POINT = {name: k for k, name in enumerate(KEYPOINT_NAMES)}


def _poses(count: int, seed: int = 0) -> np.ndarray:
    """Moderate random poses, upright."""
    rng = np.random.default_rng(seed)
    poses = 0.25 * rng.standard_normal((count, 24, 3))
    poses[:, 0] *= 0.4
    return poses.astype(np.float32)


@pytest.fixture(scope="module")
def examples():
    synthesizer = Synthesizer(TORCH_BODY, [DetectorNoise.load("blazepose")], seed=3)
    return synthesizer(_poses(400))


def test_parameters_give_the_joints(examples) -> None:
    """Rotations, shape and translation, through the runtime's own kinematics, give the joints and keypoints."""
    arguments = (examples.rotations.numpy(), examples.betas.numpy(), examples.translation.numpy())
    np.testing.assert_allclose(BODY.joints(*arguments), examples.joints.numpy(), atol=2e-4)
    np.testing.assert_allclose(BODY.keypoints(*arguments), examples.keypoints3d.numpy(), atol=2e-4)


def test_condition_is_the_runtimes(examples) -> None:
    """What training shows a model is what the robot shows it."""
    for i in range(60):
        fx, fy, cx, cy = (float(v) for v in examples.intrinsics[i])
        width, height = (int(v) for v in examples.size[i])
        seen, box = condition(examples.detected[i].numpy(), Camera(width, height, fx, fy, cx, cy))
        np.testing.assert_allclose(seen, examples.keypoints[i].numpy(), atol=1e-4)
        np.testing.assert_allclose(box, examples.box[i].numpy(), atol=1e-5)


def test_clean_points_are_projections() -> None:
    examples = Synthesizer(TORCH_BODY, (), SynthesisConfig(no_feet=0.0), seed=1)(_poses(100), occlusion="none")
    for i in range(30):
        fx, fy, cx, cy = (float(v) for v in examples.intrinsics[i])
        camera = Camera(int(examples.size[i, 0]), int(examples.size[i, 1]), fx, fy, cx, cy)
        pixels = camera.project(examples.keypoints3d[i].numpy())
        seen = examples.state[i].numpy() == VISIBLE
        np.testing.assert_allclose(pixels[seen], examples.detected[i, :, :2].numpy()[seen], atol=0.05)
        assert np.array_equal(examples.detected[i, :, 2].numpy() > 0, seen)


def test_bodies_are_upright_and_before_the_camera() -> None:
    """A standing body's head is above its feet in the picture (y down), at robot distances."""
    ranges = CameraRange(lift_share=0.0)
    examples = Synthesizer(TORCH_BODY, (), SynthesisConfig(cameras=ranges), seed=2)(
        np.zeros((500, 24, 3)), occlusion="none"
    )
    head, ankle = examples.joints[:, 15], examples.joints[:, 7]
    assert (head[:, 1] < ankle[:, 1]).float().mean() > 0.99
    distance = examples.joints[:, 0, [0, 2]].norm(dim=-1)
    assert distance.min() > 0.8
    assert distance.max() < 8.5


def test_floor_and_camera_height() -> None:
    """The lowest point stands on the floor: camera height below the camera, by undoing the camera's rotation."""
    body_joints, keypoints = TORCH_BODY(torch.eye(3).expand(64, 24, 3, 3), torch.zeros(64, 10), torch.zeros(64, 3))
    lowest = keypoints[..., 1].amin(1)
    ranges = CameraRange(height=(1.2, 1.2), lift_share=0.0)
    views = look(body_joints, lowest, torch.Generator().manual_seed(0), ranges)
    world = views.place(keypoints) @ views.rotation
    torch.testing.assert_close(world[..., 1].amin(1), torch.full((64,), -1.2), atol=1e-4, rtol=0)
    identity = views.rotation @ views.rotation.transpose(1, 2)
    torch.testing.assert_close(identity, torch.eye(3).expand(64, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(views.rotation), torch.ones(64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("turned", "hidden"), [(False, False), (True, True)])
def test_a_face_is_hidden_from_behind(turned: bool, hidden: bool) -> None:
    """Facing the camera the nose is seen; turned round it hides behind the head."""
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    face_camera = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    rotations[:, 0] = face_camera if not turned else face_camera @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    joints, keypoints = TORCH_BODY(rotations, torch.zeros(1, 10), torch.tensor([[0.0, 0.0, 3.0]]))
    occluded = self_occlusion(joints, keypoints)[0]
    assert bool(occluded[POINT["nose"]]) is hidden
    assert not occluded[POINT["left_shoulder"]]


def test_a_hand_behind_the_back_is_hidden() -> None:
    """Moved 30 cm behind the chest, a wrist disappears; 30 cm before it, it is seen."""
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    rotations[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    joints, keypoints = TORCH_BODY(rotations, torch.zeros(1, 10), torch.tensor([[0.0, 0.0, 3.0]]))
    wrist = POINT["left_wrist"]
    chest = (joints[:, 0] + joints[:, 12]) / 2
    for offset, hidden in ((0.3, True), (-0.3, False)):
        moved = keypoints.clone()
        moved[:, wrist] = chest + torch.tensor([0.0, 0.0, offset])
        assert bool(self_occlusion(joints, moved)[0, wrist]) is hidden


def test_biggs_protocol_shares() -> None:
    """Arms and head, legs, head, nothing are removed in 30, 30, 30 and 10 % of the pictures."""
    generator = torch.Generator().manual_seed(0)
    state = torch.zeros(20_000, 23, dtype=torch.long)
    _, removed = occlude(torch.rand(20_000, 23, 2), state, "biggs", generator)
    nose, wrist, ankle = (removed[:, POINT[name]] for name in ("nose", "left_wrist", "left_ankle"))
    shares = [(nose & wrist), ankle, (nose & ~wrist), ~(nose | ankle)]
    for got, wanted in zip(shares, BIGGS_SHARES, strict=True):
        assert abs(got.float().mean() - wanted) < 0.015


def test_same_seed_same_examples() -> None:
    first, second = (Synthesizer(TORCH_BODY, [DetectorNoise.load("blazepose")], seed=5)(_poses(64)) for _ in range(2))
    torch.testing.assert_close(first.keypoints, second.keypoints, atol=0, rtol=0)


def test_states_are_all_drawn(examples) -> None:
    """The mixture shows every state, and what is outside the image carries no confidence."""
    for state in (VISIBLE, HIDDEN_BY_SELF, OUTSIDE):
        assert (examples.state == state).float().mean() > 0.01
    pixels, size = examples.detected[..., :2], examples.size[:, None]
    outside = ((pixels < 0) | (pixels >= size)).any(-1)
    assert (examples.keypoints[..., 2][outside] == 0).all()
