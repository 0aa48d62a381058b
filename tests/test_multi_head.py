"""n-quantised best-of-M: which head learns from what, the pose prior and its weights, and quantised heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from hmr_prob_ros.quantize import quantize_heads  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.mocap import load_mocap  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import build_model, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.multi_head import MultiHead, MultiHeadConfig, fit_prior  # noqa: E402
from hmr_prob_ros.training.models.pose_prior import (  # noqa: E402
    PosePrior,
    PriorConfig,
    root_align,
    train_prior,
)
from hmr_prob_ros.training.rotations import axis_angle_to_matrix  # noqa: E402

SMALL = {"hidden": 32, "condition": 24, "encoder_width": 32, "encoder_depth": 1, "head_hidden": 16, "heads": 6}
PRIOR = PriorConfig(hidden=48, couplings=6, dropout=0.0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def torch_body() -> TorchBody:
    return TorchBody(mesh=False)


@pytest.fixture(scope="module")
def examples(torch_body: TorchBody):
    poses = 0.3 * np.random.default_rng(0).standard_normal((24, 24, 3))
    poses[:, 0] = 0
    return Synthesizer(torch_body, seed=0)(poses)[:8]


@pytest.fixture(scope="module")
def poses(test_data: Path) -> dict[str, torch.Tensor]:
    """Rotations of real motion, of takes for training and of others."""
    from hmr_prob_ros.body import Body

    mocap = load_mocap([test_data / "mocap" / "deepmimic.tar.xz"], Body.load(), progress=False)
    split = {name: torch.from_numpy(mocap.select(name).pose) for name in ("train", "test")}
    return {name: axis_angle_to_matrix(value) for name, value in split.items()}


def _model(body: TorchBody, examples, seed: int = 0, **changes) -> MultiHead:
    torch.manual_seed(seed)
    model = MultiHead(MultiHeadConfig(**{**SMALL, **changes}), body)
    model.fit_statistics(examples.pose6d)
    return model


def _joints(body: TorchBody, rotations: torch.Tensor, seed: int = 0) -> torch.Tensor:
    betas = torch.randn(len(rotations), 10, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    return body(rotations, betas, torch.zeros(len(rotations), 3))[0]


def _turn(count: int, seed: int = 0) -> torch.Tensor:
    vectors = 2 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return axis_angle_to_matrix(vectors)


@pytest.fixture(scope="module")
def prior(torch_body: TorchBody, poses: dict[str, torch.Tensor]) -> tuple[PosePrior, torch.Tensor]:
    """A small prior of real poses and its losses."""
    torch.manual_seed(0)
    prior = PosePrior(PRIOR)
    history = train_prior(prior, _joints(torch_body, poses["train"]), 250, 128, rate=3e-3, progress=False)
    return prior, history


# The model.


@pytest.mark.parametrize("refine", [False, True])
def test_heads_are_bodies(torch_body: TorchBody, examples, refine: bool) -> None:
    model = _model(torch_body, examples, refine_translation=refine).eval()
    assert model.heads == 6
    assert model.latent_size == 0
    latents = model.latents(len(examples), 100)
    assert latents.shape == (8, 6, 0)
    out = model(examples.keypoints, examples.box, latents)
    shapes = {
        "joints": (24, 3),
        "keypoints": (23, 3),
        "rotations": (24, 3, 3),
        "betas": (10,),
        "translation": (3,),
        "pose6d": (144,),
        "weight": (),
    }
    assert {key: tuple(value.shape) for key, value in out.items()} == {
        "sample_" + key: (8, 6, *shape) for key, shape in shapes.items()
    }
    joints, surface = torch_body(out["sample_rotations"], out["sample_betas"], out["sample_translation"])
    torch.testing.assert_close(joints, out["sample_joints"], atol=1e-5, rtol=0)
    torch.testing.assert_close(surface, out["sample_keypoints"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out["sample_weight"], torch.full((8, 6), 1 / 6))
    apart = torch.cdist(out["sample_joints"].flatten(2), out["sample_joints"].flatten(2))
    assert (apart + torch.eye(6) > 0.05).all(), "two heads start alike"
    one = model(examples.keypoints[2:3], examples.box[2:3], latents[:1])
    torch.testing.assert_close(one["sample_joints"][0], out["sample_joints"][2], atol=1e-5, rtol=0)


def test_each_head_stands_where_its_camera_says(torch_body: TorchBody, examples) -> None:
    model = _model(torch_body, examples)
    condition = model.condition(examples.keypoints, examples.box)
    shape, camera = model.guesses(condition)
    with torch.no_grad():
        model.network[-1].bias.view(6, -1)[:, -3:] = torch.randn(6, 3)
    _, _, cameras = model.hypotheses(condition, shape, camera)
    pelvis = model(examples.keypoints, examples.box)["sample_joints"][:, :, 0]
    size = examples.box[:, None, 2]
    crop = (pelvis[..., :2] / pelvis[..., 2:] - examples.box[:, None, :2]) / (size[..., None] / 2)
    torch.testing.assert_close(crop, cameras.offset, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.log(pelvis[..., 2] * size), cameras.log_depth, atol=1e-4, rtol=1e-4)
    assert cameras.log_depth.std(1).min() > 0.1


def _head_gradients(model: MultiHead, examples, config: LossConfig) -> torch.Tensor:
    model.zero_grad()
    torch.stack(tuple(model.losses(examples, config).values())).sum().backward()
    return model.network[-1].weight.grad.unflatten(0, (model.heads, -1)).abs().sum((1, 2))


@pytest.mark.parametrize("name", ["best_of_m", "best_rotations", "best_betas", "best_vertices", "best_keypoints"])
def test_only_the_best_head_and_the_first_learn(torch_body: TorchBody, examples, name: str) -> None:
    model = _model(torch_body, examples, seed=1)
    for k in range(4):
        one = examples[k : k + 1]
        out = model(one.keypoints, one.box)
        relative = (out["sample_joints"] - out["sample_joints"][:, :, :1])[0]
        best = int((relative - (one.joints - one.joints[:, :1])).square().sum((-1, -2)).argmin())
        moved = _head_gradients(model, one, LossConfig(**{name: 1.0})) > 0
        assert torch.nonzero(moved).flatten().tolist() == sorted({0, best})


def test_all_heads_learn_from_visible_keypoints_alone(torch_body: TorchBody, examples) -> None:
    model = _model(torch_body, examples)
    assert (_head_gradients(model, examples, LossConfig(reprojection=1.0)) > 0).all()
    unseen = examples[:]
    unseen.state = torch.full_like(examples.state, 2)
    assert (_head_gradients(model, unseen, LossConfig(reprojection=1.0)) == 0).all()


def test_losses_against_their_formulas(torch_body: TorchBody, examples) -> None:
    model = _model(torch_body, examples)
    weights = {"best_of_m": 25.0, "best_rotations": 2.0, "best_betas": 3.0, "best_vertices": 5.0}
    weights |= {"reprojection": 7.0, "best_keypoints": 11.0}
    terms = {key: value.item() for key, value in model.losses(examples, LossConfig(**weights)).items()}
    out = {key: value.detach().numpy() for key, value in model(examples.keypoints, examples.box).items()}
    true = {key: getattr(examples, key).numpy() for key in ("joints", "rotations", "betas", "keypoints3d", "box")}
    seen = (examples.state == 0).numpy()

    def project(points: np.ndarray, box: np.ndarray) -> np.ndarray:
        return (points[:, :2] / points[:, 2:] - box[:2]) / (box[2] / 2)

    expected = dict.fromkeys((*weights, "first_head"), 0.0)
    for b in range(8):
        target = true["joints"][b] - true["joints"][b, 0]
        distance = [np.linalg.norm(joints - joints[0] - target) for joints in out["sample_joints"][b]]
        best = int(np.argmin(distance))
        expected["best_of_m"] += 25 * distance[best] / 8
        expected["first_head"] += 25 * distance[0] / 8
        two_d = [
            np.square(project(points, true["box"][b]) - project(true["keypoints3d"][b], true["box"][b]))[seen[b]].sum()
            for points in out["sample_keypoints"][b]
        ]
        expected["reprojection"] += 7 * np.mean(two_d) / 8
        for head in (best, 0):
            rotations, betas = out["sample_rotations"][b, head], out["sample_betas"][b, head]
            expected["best_rotations"] += 2 * np.square(rotations - true["rotations"][b]).sum() / 8
            expected["best_betas"] += 3 * np.square(betas - true["betas"][b]).sum() / 8
            surface = [
                torch_body(torch.as_tensor(r), torch.as_tensor(s), torch.zeros(3))[1].numpy()
                for r, s in ((rotations, betas), (true["rotations"][b], true["betas"][b]))
            ]
            expected["best_vertices"] += 5 * np.abs(surface[0] - surface[1]).sum(-1).mean() / 8
            expected["best_keypoints"] += 11 * two_d[head] / 8
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        assert terms[key] == pytest.approx(value, rel=2e-3), key
    squared = model.losses(examples, LossConfig(best_of_m=1.0, best_of_m_squared=True))
    assert squared["first_head"].item() == pytest.approx(
        np.mean(
            [
                np.square(
                    out["sample_joints"][b, 0]
                    - out["sample_joints"][b, 0, 0]
                    - true["joints"][b]
                    + true["joints"][b, 0]
                ).mean()
                for b in range(8)
            ]
        ),
        rel=1e-3,
    )


def test_unknown_targets_teach_nothing(torch_body: TorchBody, examples) -> None:
    model = _model(torch_body, examples)
    unknown = examples[:]
    unknown.has_pose = unknown.has_betas = torch.zeros(8, dtype=torch.bool)
    unknown.has_joints = torch.zeros(8, 24, dtype=torch.bool)
    names = ("best_of_m", "best_rotations", "best_betas", "best_vertices", "best_keypoints")
    gradients = _head_gradients(model, unknown, LossConfig(**dict.fromkeys(names, 1.0)))
    assert (gradients == 0).all()
    assert (_head_gradients(model, unknown, LossConfig(reprojection=1.0)) > 0).all(), "the picture is still known"


def test_a_mesh_is_used_where_there_is_one(examples) -> None:
    body = TorchBody(mesh=True)
    model = _model(body, examples)
    one = examples[:1]
    loss = model.losses(one, LossConfig(best_vertices=1.0))["best_vertices"]
    out = model(one.keypoints, one.box)
    true = body.vertices(one.rotations, one.betas, torch.zeros(1, 3))
    best = int(
        (out["sample_joints"] - out["sample_joints"][:, :, :1] - (one.joints - one.joints[:, :1])[:, None])
        .square()
        .sum((-1, -2))
        .argmin()
    )
    errors = [
        (body.vertices(out["sample_rotations"][:, k], out["sample_betas"][:, k], torch.zeros(1, 3)) - true)
        .abs()
        .sum(-1)
        for k in (best, 0)
    ]
    assert loss.item() == pytest.approx(sum(e.mean().item() for e in errors), rel=1e-4)


def test_every_parameter_learns_and_errors_fall(torch_body: TorchBody, examples) -> None:
    model = _model(torch_body, examples, prior=True, prior_hidden=8, prior_couplings=2)
    config = LossConfig(
        best_of_m=25, reprojection=0.1, best_rotations=0.1, best_betas=1e-3, camera=0.05, betas_nll=0.01
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        terms = model.losses(examples, config)
        loss = torch.stack(tuple(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        if not history:
            for key, value in model.named_parameters():
                frozen = key.startswith(("prior.", "translation_fit."))
                assert value.requires_grad != frozen, key
                assert frozen or value.grad.abs().sum() > 0, key
        optimizer.step()
        history.append(terms["best_of_m"].item())
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("changes", [{"heads": 0}, {"layers": 0}])
def test_sizes_must_be_positive(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MultiHeadConfig(**changes)


# The prior and its weights.


def test_alignment_takes_place_and_turn_away(torch_body: TorchBody, poses: dict[str, torch.Tensor]) -> None:
    joints = _joints(torch_body, poses["test"][:50]).double()
    aligned = root_align(joints)
    turned = torch.einsum("bij,bkj->bki", _turn(50), joints) + torch.randn(50, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(root_align(turned), aligned, atol=1e-9, rtol=0)
    distances = [torch.cdist(points, points) for points in (joints, aligned)]
    torch.testing.assert_close(*distances, atol=1e-9, rtol=0)
    assert torch.linalg.det(torch.linalg.lstsq(joints - joints[:, :1], aligned).solution).min() > 0, "mirrored"
    # For one shape all that is left of the pelvis' rotation is a constant.
    still = poses["test"][:50].clone()
    still[:, 0] = torch.eye(3)
    fixed, _ = torch_body(still, torch.zeros(50, 10), torch.zeros(50, 3))
    moved, _ = torch_body(poses["test"][:50], torch.zeros(50, 10), torch.zeros(50, 3))
    torch.testing.assert_close(root_align(moved), root_align(fixed), atol=1e-5, rtol=0)


def test_prior_does_not_care_where_a_body_stands_and_faces(
    prior: tuple[PosePrior, torch.Tensor], torch_body: TorchBody, poses: dict[str, torch.Tensor]
) -> None:
    joints = _joints(torch_body, poses["test"][:50]).double()
    turned = torch.einsum("bij,bkj->bki", _turn(50), joints) + 10 * torch.randn(50, 1, 3, dtype=torch.float64)
    model = prior[0].double()
    torch.testing.assert_close(model.log_prob(turned), model.log_prob(joints), atol=1e-5, rtol=0)
    model.float()


def test_prior_learns_and_knows_bodies_it_never_saw(
    prior: tuple[PosePrior, torch.Tensor], torch_body: TorchBody, poses: dict[str, torch.Tensor]
) -> None:
    model, history = prior
    assert history[-50:].mean() < history[:10].mean() - 30
    assert model.trained
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())
    random = torch.Generator().manual_seed(0)
    real = poses["test"][::3][:300]
    count = len(real)
    noisy = axis_angle_to_matrix(torch.randn(count, 24, 3, generator=random))
    broken = real.clone()
    for k in range(count):  # a knee or an elbow that bends where none does
        joint = (4, 5, 18, 19)[k % 4]
        broken[k, joint] = axis_angle_to_matrix(2 * torch.nn.functional.normalize(noisy[k, 0, 0], dim=0))
    true = model.log_prob(_joints(torch_body, real))
    assert (true > model.log_prob(_joints(torch_body, noisy))).float().mean() > 0.99
    assert (true > model.log_prob(_joints(torch_body, broken))).float().mean() > 0.8
    drawn = root_align(model.sample(torch.randn(100, 72, generator=random)))
    bone = (drawn[:, 4] - drawn[:, 1]).norm(dim=-1)  # a left thigh
    known = _joints(torch_body, real)
    assert abs(float(bone.mean() - (known[:, 4] - known[:, 1]).norm(dim=-1).mean())) < 0.05


def test_weights_follow_the_prior(
    prior: tuple[PosePrior, torch.Tensor], torch_body: TorchBody, examples, poses: dict[str, torch.Tensor]
) -> None:
    model = _model(torch_body, examples)
    joints = _joints(torch_body, poses["test"][:24]).unflatten(0, (4, 6))
    torch.testing.assert_close(model.log_weights(joints).exp(), torch.full((4, 6), 1 / 6))
    model.attach_prior(prior[0])
    weights = model.log_weights(joints).exp()
    density = prior[0].log_prob(joints).double()
    torch.testing.assert_close(weights.double(), torch.softmax(density, -1), atol=1e-4, rtol=1e-3)
    order = torch.randperm(6)
    torch.testing.assert_close(model.log_weights(joints[:, order]).exp(), weights[:, order], atol=1e-4, rtol=1e-3)
    out = model(examples.keypoints, examples.box)
    torch.testing.assert_close(out["sample_weight"], model.log_weights(out["sample_joints"]).exp())
    torch.testing.assert_close(out["sample_weight"].sum(-1), torch.ones(8))
    assert not out["sample_weight"].requires_grad, "the prior weighs heads, it does not teach them"
    assert model.config.prior
    assert model.config.prior_hidden == PRIOR.hidden
    model.train()
    assert not model.prior.training


def test_weights_survive_thousands_of_nats(torch_body: TorchBody, examples, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(torch_body, examples, prior=True, prior_hidden=8, prior_couplings=1)
    torch.testing.assert_close(model(examples.keypoints, examples.box)["sample_weight"], torch.full((8, 6), 1 / 6))
    model.prior.steps += 1  # from here on it counts as trained
    for density in ([-1e4, -2e4, -1e4, -5e4, -1e5, -3e4], [1e4, 0.0, 0.0, 0.0, 0.0, -1e4]):
        monkeypatch.setattr(model.prior, "log_prob", lambda joints, d=density: torch.tensor(d).expand(len(joints), 6))
        weights = model(examples.keypoints, examples.box)["sample_weight"]
        torch.testing.assert_close(weights.sum(-1), torch.ones(8))
        torch.testing.assert_close(weights[0], torch.softmax(torch.tensor(density).double(), 0).float())
        logs = model.log_weights(torch.zeros(1, 6, 24, 3))[0].numpy()
        joints = np.random.default_rng(0).normal(size=(6, 24, 3))
        assert int(np.argmax(logs)) in quantize_heads(joints, 2, logs).index


def test_prior_is_kept_with_the_model(torch_body: TorchBody, examples, poses, tmp_path: Path) -> None:
    model = _model(torch_body, examples, prior_hidden=16, prior_couplings=3)
    assert model.prior is None
    before = model(examples.keypoints, examples.box)
    history = fit_prior(model, poses["train"][::5], steps=5, batch=32, progress=False)
    assert history.shape == (5,)
    fit_prior(model, poses["train"][:64], torch.zeros(64, 10), steps=3, batch=32, progress=False)
    assert float(model.prior.steps) == 8
    after = model(examples.keypoints, examples.box)
    torch.testing.assert_close(after["sample_joints"], before["sample_joints"])
    assert after["sample_weight"].std(-1).min() > 1e-3
    save_checkpoint(tmp_path / "model.pt", model)
    loaded, _ = load_checkpoint(tmp_path / "model.pt", torch_body)
    again = loaded(examples.keypoints, examples.box)
    for key, value in model.eval()(examples.keypoints, examples.box).items():
        torch.testing.assert_close(again[key], value)
    # Another prior's file goes into any model.
    model.prior.save(tmp_path / "prior.pt")
    other = build_model({"model": "multi_head", **SMALL}, torch_body)
    other.attach_prior(PosePrior.load(tmp_path / "prior.pt"))
    joints = before["sample_joints"].detach()
    torch.testing.assert_close(other.log_weights(joints), model.log_weights(joints))
    with pytest.raises(ValueError, match="rotations"):
        fit_prior(model, torch.zeros(4, 24, 3))
