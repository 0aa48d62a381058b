"""The losses against arithmetic done another way: loops in numpy, scipy, torch.distributions, closed forms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")

from hmr_prob_ros.training import losses as L  # noqa: E402

B, S, J, K = 3, 4, 24, 23


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng((seed, *shape)).standard_normal(shape) * scale)


def rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    matrices = Rotation.random(int(np.prod(shape)), random_state=seed).as_matrix()
    return torch.as_tensor(matrices.reshape(*shape, 3, 3))


ONES: dict[str, tuple[Callable[..., torch.Tensor], tuple[int, ...], Callable[[np.ndarray], float], bool]] = {
    "joints_l1": (L.joints_l1, (J, 3), lambda e: float(np.abs(e - e[:1]).sum()), True),
    "keypoints_l1": (L.keypoints_l1, (K, 2), lambda e: float(np.abs(e).sum()), True),
    "keypoints_l2": (L.keypoints_l2, (K, 2), lambda e: float((e**2).sum()), True),
    "rotations_l2": (L.rotations_l2, (J, 3, 3), lambda e: float((e**2).sum()), True),
    "betas_l2": (L.betas_l2, (10,), lambda e: float((e**2).sum()), False),
    "vertices_l1": (L.vertices_l1, (50, 3), lambda e: float(np.abs(e).sum()), False),
}
"""Losses of samples against a truth: function, shape of one sample, its error, whether joints have weights."""


@pytest.mark.parametrize("name", ONES)
class TestSampleLosses:
    def test_is_the_sum_over_joints_and_the_mean_over_samples(self, name: str) -> None:
        loss, shape, single, _ = ONES[name]
        estimate, true = draw(B, S, *shape), draw(B, *shape)
        expected = np.mean([single((estimate[b, s] - true[b]).numpy()) for b, s in product(range(B), range(S))])
        assert loss(estimate, true) == pytest.approx(expected)

    def test_weights_leave_examples_out(self, name: str) -> None:
        loss, shape, single, _ = ONES[name]
        estimate, true = draw(B, S, *shape), draw(B, *shape)
        expected = sum(single((estimate[1, s] - true[1]).numpy()) for s in range(S)) / (B * S)
        for weight in (torch.tensor([0.0, 1.0, 0.0]), torch.tensor([False, True, False])):
            assert loss(estimate, true, weight) == pytest.approx(expected)

    def test_weights_leave_joints_out(self, name: str) -> None:
        loss, shape, _, has_joints = ONES[name]
        estimate, true = draw(B, S, *shape), draw(B, *shape)
        weight = (draw(B, shape[0], seed=3) > 0).double()
        if not has_joints:
            with pytest.raises(ValueError, match="does not fit errors"):
                loss(estimate, true, weight)
            return
        value = loss(estimate, true, weight)
        moved = estimate + 5 * draw(B, S, *shape, seed=4) * (1 - weight).reshape(B, 1, -1, *[1] * (len(shape) - 1))
        if name == "joints_l1":
            moved[:, :, 0] = estimate[:, :, 0]  # the root moves every joint
        torch.testing.assert_close(loss(moved, true, weight), value)
        # Linear in the weights: those of the others give the rest.
        torch.testing.assert_close(value + loss(estimate, true, 1 - weight), loss(estimate, true))

    def test_zero_at_the_truth_with_zero_gradient(self, name: str) -> None:
        loss, shape, _, _ = ONES[name]
        true = draw(B, *shape).float()
        estimate = true[:, None].repeat(1, S, *[1] * len(shape)).requires_grad_()
        value = loss(estimate, true)
        value.backward()
        assert value == 0
        assert not estimate.grad.any()

    def test_no_weight_gives_exactly_nothing(self, name: str) -> None:
        loss, shape, _, has_joints = ONES[name]
        for weight in (torch.zeros(B), torch.zeros(B, shape[0]))[: 1 + has_joints]:
            estimate = draw(B, S, *shape).float().requires_grad_()
            value = loss(estimate, torch.zeros(B, *shape), weight)
            value.backward()
            assert value == 0
            assert not estimate.grad.any()

    def test_gradient_and_order_of_samples(self, name: str) -> None:
        loss, shape, _, _ = ONES[name]
        shape = (min(shape[0], 4), *shape[1:])
        estimate, true = draw(2, 3, *shape).requires_grad_(), draw(2, *shape)
        assert torch.autograd.gradcheck(lambda x: loss(x, true, torch.tensor([1.0, 0.5])), estimate)
        torch.testing.assert_close(loss(estimate[:, [2, 0, 1]], true), loss(estimate, true))

    def test_no_samples_give_zero_and_a_missing_axis_is_refused(self, name: str) -> None:
        loss, shape, _, _ = ONES[name]
        assert loss(torch.zeros(B, 0, *shape), torch.zeros(B, *shape)) == 0
        with pytest.raises(ValueError, match="one more axis"):
            loss(torch.zeros(B, *shape), torch.zeros(B, *shape))


def test_project_to_crop_is_the_cameras_projection() -> None:
    from hmr_prob_ros.camera import Camera

    camera = Camera(640, 480, 500.0, 500.0, 300.0, 250.0)
    points = draw(2, S, K, 3) + torch.tensor([0.0, 0.0, 6.0])
    box = torch.tensor([[0.05, -0.1, 0.4], [-0.2, 0.0, 0.7]], dtype=torch.float64)
    pixels = camera.project(points.numpy())
    for b in range(2):
        centre = box[b, :2].numpy() * 500 + (300, 250)
        expected = (pixels[b] - centre) / (box[b, 2].item() * 500 / 2)
        np.testing.assert_allclose(L.project_to_crop(points, box)[b], expected, atol=1e-5)
    assert L.project_to_crop(points[:, 0], box).shape == (2, K, 2)
    assert torch.autograd.gradcheck(L.project_to_crop, (points[:, :2, :3].requires_grad_(), box.requires_grad_()))


def test_project_to_crop_stays_finite_at_the_camera() -> None:
    points = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, -3.0], [1.0, 0.0, 0.1]]]).requires_grad_()
    projected = L.project_to_crop(points, torch.tensor([[0.0, 0.0, 2.0]]))
    torch.testing.assert_close(projected[0, :, 0], torch.full((3,), 10.0))
    projected.sum().backward()
    assert torch.isfinite(points.grad).all()
    assert not points.grad[0, 1, 2]


def test_joints_move_to_the_root_unless_told_otherwise() -> None:
    true, joints = draw(B, J, 3), draw(B, S, J, 3)
    shift = draw(B, S, 1, 3, seed=1)
    torch.testing.assert_close(L.joints_l1(joints + shift, true), L.joints_l1(joints, true))
    torch.testing.assert_close(L.joints_l1(joints, true + shift[:, 0]), L.joints_l1(joints, true))
    assert L.joints_l1(true[:, None] + 0.1, true, root=None) == pytest.approx(0.1 * 72)
    assert L.joints_l1(joints, true, root=5) == pytest.approx(
        float(np.abs((joints - joints[:, :, 5:6]) - (true - true[:, 5:6])[:, None]).sum() / (B * S))
    )


def test_place_is_relative_to_the_distance() -> None:
    true = draw(B, 3) + torch.tensor([0.0, 0.0, 8.0])
    pelvis = true[:, None] + 0.3 * draw(B, S, 3, seed=1)
    errors = np.abs((pelvis - true[:, None]).numpy()).sum(-1) / true[:, None, 2].numpy()
    assert L.place_l1(pelvis, true) == pytest.approx(errors.mean())
    assert L.place_l1(pelvis, true, torch.tensor([0.0, 1.0, 0.0])) == pytest.approx(errors[1].sum() / errors.size)
    torch.testing.assert_close(L.place_l1(5 * pelvis, 5 * true), L.place_l1(pelvis, true))
    with pytest.raises(ValueError, match="one more axis"):
        L.place_l1(true, true)


def test_keypoints_clamp() -> None:
    points = torch.tensor([[[[3.0, -4.0], [0.5, 0.25]]]], requires_grad=True)
    loss = L.keypoints_l1(points, torch.zeros(1, 2, 2), clamp=2.0)
    assert loss.item() == pytest.approx(2.75)
    loss.backward()
    assert points.grad.tolist() == [[[[0, 0], [1, 1]]]]


def test_rotations_measure_the_angle() -> None:
    true, estimate = rotations(B, J), rotations(B, S, J, seed=1)
    between = Rotation.from_matrix((true[:, None].mT @ estimate).reshape(-1, 3, 3).numpy()).magnitude()
    assert L.rotations_l2(estimate, true) == pytest.approx(4 * (1 - np.cos(between)).sum() / (B * S))


def test_orthonormality_is_zero_on_rotations_and_a_mean() -> None:
    matrices = rotations(5, J)
    pose6d = torch.cat((matrices[..., 0], matrices[..., 1]), -1).reshape(5, 144)
    assert L.orthonormality(pose6d) < 1e-12
    # A^T A = 4 I: two of four entries are 3 too large.
    assert L.orthonormality(2 * pose6d) == pytest.approx(4.5)
    random = draw(2, 3, 144)
    columns = random.reshape(-1, 2, 3).numpy()
    expected = np.mean([(a @ a.T - np.eye(2)) ** 2 for a in columns])
    assert L.orthonormality(random) == pytest.approx(expected)
    assert torch.autograd.gradcheck(L.orthonormality, random[:, :1].requires_grad_())


def test_adversarial_losses() -> None:
    real, fake = draw(6, 25), draw(B, S, 25)
    assert L.generator_loss(fake) == pytest.approx(sum((x - 1) ** 2 for x in fake.flatten().tolist()) / B)
    expected = ((real.numpy() - 1) ** 2).sum(1).mean() + (fake.numpy() ** 2).sum(2).mean()
    assert L.discriminator_loss(real, fake) == pytest.approx(expected)
    assert L.generator_loss(torch.ones(B, S, 25)) == 0
    assert L.discriminator_loss(torch.ones(B, 25), torch.zeros(B, S, 25)) == 0
    assert torch.autograd.gradcheck(L.discriminator_loss, (real.requires_grad_(), fake.requires_grad_()))
    # The best answer of a discriminator that sees real and fake scores alike is one half.
    score = torch.full((1, 25), 0.5, requires_grad=True)
    L.discriminator_loss(score, score[:, None]).backward()
    assert not score.grad.any()


class TestBestOfM:
    def test_is_the_smallest_norm(self) -> None:
        joints, true = draw(B, 25, J, 3), draw(B, J, 3)
        loss, index = L.best_of_m(joints, true)
        relative = (joints - joints[:, :, :1]).numpy() - (true - true[:, :1]).numpy()[:, None]
        norms = np.linalg.norm(relative.reshape(B, 25, -1), axis=-1)
        np.testing.assert_allclose(loss, norms.min(axis=1))
        assert index.tolist() == norms.argmin(axis=1).tolist()
        squared, same = L.best_of_m(joints, true, squared=True)
        np.testing.assert_allclose(squared, (relative**2).mean(axis=(-1, -2)).min(axis=1))
        assert same.tolist() == index.tolist()
        absolute, _ = L.best_of_m(joints, true, root=None)
        np.testing.assert_allclose(absolute, (joints - true[:, None]).flatten(2).norm(dim=-1).amin(dim=1))

    @pytest.mark.parametrize("squared", [False, True])
    def test_only_the_best_head_learns(self, squared: bool) -> None:
        joints, true = draw(B, 7, J, 3).requires_grad_(), draw(B, J, 3)
        loss, index = L.best_of_m(joints, true, squared=squared)
        loss.sum().backward()
        learns = joints.grad.flatten(2).any(dim=-1)
        assert learns.sum(dim=1).tolist() == [1] * B
        assert learns.int().argmax(dim=1).tolist() == index.tolist()
        small = draw(2, 3, 4, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: L.best_of_m(x, true[:2, :4], squared=squared)[0], small)

    def test_follows_the_order_of_heads_and_not_the_root(self) -> None:
        joints, true = draw(B, 7, J, 3), draw(B, J, 3)
        loss, index = L.best_of_m(joints, true)
        order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
        shuffled, place = L.best_of_m(joints[:, order] + draw(B, 7, 1, 3), true + 1)
        torch.testing.assert_close(shuffled, loss)
        assert order[place].tolist() == index.tolist()

    def test_a_perfect_head_and_unknown_joints(self) -> None:
        true = draw(B, J, 3).float()
        joints = draw(B, 5, J, 3).float()
        joints[:, 3] = true
        joints.requires_grad_()
        loss, index = L.best_of_m(joints, true)
        loss.sum().backward()
        assert index.tolist() == [3] * B
        assert not loss.any()
        assert not joints.grad.any()
        known = torch.ones(B, J)
        known[:, 9] = 0
        joints = joints.detach().clone()
        joints[:, 3, 9] += 10
        assert not L.best_of_m(joints, true, weight=known)[0].any()
        assert not L.best_of_m(joints, true, weight=torch.zeros(B))[0].any()


def test_kl_is_that_of_torch() -> None:
    from torch.distributions import Independent, Normal, kl_divergence

    mean, log_sigma = draw(B, 6), draw(B, 6, seed=1)
    q = Independent(Normal(mean, log_sigma.exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert L.kl_standard_normal(mean, log_sigma) == pytest.approx(kl_divergence(q, p).mean().item())
    assert torch.autograd.gradcheck(L.kl_standard_normal, (mean.requires_grad_(), log_sigma.requires_grad_()))
    assert L.kl_standard_normal(torch.zeros(2, 6), torch.zeros(2, 6)) == 0
    # Near the prior it is mu^2/2 + ln(sigma)^2, far below float32's rounding of one.
    assert L.kl_standard_normal(torch.zeros(1, 1), torch.tensor([[1e-5]])) == pytest.approx(1e-10, rel=1e-3)


def all_losses(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every loss of this file, of inputs rounded to bfloat16 and given in ``dtype``."""

    def r(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return draw(*shape, scale=scale).bfloat16().to(dtype)

    box = torch.tensor([[0.0, 0.0, 0.5]]).expand(B, 3).to(dtype)
    return {
        "project": L.project_to_crop(r(B, S, K, 3) + 3, box).sum(),
        **{n: loss(r(B, S, *shape), r(B, *shape)) for n, (loss, shape, _, _) in ONES.items()},
        "orthonormality": L.orthonormality(r(B, S, 144)),
        "generator": L.generator_loss(r(B, S, 25)),
        "discriminator": L.discriminator_loss(r(B, 25), r(B, S, 25)),
        "best_of_m": L.best_of_m(r(B, S, J, 3), r(B, J, 3))[0].sum(),
        "kl": L.kl_standard_normal(r(B, 8), r(B, 8)),
    }


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)]
)
def test_half_precision_and_autocast_cost_no_digits(dtype: torch.dtype, autocast: bool) -> None:
    exact = all_losses(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rounded = all_losses(dtype)
    for name, value in rounded.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(exact[name].item(), rel=1e-4), name
