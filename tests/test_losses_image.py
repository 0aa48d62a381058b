"""MMD, person mask and their targets against loops in numpy over points and pixels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")

from hmr_prob_ros.skeleton import KEYPOINT_NAMES  # noqa: E402
from hmr_prob_ros.training import losses as L  # noqa: E402

B, S, K, T = 3, 4, 23, 5


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng((seed, *shape)).standard_normal(shape) * scale)


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return sum(w * w / (w * w + ((a - b) ** 2).sum()) for w in (0.05, 0.2, 0.9))


def mmd_by_loops(s: np.ndarray, t: np.ndarray, unbiased: bool) -> float:
    def within(x: np.ndarray) -> float:
        values = [kernel(a, b) for (i, a), (j, b) in product(enumerate(x), enumerate(x)) if i != j or not unbiased]
        return float(np.mean(values))

    return within(s) + within(t) - 2 * float(np.mean([kernel(a, b) for a, b in product(s, t)]))


class TestMMD:
    def test_number_to_check_against(self) -> None:
        samples = torch.tensor([[0.0, 0.0], [0.1, 0.0]], dtype=torch.float64)[None, :, None]
        target = torch.tensor([[0.0, 0.1], [0.2, 0.2]], dtype=torch.float64)[None, :, None]
        assert L.mmd(samples, target) == pytest.approx(1.4862849422887, abs=1e-12)

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_is_that_of_loops_over_the_pairs_in_use(self, unbiased: bool) -> None:
        samples, target = draw(B, S, 5, 2, scale=0.4), draw(B, T, 5, 2, scale=0.4)
        use = draw(B, 5) > 0
        values = np.array(
            [
                [mmd_by_loops(samples[b, :, j].numpy(), target[b, :, j].numpy(), unbiased) for j in range(5)]
                for b in range(B)
            ]
        )
        assert L.mmd(samples, target, use, unbiased) == pytest.approx(values[use.numpy()].mean())
        assert L.mmd(samples, target, None, unbiased) == pytest.approx(values.mean())
        assert L.mmd(samples, target, use, unbiased, over_all=True) == pytest.approx(
            np.where(use.numpy(), values, 0).mean()
        )

    def test_laws(self) -> None:
        samples, target = draw(B, S, K, 2, scale=0.3), draw(B, S, K, 2, seed=1, scale=0.3)
        value = L.mmd(samples, target)
        assert value > 0
        torch.testing.assert_close(L.mmd(target, samples), value)
        torch.testing.assert_close(L.mmd(samples[:, [2, 0, 3, 1]], target[:, [1, 3, 0, 2]]), value)
        torch.testing.assert_close(L.mmd(samples + 0.7, target + 0.7), value)
        assert L.mmd(samples, samples[:, [3, 2, 1, 0]]) == pytest.approx(0, abs=1e-12)
        # Another joint's samples say nothing of this joint's.
        apart = torch.stack([L.mmd(samples[:, :, [k]], target[:, :, [k]]) for k in range(K)]).mean()
        torch.testing.assert_close(apart, value)

    def test_unbiased_is_zero_on_average_for_equal_distributions(self) -> None:
        samples, target = draw(400, 10, 5, 2, scale=0.3), draw(400, 10, 5, 2, seed=1, scale=0.3)
        assert abs(L.mmd(samples, target, unbiased=True)) < 0.01
        assert L.mmd(samples, target) > 0.1

    def test_gradient_also_where_samples_meet(self) -> None:
        samples, target = draw(2, 3, 2, 2, scale=0.1).requires_grad_(), draw(2, 4, 2, 2, scale=0.1)
        use = torch.tensor([[True, False], [True, True]])
        for unbiased in (False, True):
            assert torch.autograd.gradcheck(lambda x, u=unbiased: L.mmd(x, target, use, u), samples)
        same = torch.full((2, 3, 2, 2), 0.25, requires_grad=True)
        L.mmd(same, torch.full((2, 3, 2, 2), 0.25)).backward()
        assert not same.grad.any()

    def test_descent_takes_the_samples_to_the_target(self) -> None:
        target = torch.tensor([[-0.4, 0.0], [0.4, 0.0]]).repeat(6, 1)[None, :, None]
        samples = (0.05 * draw(1, 12, 1, 2)).requires_grad_()
        optimizer = torch.optim.Adam([samples], lr=0.03)
        for _ in range(300):
            optimizer.zero_grad()
            L.mmd(samples, target).backward()
            optimizer.step()
        found = samples.detach()[0, :, 0]
        assert (found[:, 0] > 0).sum() == 6
        assert torch.cdist(found, target[0, :, 0].double()).amin(dim=1).max() < 0.1

    def test_nothing_in_use_and_too_few_samples(self) -> None:
        samples = draw(2, 3, 4, 2).float().requires_grad_()
        for over_all in (False, True):
            value = L.mmd(samples, torch.zeros(2, 3, 4, 2), torch.zeros(2, 4, dtype=torch.bool), over_all=over_all)
            value.backward()
            assert value == 0
            assert not samples.grad.any()
        with pytest.raises(ValueError, match="draw more samples"):
            L.mmd(samples[:, :1], torch.zeros(2, 3, 4, 2), unbiased=True)


class TestMMDTarget:
    @pytest.mark.parametrize("joints", [23, 17])
    def test_is_the_papers_rule(self, joints: int) -> None:
        rng = np.random.default_rng(0)
        heatmap = torch.as_tensor(rng.uniform(-1, 1, (64, T, joints, 2)))
        peak = torch.as_tensor(rng.uniform(0, 1, (64, joints)))
        true = torch.as_tensor(rng.uniform(-1.4, 1.4, (64, joints, 2)))
        target, use = L.mmd_target(heatmap, peak, true)
        movable = ("elbow", "wrist", "knee", "ankle")
        seen = set()
        for b, j in product(range(64), range(joints)):
            articulated = any(word in KEYPOINT_NAMES[j] for word in movable)
            inside = bool((true[b, j].abs() <= 1).all())
            height = peak[b, j].item()
            assert use[b, j] == (inside and (articulated or height >= 0.5))
            if articulated and 0.15 < height < 0.7 and inside:
                assert torch.equal(target[b, :, j], heatmap[b, :, j])
            else:
                assert torch.equal(target[b, :, j], true[b, j].expand(T, 2))
            seen.add((articulated, inside, height < 0.15, height < 0.5, height < 0.7))
        assert len(seen) == 16

    def test_articulated_are_eight(self) -> None:
        assert sum(L.ARTICULATED) == 8
        assert [n for n, a in zip(KEYPOINT_NAMES, L.ARTICULATED) if a][:2] == ["left_elbow", "right_elbow"]

    def test_unlabelled_places_and_the_codes_first_target(self) -> None:
        heatmap, peak, true = torch.rand(2, T, K, 2), torch.full((2, K), 0.4), torch.zeros(2, K, 2)
        known = torch.ones(2, K, dtype=torch.bool)
        known[0, 7] = False
        target, use = L.mmd_target(heatmap, peak, true, known, true_first=True)
        assert not use[0, 7]
        assert use[1, 7]
        assert not target[:, 0].any()
        assert torch.equal(target[1, 1:, 7], heatmap[1, 1:, 7])

    def test_invisible(self) -> None:
        peak, true = torch.tensor([[0.49, 0.5, 0.9, 0.9]]), torch.tensor([[[0.0, 0], [1, -1], [1.01, 0], [0, -2]]])
        assert L.invisible_keypoints(peak, true).tolist() == [[True, False, True, True]]


def random_masks(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((count, height, width))
    return ndimage.gaussian_filter(noise, (0, 3, 3)) > 0.02


class TestInsideMask:
    def test_is_the_distance_to_the_nearest_pixel_centre(self) -> None:
        mask = random_masks(2, 24, 32)
        points = np.random.default_rng(1).uniform(-1.05, 1.05, (2, 300, 2))
        inside = L.inside_mask(torch.as_tensor(points), torch.as_tensor(mask)).numpy()
        for b in range(2):
            rows, columns = np.nonzero(mask[b])
            place = (points[b] + 1) / 2 * (32, 24) - 0.5
            nearest = np.hypot(place[:, :1] - columns, place[:, 1:] - rows).min(axis=1)
            np.testing.assert_array_equal(inside[b], nearest < 0.71)
        assert 0.2 < inside.mean() < 0.8

    def test_every_place_of_a_set_pixel_is_inside_and_far_ones_are_not(self) -> None:
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[0, 10, 50] = True  # row 10, column 50
        fine = (torch.arange(2560, dtype=torch.float64) + 0.5) / 1280 - 1
        x, y = torch.meshgrid(fine[1960:2080], fine[360:480], indexing="ij")
        inside = L.inside_mask(torch.stack((x, y), -1)[None], mask)[0]
        own = (x >= 2 * 50 / 64 - 1) & (x <= 2 * 51 / 64 - 1) & (y >= 2 * 10 / 64 - 1) & (y <= 2 * 11 / 64 - 1)
        assert inside[own].all()
        # A circle round the square pixel: area pi 0.71^2 pixels of 40 x 40 places.
        assert inside.sum() == pytest.approx(np.pi * 0.71**2 * 1600, rel=0.01)

    def test_shapes_odd_places_and_errors(self) -> None:
        mask = torch.ones(2, 8, 8, dtype=torch.bool)
        assert L.inside_mask(torch.zeros(2, S, K, 2), mask).shape == (2, S, K)
        assert L.inside_mask(torch.zeros(2, 2), mask).tolist() == [True, True]
        odd = torch.tensor([[float("nan"), 0], [float("inf"), 0], [-1e30, 1e30], [1, 1], [1.1, 0]])
        assert L.inside_mask(odd[None], mask[:1]).tolist() == [[False, False, False, True, False]]
        assert not L.inside_mask(torch.zeros(2, 5, 2), ~mask).any()
        with pytest.raises(ValueError, match="same B"):
            L.inside_mask(torch.zeros(3, 5, 2), mask)
        with pytest.raises(ValueError, match="tolerance"):
            L.inside_mask(torch.zeros(2, 5, 2), mask, tolerance=2.0)


def mask_loss_by_loops(
    points: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    invisible: np.ndarray,
    use: np.ndarray,
    any_joint: bool,
    true: np.ndarray | None,
) -> float:
    def on_mask(place: np.ndarray, b: int) -> bool:
        rows, columns = np.nonzero(mask[b])
        x, y = (place + 1) / 2 * mask.shape[:0:-1] - 0.5
        return bool(np.hypot(x - columns, y - rows).min() < 0.71)

    total = 0.0
    for b, s, j in product(*map(range, points.shape[:3])):
        u = points[b, s, j]
        if not (use[b] and invisible[b, j]) or np.abs(u).max() > 1 or on_mask(u, b):
            continue
        joints = range(points.shape[2]) if any_joint else [j]
        places = [t for k in joints for t in target[b, :, k] if on_mask(t, b)]
        places += [] if true is None else [true[b, k] for k in joints]
        total += min((np.abs(u - t).sum() for t in places), default=0.0)
    return total / (points.shape[0] * points.shape[1])


class TestMaskLoss:
    @staticmethod
    def case(seed: int = 0) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed)
        return {
            "points": torch.as_tensor(rng.uniform(-1.3, 1.3, (4, 6, 5, 2))),
            "target": torch.as_tensor(rng.uniform(-1.1, 1.1, (4, 3, 5, 2))),
            "mask": torch.as_tensor(random_masks(4, 64, 64, seed)),
            "invisible": torch.as_tensor(rng.uniform(size=(4, 5)) < 0.7),
            "use": torch.tensor([True, True, False, True]),
        }

    @pytest.mark.parametrize("any_joint", [False, True])
    @pytest.mark.parametrize("with_true", [False, True])
    def test_is_that_of_loops(self, any_joint: bool, with_true: bool) -> None:
        case = self.case()
        true = draw(4, 5, 2, scale=0.5) if with_true else None
        loss = L.mask_loss(**case, any_joint=any_joint, true=true)
        arrays = {name: tensor.numpy() for name, tensor in case.items()}
        expected = mask_loss_by_loops(**arrays, any_joint=any_joint, true=None if true is None else true.numpy())
        assert expected > 0
        assert loss == pytest.approx(expected)

    @pytest.mark.parametrize("any_joint", [False, True])
    def test_gradient_pulls_what_misses_the_mask_and_nothing_else(self, any_joint: bool) -> None:
        case = self.case(1)
        points = case.pop("points").requires_grad_()
        assert torch.autograd.gradcheck(lambda x: L.mask_loss(x, **case, any_joint=any_joint), points, atol=1e-6)
        L.mask_loss(points, **case, any_joint=any_joint).backward()
        with torch.no_grad():
            pulled = L.inside_crop(points) & ~L.inside_mask(points, case["mask"])
            pulled &= case["invisible"][:, None] & case["use"][:, None, None]
            if not any_joint:
                pulled &= L.inside_mask(case["target"], case["mask"]).any(dim=1, keepdim=True)
        # The slope of an L1 distance averaged over B S.
        assert torch.equal(points.grad.abs() > 0, pulled[..., None].expand_as(points))
        torch.testing.assert_close(points.grad.abs(), pulled[..., None].expand_as(points).double() / 24)

    def test_a_step_down_the_gradient_comes_nearer(self) -> None:
        case = self.case(2)
        points = case.pop("points").requires_grad_()
        before = L.mask_loss(points, **case)
        before.backward()
        assert L.mask_loss(points.detach() - 0.1 * points.grad, **case) < before

    @pytest.mark.parametrize("any_joint", [False, True])
    def test_nothing_to_do_is_exactly_zero(self, any_joint: bool) -> None:
        for change in (
            {"use": torch.zeros(4, dtype=torch.bool)},
            {"invisible": torch.zeros(4, 5, dtype=torch.bool)},
            {"mask": torch.ones(4, 64, 64, dtype=torch.bool)},
            {"mask": torch.zeros(4, 64, 64, dtype=torch.bool)},  # no target lies on anybody
            {"target": torch.full((4, 3, 5, 2), 3.0)},
        ):
            case = self.case() | change
            points = case.pop("points").float().requires_grad_()
            loss = L.mask_loss(points, **case, any_joint=any_joint)
            loss.backward()
            assert loss == 0
            assert not points.grad.any()

    def test_order_of_samples_and_batches_do_not_matter(self) -> None:
        case = self.case()
        loss = L.mask_loss(**case)
        shuffled = case | {"points": case["points"][:, [5, 2, 0, 1, 4, 3]], "target": case["target"][:, [2, 0, 1]]}
        torch.testing.assert_close(L.mask_loss(**shuffled), loss)
        order = [2, 0, 3, 1]
        torch.testing.assert_close(L.mask_loss(**{k: v[order] for k, v in case.items()}), loss)
        case.pop("use")
        apart = [L.mask_loss(**{k: v[b : b + 1] for k, v in case.items()}) for b in range(4)]
        torch.testing.assert_close(torch.stack(apart).mean(), L.mask_loss(**case))

    @pytest.mark.parametrize("any_joint", [False, True])
    def test_size_of_the_paper(self, any_joint: bool) -> None:
        points, target = draw(64, 25, K, 2, scale=0.5).float().requires_grad_(), draw(64, 25, K, 2, scale=0.5).float()
        mask = torch.as_tensor(random_masks(64, 64, 64))
        L.mask_loss(points, target, mask, torch.ones(64, K, dtype=torch.bool), any_joint=any_joint).backward()
        assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_and_autocast_cost_no_digits(dtype: torch.dtype, autocast: bool) -> None:
    mask, invisible = torch.as_tensor(random_masks(B, 64, 64)), torch.ones(B, K, dtype=torch.bool)

    def losses(dtype: torch.dtype) -> list[torch.Tensor]:
        points, heatmap, true = (
            draw(*shape, scale=0.3).bfloat16().to(dtype) for shape in ((B, S, K, 2), (B, T, K, 2), (B, K, 2))
        )
        target, use = L.mmd_target(heatmap, torch.full((B, K), 0.5).to(dtype), true)
        pulls = [L.mask_loss(points, heatmap, mask, invisible, any_joint=any_joint) for any_joint in (False, True)]
        return [L.mmd(points, target, use), L.mmd(points, target, use, unbiased=True), *pulls]

    exact = losses(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rounded = losses(dtype)
    for value, true in zip(rounded, exact):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(true.item(), rel=1e-4)
