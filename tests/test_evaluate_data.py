"""What an evaluation is given: sets, unknown truths, regressed joints, meshes, baselines; and the command."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.joint_sets import H36M_NAMES, JointSet, JointSetError, joint_set  # noqa: E402
from hmr_prob_ros.metrics import mpjpe, pve  # noqa: E402
from hmr_prob_ros.setfile import PoseSet, SetError  # noqa: E402
from hmr_prob_ros.training.baselines import GaussianRoundMode, RandomPoses, mode_deviations  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.sets import examples_from_set  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.evaluate import EvaluationError, evaluate_model  # noqa: E402
from hmr_prob_ros.training.evaluate_command import format_table, main  # noqa: E402
from hmr_prob_ros.training.models import (  # noqa: E402
    CheckpointError,
    FlowConfig,
    FlowPosterior,
    Lifting,
    LiftingConfig,
    Regressor,
    RegressorConfig,
    save_checkpoint,
)
from hmr_prob_ros.training.models.encoder import turn_root  # noqa: E402
from hmr_prob_ros.training.rotations import matrix_to_rotation6d, rotation6d_to_matrix  # noqa: E402

SMALL: dict[str, Any] = {"hidden": 16, "condition": 16, "encoder_width": 16, "encoder_depth": 1, "head_hidden": 16}
quiet: dict[str, Any] = {"progress": False, "timing": False, "threads": 1}


@pytest.fixture(scope="module")
def torch_body(body: Body) -> TorchBody:
    return TorchBody(body)


@pytest.fixture(scope="module")
def examples(torch_body: TorchBody) -> Examples:
    poses = 0.25 * np.random.default_rng(1).standard_normal((30, 24, 3))
    return Synthesizer(torch_body, seed=2)(poses)[:10]


@pytest.fixture(scope="module")
def data(examples: Examples, body: Body) -> PoseSet:
    names = ("joints", "keypoints3d", "rotations", "betas", "translation", "visible")
    return PoseSet(
        keypoints=examples.detected.numpy(),
        intrinsics=examples.intrinsics.numpy(),
        image_size=examples.size.numpy(),
        take=np.full(len(examples), "take"),
        body=body.hash,
        **{name: getattr(examples, name).numpy() for name in names},
    )


@pytest.fixture(scope="module")
def flow(torch_body: TorchBody, examples: Examples) -> FlowPosterior:
    torch.manual_seed(0)
    model = FlowPosterior(FlowConfig(couplings=2, **SMALL), torch_body)
    model.fit_statistics(examples.pose6d.repeat(20, 1) + 0.1 * torch.randn(20 * len(examples), 144))
    return model.eval()


def test_a_set_becomes_the_examples_that_made_it(data: PoseSet, examples: Examples, body: Body) -> None:
    given = examples_from_set(data, body.hash)
    for field in dataclasses.fields(Examples):
        value, true = getattr(given, field.name), getattr(examples, field.name)
        if field.name.startswith("has_"):
            assert value.all(), field.name
        elif true is not None and field.name not in ("state", "index"):
            assert torch.allclose(value.double(), true.double(), atol=2e-5), field.name
    assert (given.visible == examples.visible).all()
    assert given.index.tolist() == list(range(len(data)))


def test_what_a_set_does_not_know(data: PoseSet, body: Body, caplog: pytest.LogCaptureFixture) -> None:
    joints, rotations, keypoints = data.joints.copy(), data.rotations.copy(), data.keypoints.copy()  # type: ignore
    joints[0, 5], joints[1, 0], joints[2] = np.nan, np.nan, np.nan
    rotations[3, 7] = np.nan
    keypoints[4, :, 2] = 0
    partial = dataclasses.replace(data, joints=joints, rotations=rotations, keypoints=keypoints, betas=None)
    given = examples_from_set(partial, body.hash)
    assert given.index.tolist() == [0, 1, 3, 5, 6, 7, 8, 9]  # 2 has no joint, 4 no crop
    assert given.has_joints is not None
    assert not given.has_joints[0, 5]
    assert given.has_joints[0].sum() == 23
    assert given.has_translation.tolist() == [True, False] + [True] * 6  # type: ignore[union-attr]
    assert given.has_pose.tolist() == [True, True, False] + [True] * 5  # type: ignore[union-attr]
    assert not given.has_betas.any()  # type: ignore[union-attr]
    assert torch.equal(given.rotations[2], torch.eye(3).expand(24, 3, 3))
    assert all(
        torch.isfinite(getattr(given, f.name).float()).all()
        for f in dataclasses.fields(Examples)
        if getattr(given, f.name) is not None
    )
    assert not examples_from_set(dataclasses.replace(data, body="other"), body.hash).has_pose.any()  # type: ignore
    assert "another body" in caplog.text
    keypoints[:, :, 2] = 0
    with pytest.raises(SetError, match="two keypoints"):
        examples_from_set(dataclasses.replace(data, keypoints=keypoints))


def test_unknown_truth_is_left_out(flow: FlowPosterior, examples: Examples) -> None:
    part = examples[:6]
    part.has_joints = torch.ones(6, 24, dtype=torch.bool)
    part.has_joints[0, 7:] = False
    part.has_pose = torch.tensor([True] * 5 + [False])
    part.has_translation = torch.tensor([True] * 2 + [False] * 4)
    part.joints = torch.where(part.has_joints[..., None], part.joints, 0.0)
    result = evaluate_model(flow, part, (1, 3), quantised=False, **quiet)
    with torch.no_grad():
        out = flow(part.keypoints, part.box, torch.zeros(6, 1, flow.latent_size))["sample_joints"][:, 0].numpy()
    truth = np.where(part.has_joints[..., None].numpy(), part.joints.numpy(), np.nan)
    assert result["mode"]["mpjpe"] == pytest.approx(1000 * mpjpe(out, truth).mean(), abs=0.01)
    pelvis = np.linalg.norm(out[:2, 0] - truth[:2, 0], axis=-1).mean()
    assert result["absolute"]["mode"]["pelvis"] == pytest.approx(1000 * pelvis, abs=0.01)
    unplaced = part[2:]
    rest = evaluate_model(flow, unplaced, (1,), quantised=False, **quiet)
    assert math.isnan(rest["absolute"]["mode"]["pelvis"])
    assert math.isnan(rest["coverage"]["50%"]["all"])
    assert math.isfinite(rest["coverage_relative"]["50%"]["all"])
    assert math.isnan(rest["keypoints2d"]["mode"])
    part.has_pose = torch.zeros(6, dtype=torch.bool)
    assert math.isnan(evaluate_model(flow, part, (1,), quantised=False, **quiet)["nll"])
    labelled = unplaced[:]
    labelled.true_keypoints = torch.cat((unplaced.keypoints[..., :2], torch.ones(4, 23, 1)), dim=-1)
    assert math.isfinite(evaluate_model(flow, labelled, (1,), quantised=False, **quiet)["keypoints2d"]["mode"])


def test_visible_by_the_detector(flow: FlowPosterior, examples: Examples) -> None:
    part = examples[:4]
    part.keypoints = part.keypoints.clone()
    part.keypoints[..., 2] = 0.2
    truth = evaluate_model(flow, part, (1,), quantised=False, **quiet)
    detector = evaluate_model(flow, part, (1,), quantised=False, visible_by="detector", **quiet)
    assert math.isfinite(truth["spread"]["visible"])
    assert math.isnan(detector["spread"]["visible"])
    assert detector["spread"]["invisible"] == truth["spread"]["all"]


def test_vertices_and_regressed_joints(flow: FlowPosterior, examples: Examples, body: Body, tmp_path: Path) -> None:
    matrix = np.zeros((17, len(body.v_template)))
    still, betas = np.broadcast_to(np.eye(3, dtype=np.float32), (24, 3, 3)), np.zeros(10, np.float32)
    target = joint_set("h36m")(body.joints(still, betas), body.keypoints(still, betas))
    for row, place in zip(matrix, target):
        row[np.argsort(((body.v_template - place) ** 2).sum(axis=1))[:10]] = 0.1
    np.save(tmp_path / "regressor.npy", matrix)
    chosen = JointSet.from_regressor(tmp_path / "regressor.npy", body, "h36m")
    part = examples[:3]
    result = evaluate_model(flow, part, (1, 4), chosen, vertices=True, **quiet)
    with torch.no_grad():
        # The first samples of the seed, whatever their number.
        from hmr_prob_ros.training.evaluate_samples import Source

        latents = Source(flow, chosen, 4, 4, False, "truth", 0).latents(0, 3)
        out = flow(part.keypoints, part.box, latents)
    meshes = body.vertices(*(out[f"sample_{n}"].numpy() for n in ("rotations", "betas", "translation")))
    true = body.vertices(part.rotations.numpy(), part.betas.numpy(), part.translation.numpy())[:, None]
    joints, true_joints = matrix @ meshes, matrix @ true
    errors = 1000 * mpjpe(joints, true_joints)
    vertex = 1000 * pve(meshes, true, joints[..., 0, :], true_joints[..., 0, :])
    assert result["mode"] == {
        "mpjpe": pytest.approx(errors[:, 0].mean(), abs=0.02),
        "pa_mpjpe": pytest.approx(result["mode"]["pa_mpjpe"]),
        "pve": pytest.approx(vertex[:, 0].mean(), abs=0.02),
    }
    assert result["min_of"]["4"]["mpjpe"] == pytest.approx(errors.min(axis=1).mean(), abs=0.02)
    assert result["min_of"]["4"]["pve"] == pytest.approx(vertex.min(axis=1).mean(), abs=0.02)
    flat = FlowPosterior(flow.config, TorchBody(body, mesh=False))
    with pytest.raises(EvaluationError, match="mesh=True"):
        evaluate_model(flat, part, vertices=True, **quiet)


def test_a_method_that_only_knows_joints(torch_body: TorchBody, examples: Examples) -> None:
    torch.manual_seed(0)
    model = Lifting(LiftingConfig(couplings=2, **{k: v for k, v in SMALL.items() if k != "head_hidden"}), torch_body)
    model.fit_statistics(examples.pose6d.repeat(10, 1))
    model.eval()
    result = evaluate_model(model, examples, (1, 5), "h36m", **quiet)
    with torch.no_grad():
        zero = torch.zeros(len(examples), 1, model.latent_size)
        out = model(examples.keypoints, examples.box, zero)["sample_joints17"][:, 0].numpy()
    truth = joint_set("h36m").rooted(examples.joints.numpy(), examples.keypoints3d.numpy())
    assert result["mode"]["mpjpe"] == pytest.approx(1000 * mpjpe(out, truth).mean(), abs=0.01)
    assert result["min_of"]["5"]["mpjpe"] <= result["mode"]["mpjpe"]
    assert math.isfinite(result["quantised"]["5"]["mpjpe"])
    assert math.isnan(result["absolute"]["mode"]["pelvis"])
    assert "lifting" in format_table(result)
    with pytest.raises(JointSetError, match="h36m or lsp"):
        evaluate_model(model, examples, (1,), "smpl", **quiet)
    assert len(H36M_NAMES) == out.shape[1]


def test_random_poses(flow: FlowPosterior, examples: Examples) -> None:
    pool = matrix_to_rotation6d(rotation6d_to_matrix(torch.randn(7, 24, 6))).flatten(1)
    model = RandomPoses(flow, pool)
    latents = model.latents(len(examples), 300, torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(examples.keypoints, examples.box, latents)
        single = flow(examples.keypoints, examples.box, torch.zeros(len(examples), 1, flow.latent_size))
    for name in ("joints", "rotations", "betas", "translation"):
        assert torch.allclose(out[f"sample_{name}"][:, :1], single[f"sample_{name}"], atol=1e-5), name
    assert (out["sample_rotations"][:, :, 0] == single["sample_rotations"][:, :1, 0]).all()
    drawn = out["sample_pose6d"][:, 1:, 6:]
    nearest = torch.cdist(drawn.flatten(0, 1), pool[:, 6:])
    assert nearest.amin(dim=1).max() < 1e-2
    shares = torch.bincount(nearest.argmin(dim=1), minlength=7) / nearest.shape[0]
    assert torch.allclose(shares, torch.full((7,), 1 / 7), atol=0.03)  # every pose as often
    result = evaluate_model(model, examples, (1, 25), **quiet)
    assert result["mode"] == evaluate_model(flow, examples, (1,), **quiet)["mode"]
    assert result["min_of"]["25"]["mpjpe"] <= result["mode"]["mpjpe"]
    with pytest.raises(ValueError, match="144"):
        RandomPoses(flow, torch.zeros(3, 132))


def test_gaussian_round_the_mode(flow: FlowPosterior, examples: Examples) -> None:
    deviations = 0.01 + 0.05 * torch.rand(144, generator=torch.Generator().manual_seed(0))
    model = GaussianRoundMode(flow, deviations)
    part = examples[:2]
    with torch.no_grad():
        condition = model.condition(part.keypoints, part.box)
        pose = part.pose6d[:, None] + 0.1 * torch.randn(2, 3, 144)
        given = model.log_prob(pose, condition)
        single = flow(part.keypoints, part.box, torch.zeros(2, 1, flow.latent_size))["sample_rotations"]
    mode = turn_root(matrix_to_rotation6d(single).flatten(2), condition.turn)
    law = torch.distributions.Normal(mode, deviations)
    expected = law.log_prob(turn_root(pose, condition.turn)).sum(-1)
    assert torch.allclose(given, expected, rtol=1e-4)
    with torch.no_grad():
        latents = model.latents(2, 50, torch.Generator().manual_seed(3))
        out = model(part.keypoints, part.box, latents)
    drawn = turn_root(mode + deviations * latents, condition.turn.transpose(-1, -2)).unflatten(-1, (24, 6))
    assert torch.allclose(out["sample_rotations"], rotation6d_to_matrix(drawn), atol=1e-5)
    assert torch.allclose(out["sample_rotations"][:, :1], single, atol=1e-5)
    joints, _ = flow.body(out["sample_rotations"], out["sample_betas"], out["sample_translation"])
    assert torch.allclose(joints, out["sample_joints"], atol=1e-5)
    result = evaluate_model(model, part, (1, 5), **quiet)
    assert math.isfinite(result["nll"])
    with pytest.raises(ValueError, match="above 0"):
        GaussianRoundMode(flow, torch.zeros(144))


def test_deviations_are_the_residuals(flow: FlowPosterior, examples: Examples) -> None:
    part = examples[:]
    part.has_pose = torch.tensor([True] * 8 + [False] * 2)
    given = mode_deviations(flow, [part[:4], part[4:]])
    with torch.no_grad():
        condition = flow.condition(part.keypoints, part.box)
        rotations = flow(part.keypoints, part.box, torch.zeros(10, 1, flow.latent_size))["sample_rotations"]
    mode = turn_root(matrix_to_rotation6d(rotations).flatten(2), condition.turn)
    residual = (turn_root(part.pose6d[:, None], condition.turn) - mode)[:8, 0]
    assert torch.allclose(given, (residual.square().mean(0) + 0.005**2).sqrt(), atol=1e-5)
    # They are the deviations of largest likelihood.
    pose = part.pose6d[:8, None]
    best = _nll(GaussianRoundMode(flow, given), part[:8], pose)
    assert best < _nll(GaussianRoundMode(flow, 1.2 * given), part[:8], pose)
    assert best < _nll(GaussianRoundMode(flow, 0.8 * given), part[:8], pose)


@torch.no_grad()
def _nll(model: GaussianRoundMode, part: Examples, pose: torch.Tensor) -> float:
    return -float(model.log_prob(pose, model.condition(part.keypoints, part.box)).mean())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"counts": ()}, "above 0"),
        ({"counts": (0, 5)}, "above 0"),
        ({"visible_by": "eye"}, "'truth' or 'detector'"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: dict[str, Any], text: str, flow: FlowPosterior, examples: Examples
) -> None:
    with pytest.raises(EvaluationError, match=text):
        evaluate_model(flow, examples, **arguments, **quiet)


def test_nothing_to_evaluate(flow: FlowPosterior, examples: Examples) -> None:
    with pytest.raises(EvaluationError, match="no examples"):
        evaluate_model(flow, [], **quiet)
    blind = examples[:2]
    blind.has_joints = torch.zeros(2, 24, dtype=torch.bool)
    flow.train()
    with pytest.raises(EvaluationError, match="true joint"):
        evaluate_model(flow, blind, (1,), quantised=False, **quiet)
    assert flow.training  # as it was
    flow.eval()


def test_command(
    data: PoseSet, torch_body: TorchBody, body: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Regressor(RegressorConfig(**SMALL), torch_body)
    save_checkpoint(tmp_path / "model.pt", model, {"body_hash": body.hash})
    data.save(tmp_path / "set.npz")
    common = [str(tmp_path / "model.pt"), "--set", str(tmp_path / "set.npz"), "--counts", "1", "5", "--quiet"]
    assert main([*common, "--json", str(tmp_path / "out" / "figures.json"), "--limit", "4"]) == 0
    result = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert (result["model"], result["count"], result["heads"]) == ("regressor", 4, 1)
    assert result["quantised"]["1"] == result["min_of"]["1"] == result["mode"]
    assert result["min_of"]["5"]["mpjpe"] is None
    assert result["ms"]["1"] > 0
    assert main(common[:-1]) == 0
    assert "single answer" in capsys.readouterr().out
    for arguments, text in (
        (common[:1], "--set SET.NPZ or --shards DIR"),
        ([*common, "--device", "nothing"], "cannot be used"),
    ):
        with pytest.raises(EvaluationError, match=text):
            main(arguments)
    with pytest.raises(SystemExit):
        main([*common, "--limit", "0"])
    assert "above 0" in capsys.readouterr().err
    save_checkpoint(tmp_path / "other.pt", model, {"body_hash": "0" * 64})
    with pytest.raises(CheckpointError, match="give the body file"):
        main([str(tmp_path / "other.pt"), *common[1:]])
