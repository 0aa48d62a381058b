"""Biggs' total loss of the methods that train one body per example; of M heads: `test_multi_head.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import random_people  # noqa: E402

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.noise import VISIBLE  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import LiftingModel, build_model  # noqa: E402

SMALL = {"hidden": 32, "condition": 24, "encoder_width": 32, "encoder_depth": 1, "head_hidden": 16}


@pytest.fixture(scope="module")
def body() -> TorchBody:
    torch.set_num_threads(1)
    return TorchBody(Body.load(), mesh=False)


@pytest.fixture(scope="module")
def examples(body: TorchBody) -> Examples:
    return random_people(body, 16)


def _model(name: str, body: TorchBody, examples: Examples, **changes) -> LiftingModel:
    torch.manual_seed(0)
    model = build_model({"model": name, **SMALL, **changes}, body)
    model.fit_statistics(examples.pose6d)
    return model


@pytest.mark.parametrize("mesh", [True, False])
def test_the_total_loss_by_numpy(body: TorchBody, examples: Examples, mesh: bool) -> None:
    """Equation 8 for one pose, every term written out in numpy with the body of the runtime half."""
    full, few = Body.load(), examples[:3]
    body = TorchBody(full) if mesh else body
    model = _model("mdn", body, examples, components=1)
    weights = LossConfig(
        best_of_m=2.0, best_rotations=3.0, best_betas=4.0, best_vertices=5.0, best_keypoints=6.0, reprojection=7.0
    )
    with torch.no_grad():
        out = {key: value[:, 0].numpy() for key, value in model(few.keypoints, few.box, model.latents(3, 1)).items()}
        terms = {key: float(value) for key, value in model.losses(few, weights).items()}
    truth = {key: getattr(few, key).numpy() for key in ("joints", "rotations", "betas", "keypoints3d", "box", "state")}
    relative = [joints - joints[:, :1] for joints in (out["sample_joints"], truth["joints"])]
    zero = np.zeros((3, 3), np.float32)
    surface = full.vertices if mesh else full.keypoints
    drawn = surface(out["sample_rotations"], out["sample_betas"], zero)
    vertices = np.abs(drawn - surface(truth["rotations"], truth["betas"], zero)).sum((1, 2)) / drawn.shape[1]
    centre, half = truth["box"][:, None, :2], truth["box"][:, None, 2:] / 2
    points = [(p[..., :2] / p[..., 2:] - centre) / half for p in (out["sample_keypoints"], truth["keypoints3d"])]
    keypoints = (((points[0] - points[1]) ** 2).sum(-1) * (truth["state"] == VISIBLE)).sum(1)
    expected = {
        "best_of_m": 2 * np.sqrt(((relative[0] - relative[1]) ** 2).sum((1, 2))),
        "best_rotations": 3 * ((out["sample_rotations"] - truth["rotations"]) ** 2).sum((1, 2, 3)),
        "best_betas": 4 * ((out["sample_betas"] - truth["betas"]) ** 2).sum(1),
        "best_vertices": 5 * vertices,
        "best_keypoints": 6 * keypoints,
        "reprojection": 7 * keypoints,
    }
    assert terms == pytest.approx({key: float(value.mean()) for key, value in expected.items()}, rel=2e-4)


def test_the_total_loss_leaves_out_what_is_unknown(body: TorchBody, examples: Examples) -> None:
    none, weights = (
        torch.zeros(16, dtype=torch.bool),
        LossConfig(best_of_m=1.0, best_rotations=1.0, best_betas=1.0, best_vertices=1.0, reprojection=1.0),
    )
    unknown = replace(examples, has_pose=none, has_betas=none, has_joints=none[:, None].expand(16, 24))
    for name in ("mdn", "cvae"):
        terms = _model(name, body, examples).losses(unknown, weights)
        assert {key for key, value in terms.items() if value > 0} == {"reprojection"}
