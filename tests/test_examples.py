"""Batches of several sources: what one of them does not hold is said in the fields of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import random_people  # noqa: E402

from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import Regressor, RegressorConfig  # noqa: E402
from hmr_prob_ros.training.models.base import true_keypoints  # noqa: E402


@pytest.fixture(scope="module")
def body() -> TorchBody:
    torch.set_num_threads(1)
    return TorchBody(mesh=False)


def _rendered(body: TorchBody) -> Examples:
    """All of six bodies is known, some points are hidden."""
    state = torch.arange(6 * 23).reshape(6, 23) % 3
    mask = torch.ones(6, 4, 4, dtype=torch.bool)
    return replace(random_people(body, 6), state=state, mask=mask, occluded=torch.arange(6) == 2)


def _labelled(body: TorchBody) -> Examples:
    """Four people with labels in the picture; of the last two nothing else is known."""
    people = random_people(body, 4, seed=1)
    posed = torch.tensor([True, True, False, False])
    labels = torch.rand(4, 23, 3)
    labels[..., 2] = labels[..., 2] > 0.3
    labels[..., :2] *= labels[..., 2:]
    return replace(
        people,
        keypoints3d=people.keypoints3d * posed[:, None, None],
        joints=people.joints * posed[:, None, None],
        true_keypoints=labels,
        has_pose=posed,
        has_betas=posed,
        has_joints=posed[:, None].expand(4, 24),
        has_translation=posed,
    )


def test_losses_of_a_mixture_are_the_mean_of_both(body: TorchBody) -> None:
    torch.manual_seed(0)
    rendered, labelled = _rendered(body), _labelled(body)
    model = Regressor(RegressorConfig(hidden=8, condition=8, encoder_width=8, head_hidden=8), body)
    weights = LossConfig(mode_joints=1.0, mode_keypoints=1.0, rotations=1.0, betas_nll=1.0, camera=1.0, translation=1.0)
    both, one, other = (model.losses(e, weights) for e in (Examples.cat([rendered, labelled]), rendered, labelled))
    assert set(both) == set(one) == set(other)
    for name, value in both.items():
        assert float(value) == pytest.approx(float(0.6 * one[name] + 0.4 * other[name]), rel=1e-4), name


def test_a_mixture_knows_what_its_parts_know(body: TorchBody) -> None:
    rendered, labelled = _rendered(body), _labelled(body)
    both = Examples.cat([rendered, labelled])
    assert torch.equal(both.mask[:6], rendered.mask)
    assert torch.equal(both.occluded, torch.cat((rendered.occluded, torch.ones(4, dtype=torch.bool))))
    assert torch.equal(both.whole, torch.tensor([True] * 8 + [False] * 2))
    for part, rows in ((rendered, slice(0, 6)), (labelled, slice(6, 10))):
        for mixed, alone in zip(true_keypoints(both[rows]), true_keypoints(part)):
            torch.testing.assert_close(mixed, alone)
    # Without a label, a whole body tells where a point is; without a body nothing does.
    points, seen = true_keypoints(labelled)
    rays = labelled.keypoints3d[..., :2] / labelled.keypoints3d[..., 2:]
    local = (rays - labelled.box[:, None, :2]) / (labelled.box[:, None, 2:] / 2)
    torch.testing.assert_close(points[:2][seen[:2] == 0], local[:2][seen[:2] == 0])
    assert (points[2:][seen[2:] == 0] == 0).all()
    assert Examples.cat([rendered, rendered]).true_keypoints is None
    assert Examples.cat([labelled, labelled]).mask is None
