"""The renderer: pictures agree with the projected body, and hidden points are known to be hidden."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("moderngl", reason="moderngl is not installed: pip install 'hmr_prob_ros[train]'")

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES
from hmr_prob_ros.training.data.render import BodyMesh, Light, Renderer, RenderError, Solid, box, quad
from hmr_prob_ros.training.data.rotations import axis_angle_to_matrix
from hmr_prob_ros.training.data.scenes import (
    HIDDEN_BY_OBJECT,
    HIDDEN_BY_SELF,
    OUTSIDE,
    VISIBLE,
    keypoint_states,
    look_at,
    random_scene,
)

CAMERA = Camera.from_fov(320, 240, 60.0)
LEFT = np.array([name.startswith("left") for name in KEYPOINT_NAMES])
RIGHT = np.array([name.startswith("right") for name in KEYPOINT_NAMES])


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    try:
        made = Renderer(320, 240)
    except RenderError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def standing(body: Body, turn: float = 0.0, depth: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and keypoints of a body with lowered arms, turned by ``turn`` radians, in the optical frame."""
    pose = np.zeros((24, 3))
    pose[JOINT_NAMES.index("left_shoulder"), 2], pose[JOINT_NAMES.index("right_shoulder"), 2] = -1.2, 1.2
    rotations = axis_angle_to_matrix(pose)
    # Body axes (y up, z towards the viewer) to optical axes is a half turn about x.
    rotations[0] = np.diag([1.0, -1.0, -1.0]) @ axis_angle_to_matrix(np.array([0.0, turn, 0.0]))
    rotations, betas = rotations.astype(np.float32), np.zeros(10, np.float32)
    translation = np.array([0.0, 0.1, depth], np.float32)
    return np.asarray(body.vertices(rotations, betas, translation)), np.asarray(
        body.keypoints(rotations, betas, translation)
    )


def natural_pose(rng: np.random.Generator) -> np.ndarray:
    pose = rng.normal(0, 0.1, size=(24, 3))
    pose[0] = 0
    pose[16, 2], pose[17, 2] = -1.1, 1.1
    return pose


def test_silhouette_is_that_of_the_projected_mesh(renderer: Renderer) -> None:
    """The mask against the mesh's triangles filled by OpenCV: an independent projection and rasteriser."""
    cv2 = pytest.importorskip("cv2")
    vertices, _ = standing(renderer.body)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)])
    pixels = CAMERA.project(vertices)
    filled = np.zeros((240, 320), np.uint8)
    # OpenCV counts from pixel centres, the camera from pixel corners; 1/16 pixel.
    for triangle in np.rint((pixels[renderer.body.faces] - 0.5) * 16).astype(np.int32):
        cv2.fillConvexPoly(filled, triangle, 1, shift=4)
    mask = frame.identity == 1
    overlap = (mask & (filled > 0)).sum() / (mask | (filled > 0)).sum()
    assert overlap > 0.85  # clothes and hair stand off the skin by a centimetre or two: about a pixel here
    assert 0.02 < mask.mean() < 0.2


def test_upright_left_on_the_viewers_right_and_in_front_of_the_floor(renderer: Renderer) -> None:
    vertices, keypoints = standing(renderer.body)
    pixels = CAMERA.project(keypoints)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)])
    rows = np.nonzero(frame.identity == 1)[0]
    assert pixels[KEYPOINT_NAMES.index("nose"), 1] < pixels[KEYPOINT_NAMES.index("left_heel"), 1]
    assert abs(rows.min() - CAMERA.project(vertices)[:, 1].min()) < 5
    assert abs(rows.max() - CAMERA.project(vertices)[:, 1].max()) < 3
    assert pixels[LEFT, 0].mean() > pixels[RIGHT, 0].mean()


def test_depth_is_metric(renderer: Renderer) -> None:
    wall = Solid(quad((-5, -5, -4.0), (10, 0, 0), (0, 10, 0)), occluder=True)
    frame = renderer.render(CAMERA, solids=[wall])  # the default view looks along the world's -z
    np.testing.assert_allclose(frame.depth, 4.0, atol=2e-3)
    assert (frame.identity == -1).all()


@pytest.mark.parametrize("turn", [0.0, np.pi], ids=["front", "back"])
def test_face_is_seen_from_the_front_only(renderer: Renderer, turn: float) -> None:
    vertices, keypoints = standing(renderer.body, turn)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)])
    state = keypoint_states(frame, CAMERA, keypoints, renderer.reach)
    face = state[[KEYPOINT_NAMES.index(n) for n in ("nose", "left_eye", "right_eye")]]
    assert (face == (VISIBLE if turn == 0 else HIDDEN_BY_SELF)).all()
    limbs = state[
        [KEYPOINT_NAMES.index(n) for n in ("left_shoulder", "right_shoulder", "left_knee", "right_knee", "left_wrist")]
    ]
    assert (limbs == VISIBLE).all()


def test_a_box_before_one_half_hides_that_half(renderer: Renderer) -> None:
    """A wall across the image's right half hides exactly the keypoints whose rays pass right of its edge."""
    vertices, keypoints = standing(renderer.body)
    edge, depth, thick = 0.03, 1.5, 0.02
    wall = Solid(box((edge + 1.0, 0.0, -depth), (2.0, 4.0, thick)), occluder=True)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)], [wall])
    state = keypoint_states(frame, CAMERA, keypoints, renderer.reach)
    ray = keypoints[:, 0] / keypoints[:, 2]
    # The box's silhouette: the nearer edge of its left face seen from the right of it, and the other way round.
    border = edge / (depth + thick / 2)
    clear = np.abs(ray - border) > 0.005
    np.testing.assert_array_equal((state == HIDDEN_BY_OBJECT)[clear], (ray > border)[clear])
    assert (state == HIDDEN_BY_OBJECT).any()
    assert (state == VISIBLE).any()


def test_points_outside_the_image_are_outside(renderer: Renderer) -> None:
    vertices, keypoints = standing(renderer.body, depth=1.2)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)])
    state = keypoint_states(frame, CAMERA, keypoints, renderer.reach)
    rows = CAMERA.project(keypoints)[:, 1]
    np.testing.assert_array_equal(state[(rows < 0) | (rows >= 240)], OUTSIDE)
    assert (state == OUTSIDE).any()
    behind = keypoints * (1, 1, -1)
    assert (keypoint_states(frame, CAMERA, behind, renderer.reach) == OUTSIDE).all()


def test_another_person_in_front_is_an_object(renderer: Renderer) -> None:
    near, near_points = standing(renderer.body, depth=2.0)
    far, far_points = standing(renderer.body, depth=3.5)
    frame = renderer.render(CAMERA, [BodyMesh(far), BodyMesh(near)])
    far_state = keypoint_states(frame, CAMERA, far_points, renderer.reach, person=0)
    near_state = keypoint_states(frame, CAMERA, near_points, renderer.reach, person=1)
    assert (far_state == HIDDEN_BY_OBJECT).sum() >= 8
    assert not (near_state == HIDDEN_BY_OBJECT).any()


def test_scene_agrees_with_itself(renderer: Renderer) -> None:
    """Visible keypoints fall on the person; joints and translation belong together."""
    on = total = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene = random_scene(seed, natural_pose(rng), rng.normal(size=10), renderer, occluded=0.5)
        np.testing.assert_allclose(
            renderer.body.joints(scene.rotations, scene.betas, scene.translation), scene.joints, atol=1e-4
        )
        np.testing.assert_allclose(scene.camera.project(scene.keypoints3d), scene.keypoints_px, atol=0.1)
        grown = scene.mask.copy()
        for axis in (0, 1):  # two pixels of grace at the silhouette
            for shift in (-2, -1, 1, 2):
                grown |= np.roll(scene.mask, shift, axis=axis)
        seen = scene.state == VISIBLE
        column, row = scene.keypoints_px[seen].astype(int).T
        on, total = on + grown[row, column].sum(), total + seen.sum()
        if seen.sum() > 12:
            assert scene.mask.mean() > 0.002
    assert total > 40
    assert on / total > 0.97


def test_same_seed_same_picture(renderer: Renderer) -> None:
    pose, betas = natural_pose(np.random.default_rng(5)), np.zeros(10)
    first, again = (random_scene(5, pose, betas, renderer) for _ in range(2))
    other = random_scene(6, pose, betas, renderer)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.state, again.state)
    np.testing.assert_array_equal(first.joints, again.joints)
    assert (first.image != other.image).mean() > 0.5


def test_light_from_the_left_lights_the_left(renderer: Renderer) -> None:
    vertices, _ = standing(renderer.body)
    frame = renderer.render(CAMERA, [BodyMesh(vertices)], light=Light((-1.0, 0.0, 0.3), shadows=False))
    mask = frame.identity == 1
    columns = np.nonzero(mask)[1]
    middle = np.median(columns)
    grey = frame.image.mean(axis=2)
    column = np.broadcast_to(np.arange(320), mask.shape)
    assert grey[mask & (column < middle)].mean() > grey[mask & (column > middle)].mean() + 5


def test_normals_are_unit_and_point_outwards(renderer: Renderer) -> None:
    vertices, _ = standing(renderer.body)
    normals = renderer.normals(vertices)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)
    # Divergence theorem: the volume is positive and that of a person when the normals point outwards.
    a, b, c = (vertices[renderer.body.faces[:, k]].astype(np.float64) for k in range(3))
    volume = abs(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)
    assert 0.03 < volume < 0.15
    # The default body's faces run so that their normals point away from the middle of the trunk.
    assert np.einsum("vi,vi->v", normals, vertices - vertices.mean(axis=0)).mean() > 0


def test_look_at_puts_the_target_on_the_axis_and_up_upwards() -> None:
    rotation, translation = look_at(np.array([1.0, 1.5, 4.0]), np.array([0.2, 0.8, -1.0]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    seen = rotation @ [0.2, 0.8, -1.0] + translation
    np.testing.assert_allclose(seen[:2], 0, atol=1e-12)
    assert seen[2] > 0
    assert (rotation @ [0, 1, 0])[1] < 0


def test_wrong_sizes_are_named(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match="320x240"):
        renderer.render(Camera.from_fov(640, 480, 60.0))
    with pytest.raises(RenderError, match="distortion"):
        renderer.render(Camera(320, 240, 300, 300, 160, 120, (0.1, 0.0, 0.0, 0.0)))
    with pytest.raises(RenderError, match="shape"):
        renderer.render(CAMERA, [BodyMesh(np.zeros((10, 3), np.float32))])
