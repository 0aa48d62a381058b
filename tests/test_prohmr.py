"""ProHMR, its lifting variant and its adversary: the laws of their flow, and what only an additive flow can promise."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from nflows import transforms as library  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hmr_prob_ros.joint_sets import joint_set  # noqa: E402
from hmr_prob_ros.training import losses as L  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.flow import AdditiveCoupling, ConditionalFlow  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import FlowConfig, FlowPosterior, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.adversary import PoseDiscriminator  # noqa: E402
from hmr_prob_ros.training.models.encoder import turn_root  # noqa: E402
from hmr_prob_ros.training.models.lifting import Lifting, LiftingConfig  # noqa: E402
from hmr_prob_ros.training.models.prohmr import (  # noqa: E402
    Glow,
    PointActNorm,
    PointCoupling,
    PointLULinear,
    PointNet,
    ProHMR,
    ProHMRConfig,
)
from hmr_prob_ros.training.rotations import axis_angle_to_matrix, matrix_to_rotation6d  # noqa: E402

D, C = 8, 5
SMALL = {"hidden": 24, "couplings": 2, "condition": 20}
PUBLISHED = LossConfig(
    likelihood=0.001,
    noise=0.005,
    mode_joints=0.05,
    mode_keypoints=0.005,
    sample_keypoints=0.0005,
    rotations=0.001,
    betas=0.0005,
    orthonormality=0.2,
    adversarial=0.0005,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def body() -> TorchBody:
    return TorchBody(mesh=False)


def _net(inputs: int, outputs: int, batch_norm: bool = False) -> PointNet:
    return PointNet(inputs, outputs, C, hidden=16, blocks=2, dropout=0.0, batch_norm=batch_norm)


def _coupling(batch_norm: bool = False) -> PointCoupling:
    return PointCoupling(torch.arange(D) % 2, lambda i, o: _net(i, o, batch_norm))


def _glow(size: int = D, **changes) -> Glow:
    return Glow(size, C, **{"hidden": 16, "layers": 3, "dropout": 0.0, "batch_norm": False, **changes})


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "actnorm": lambda: PointActNorm(D),
    "lu": lambda: PointLULinear(D),
    "fixed": lambda: _scramble(PointLULinear(D).double()).fixed(),
    "coupling": _coupling,
    "normed coupling": lambda: _coupling(batch_norm=True),
    "additive": lambda: AdditiveCoupling(D, C, 16),
    "additive flow": lambda: ConditionalFlow(D, C, 16, couplings=3, additive=True),
    "glow": _glow,
    "normed glow": lambda: _glow(batch_norm=True),
    "odd glow": lambda: _glow(size=D - 1),
}


def _scramble(module: nn.Module, by: float = 0.2) -> nn.Module:
    """Weights, initialisation and batch statistics as after some training."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if "layers" not in key and "first" not in key and "initial_layer" not in key:
                value.add_(by * torch.randn(value.shape, generator=random).to(value))
        for key, value in module.named_buffers():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1, generator=random)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2, generator=random)
            elif key.endswith("initialized"):
                value.fill_(True)
    return module


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _scramble(MAKERS[name]().double()).eval()
    size = D - 1 if "odd" in name else D

    def directions(module: nn.Module) -> tuple[Callable, Callable]:
        return (module.to_noise, module.to_data) if isinstance(module, ConditionalFlow) else (module, module.inverse)

    forward, inverse = directions(module)
    data, condition = torch.randn(3, 7, size).double(), torch.randn(3, C).double()
    latents, volume = forward(data, condition)
    assert latents.shape == data.shape
    assert volume.shape == ()  # the same for every point and every condition
    back, opposite = inverse(latents, condition)
    np.testing.assert_allclose(back.detach(), data, atol=1e-10)
    np.testing.assert_allclose((volume + opposite).detach(), 0, atol=1e-10)
    for function, determinant in ((forward, volume), (inverse, opposite)):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, f=function: f(x[None, None], condition[1:2])[0][0, 0], data[1, 2]
        )
        np.testing.assert_allclose(determinant.detach(), torch.linalg.slogdet(jacobian)[1], atol=1e-9)
    alone, _ = forward(data[1:2, 2:3], condition[1:2])
    np.testing.assert_allclose(alone[0, 0].detach(), latents[1, 2].detach(), atol=1e-12)
    for shape in ((0, 7), (3, 0)):
        empty, _ = forward(torch.zeros(*shape, size).double(), condition[: shape[0]])
        assert empty.shape == (*shape, size)
        assert inverse(empty, condition[: shape[0]])[0].shape == (*shape, size)

    data.requires_grad_()
    latents, volume = forward(data, condition)
    (latents.pow(4).sum() + volume).backward()
    for key, value in module.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0, key
    assert data.grad.abs().min() > 0

    if "normed" not in name:  # training: the same but for batch statistics
        np.testing.assert_array_equal(directions(module.train())[0](data, condition)[0].detach(), latents.detach())
    torch.save(module.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    other = MAKERS[name]().double().eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(directions(other)[0](data, condition)[0].detach(), latents.detach())
    assert type(module).__name__ in repr(module)


def test_points_and_conditions_go_as_in_the_library() -> None:
    """Same weights in nflows' own classes, which take (B, D), and one first layer over points and condition."""
    torch.manual_seed(0)
    flow = _scramble(_glow(batch_norm=True).double()).eval()

    class Whole(nn.Module):
        def __init__(self, net: PointNet) -> None:
            super().__init__()
            self.net = net
            self.first = nn.Linear(D // 2 + C, 16).double()
            self.first.weight.data = torch.cat((net.initial_layer.weight, net.from_context.weight), dim=1)
            self.first.bias.data = net.initial_layer.bias

        def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
            hidden = self.first(torch.cat((inputs, context), dim=1))
            for block in self.net.blocks:
                inner = hidden
                for norm, layer in zip(block.batch_norm_layers, block.linear_layers):
                    whole = nn.BatchNorm1d(16, eps=1e-3).double().eval()
                    whole.load_state_dict(norm.state_dict())
                    inner = layer(torch.relu(whole(inner)))
                hidden = hidden + inner
            return self.net.final_layer(hidden)

    parts = []
    for i, part in enumerate((flow.standardise, *flow.transform._transforms)):
        if isinstance(part, PointCoupling):
            mask = [1 if (k + i // 3) % 2 else -1 for k in range(D)]  # even ones kept first
            parts.append(library.AdditiveCouplingTransform(mask, lambda i, o, net=part.transform_net: Whole(net)))
        else:
            parts.append((library.ActNorm(D) if isinstance(part, PointActNorm) else library.LULinear(D)).double())
            parts[-1].load_state_dict(part.state_dict())
    reference = library.CompositeTransform(parts).eval()
    data, condition = torch.randn(3, 4, D).double(), torch.randn(3, C).double()
    latents, volume = flow.to_noise(data, condition)
    expected, expected_volume = reference(data.flatten(0, 1), condition.repeat_interleave(4, dim=0))
    np.testing.assert_allclose(latents.flatten(0, 1).detach(), expected.detach(), atol=1e-12)
    np.testing.assert_allclose(volume.expand(12).detach(), expected_volume.detach(), atol=1e-12)


def test_published_size() -> None:
    """25.9 M: per layer 2 * 144, 144^2 + 144, 1024 (72 + 2048 + 1), 2 blocks of 2 (1024^2 + 3 * 1024), 72 * 1025."""
    flow = Glow(144, 2048)
    layer = 288 + 144 * 144 + 144 + 1024 * 2121 + 2 * 2 * (1024**2 + 3 * 1024) + 72 * 1025
    assert sum(p.numel() for p in flow.parameters()) == 4 * layer == 25_893_856
    assert (ProHMRConfig().hidden, ProHMRConfig().couplings, ProHMRConfig().flow_dropout) == (1024, 4, 0.5)


@pytest.mark.parametrize("make", [lambda: _glow(144), lambda: ConditionalFlow(144, C, 16, couplings=3, additive=True)])
def test_latent_zero_is_the_mode(make: Callable[[], ConditionalFlow]) -> None:
    torch.manual_seed(0)
    flow = _scramble(make().double(), by=0.02).eval()
    condition = torch.randn(2, C).double()
    mode, top = flow.sample(torch.zeros(2, 1, 144).double(), condition)
    samples, density = flow.sample(torch.randn(2, 20_000, 144).double(), condition)
    # Half a chi-square of 144 degrees: mean 72, deviation sqrt(72).
    gap = (top - density).detach()
    assert gap.min() > 0
    np.testing.assert_allclose(gap.mean(), 72, atol=5 * 72**0.5 / 40_000**0.5)
    np.testing.assert_allclose(gap.var(), 72, rtol=0.05)
    np.testing.assert_allclose(top[0].detach(), top[1].detach(), rtol=1e-12)  # the same for all people
    # A maximum: no slope there, and lower on all sides.
    point = mode.detach().requires_grad_()
    value = flow.log_prob(point, condition)
    (slope,) = torch.autograd.grad(value.sum(), point)
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    around = flow.log_prob(point + 0.01 * torch.randn(2, 50, 144).double(), condition)
    assert (around < value).all()
    assert np.isfinite(samples.detach()).all()


def test_an_affine_flow_promises_no_mode() -> None:
    torch.manual_seed(0)
    flow = _scramble(ConditionalFlow(144, C, 16, couplings=3).double()).eval()
    condition = torch.randn(2, C).double()
    point = flow.sample(torch.zeros(2, 1, 144).double(), condition)[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(point, condition).sum(), point)
    assert slope.abs().max() > 1e-3


def test_actnorm_starts_from_data() -> None:
    data = torch.randn(4, 50, D) * torch.linspace(0.1, 3, D) + torch.arange(D)
    norm, reference = PointActNorm(D), library.ActNorm(D)
    before = norm.eval()(data)[0]
    np.testing.assert_array_equal(before.detach(), data)  # evaluation never initialises
    norm.train()(data[:1, :1])  # one point has no deviation
    assert not norm.initialized
    out, volume = norm(data)
    assert norm.initialized
    expected, expected_volume = reference.train()(data.flatten(0, 1))
    np.testing.assert_allclose(out.detach().flatten(0, 1), expected.detach(), atol=1e-4)
    np.testing.assert_allclose(volume.detach(), expected_volume[0].detach(), rtol=1e-5)
    other = PointActNorm(D).train()
    other.load_state_dict(norm.state_dict())
    np.testing.assert_array_equal(other(9 * data)[0].detach(), norm(9 * data)[0].detach())  # and not once more
    still = PointActNorm(2)
    still.fit(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_allclose(still.scale.detach(), [1000, 2**0.5], rtol=1e-5)


def test_fit_standardises_every_layer() -> None:
    torch.manual_seed(0)
    flow = _glow(batch_norm=True, dropout=0.5).train()
    mixing = torch.randn(D, D)
    data = torch.randn(5000, D) @ mixing + 3
    flow.fit(data, most=5000)
    assert flow.training
    points = data[None]
    flow.eval()
    for part in (flow.standardise, *flow.transform._transforms):
        points, _ = part(points, torch.zeros(1, C))
        if isinstance(part, PointActNorm):
            assert part.initialized
            np.testing.assert_allclose(points.mean((0, 1)).detach(), 0, atol=1e-3)
            np.testing.assert_allclose(points.std((0, 1)).detach(), 1, atol=1e-3)


PROCESS = """
import sys, torch, torch.distributed as dist
from hmr_prob_ros.training.models.prohmr import Glow
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
flow = torch.nn.parallel.DistributedDataParallel(Glow(6, 3, hidden=8, layers=2, dropout=0.0, batch_norm=False))
flow.forward = flow.module.forward = None
data, code = torch.load(f"{folder}/data.pt", weights_only=True)
flow.module.log_prob(data[rank::2], code[rank::2])
torch.save(flow.module.state_dict(), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_start_as_one(tmp_path: Path) -> None:
    """Each process sees half of the first batch; all start with the deviations of the whole."""
    torch.manual_seed(3)
    data, code = torch.randn(20, 1, 6) * 2 + 1, torch.randn(20, 3)
    torch.save((data, code), tmp_path / "data.pt")
    command = [sys.executable, "-c", PROCESS]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)
    alone = Glow(6, 3, hidden=8, layers=2, dropout=0.0, batch_norm=False).train()
    alone.log_prob(data, code)
    for key, value in alone.state_dict().items():
        np.testing.assert_array_equal(states[0][key], states[1][key], err_msg=key)
        np.testing.assert_allclose(states[0][key], value, atol=1e-5, err_msg=key)
    assert bool(states[0]["standardise.initialized"])


def test_one_person_can_train() -> None:
    flow = _glow(batch_norm=True, dropout=0.5).train()
    flow.fit(torch.randn(100, D))
    (-flow.log_prob(torch.randn(1, 1, D), torch.randn(1, C)).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())


@pytest.mark.parametrize("make", [lambda: _glow(6, batch_norm=True), lambda: _glow(6)], ids=["batch norm", "plain"])
def test_training_raises_the_likelihood(make: Callable[[], Glow]) -> None:
    """Two modes, and a condition that says where they lie."""
    torch.manual_seed(0)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        code = torch.randn(count, C)
        side = 2.0 * torch.randint(0, 2, (count, 1)) - 1
        centre = torch.cat((side, -side * code[:, :1], code[:, :4]), dim=1)
        return (centre + 0.1 * torch.randn(count, 6))[:, None], code

    flow = make()
    flow.fit(batch(1000)[0][:, 0])
    held = batch(1000)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)

    def value() -> float:
        with torch.no_grad():
            return float(flow.eval().log_prob(*held).mean())

    before = value()
    for _ in range(200):
        optimizer.zero_grad()
        (-flow.train().log_prob(*batch(128)).mean()).backward()
        optimizer.step()
    after = value()
    assert after > before + 3
    # Knowing the condition but not the side, the best Gaussian has this density: what is above it is bent.
    best_gaussian = -3 * np.log(2 * np.pi * np.e) - 5 * np.log(0.1) - np.log(2**0.5)
    assert after > best_gaussian - 4
    assert before < best_gaussian - 4


def _poses(count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return matrix_to_rotation6d(axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=random))).flatten(1)


def _examples(body: TorchBody, count: int = 6, seed: int = 0) -> Examples:
    """Random people 3 to 5 m away, upright in the camera, all keypoints seen but one."""
    random = torch.Generator().manual_seed(seed)
    vectors = 0.3 * torch.randn(count, 24, 3, generator=random)
    vectors[:, 0] = torch.tensor([np.pi, 0.0, 0.0])
    rotations = axis_angle_to_matrix(vectors)
    betas = torch.randn(count, 10, generator=random)
    translation = torch.tensor([0.5, 0.0, 4.0]) + 0.5 * torch.randn(count, 3, generator=random)
    joints, keypoints3d = body(rotations, betas, translation)
    rays = keypoints3d[..., :2] / keypoints3d[..., 2:]
    low, high = rays.amin(1), rays.amax(1)
    size = 1.2 * (high - low).amax(1, keepdim=True)
    box = torch.cat(((low + high) / 2, size), dim=1)
    keypoints = torch.cat(((rays - box[:, None, :2]) / (size / 2)[:, None], torch.ones(count, 23, 1)), dim=-1)
    keypoints[:, 9] = 0
    return Examples(
        keypoints=keypoints,
        box=box,
        pose6d=matrix_to_rotation6d(rotations).flatten(1),
        rotations=rotations,
        betas=betas,
        translation=translation,
        joints=joints,
        keypoints3d=keypoints3d,
        state=torch.zeros(count, 23, dtype=torch.long),
        detected=torch.zeros(count, 23, 3),
        intrinsics=torch.ones(count, 4),
        size=torch.ones(count, 2),
        index=torch.arange(count),
    )


def _prohmr(body: TorchBody, **changes) -> ProHMR:
    torch.manual_seed(0)
    encoder = {"encoder_width": 24, "encoder_depth": 1, "head_hidden": 16}
    model = ProHMR(ProHMRConfig(**{**SMALL, **encoder, **changes}), body)
    model.fit_statistics(_poses(300))
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_shape": True}, {"sample_shape": True, "sample_translation": True, "refine_translation": True}],
    ids=["published", "shape", "joint"],
)
def test_prohmr(body: TorchBody, changes: dict) -> None:
    model = _prohmr(body, **changes).eval()
    assert model.latent_size == 144 + 10 * (len(changes) > 0) + 3 * (len(changes) > 1)
    examples = _examples(body)
    latents = model.latents(6, 7)
    out = model(examples.keypoints, examples.box, latents)
    assert out["sample_joints"].shape == (6, 7, 24, 3)
    log_prob = model.log_prob(out["sample_pose6d"], model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(log_prob.detach(), out["sample_log_density"].detach(), atol=2e-2)
    assert (out["sample_log_density"][:, :1] >= out["sample_log_density"]).all()
    assert (out["sample_betas"].std(1).max() > 0.01) == bool(changes)
    if not changes:
        assert not (out["sample_translation"] - out["sample_translation"][:, :1]).any()

    model.train()
    model.adversary = PoseDiscriminator()
    heads = {"betas_nll": 0.1, "camera": 0.1, "translation": 0.1}
    terms = model.losses(examples, LossConfig(**{**PUBLISHED.__dict__, **heads}))
    wanted = {"likelihood", "mode_joints", "mode_keypoints", "sample_keypoints", "rotations", "betas"}
    wanted |= {"orthonormality", "adversarial", "betas_nll", "camera"}
    assert set(terms) == wanted | ({"translation"} if model.config.refine_translation else set())
    sum(terms.values()).backward()
    for key, value in model.named_parameters():
        if not key.startswith("translation_fit") or model.config.refine_translation:
            assert value.grad is not None, key
            assert torch.isfinite(value.grad).all(), key
            # A bias before a batch normalisation only moves what that centres.
            assert value.grad.abs().sum() > 0 or key.endswith("bias"), key
    assert model.drawn is not None
    assert model.drawn[0].shape == (6, 2, 24, 3, 3)


def test_networks_in_bfloat16_leave_the_flow_exact(body: TorchBody) -> None:
    model = _prohmr(body, batch_norm=False, flow_dropout=0.0).eval()
    examples = _examples(body)
    condition = model.condition(examples.keypoints, examples.box)
    exact = model.log_prob(examples.pose6d[:, None], condition)
    model.bfloat16 = True
    with model.networks():
        near = model.log_prob(examples.pose6d[:, None], condition)
        pose6d, density = model.sample(model.latents(6, 3), condition)
        back = model.log_prob(pose6d, condition)
    assert near.dtype == pose6d.dtype == torch.float32
    np.testing.assert_allclose(near.detach(), exact.detach(), rtol=0.02)
    np.testing.assert_allclose(back.detach(), density.detach(), atol=0.5)


def test_prohmr_checkpoint(body: TorchBody, tmp_path: Path) -> None:
    model = _prohmr(body)
    with torch.no_grad():
        for part in model.flow.transform._transforms:
            if isinstance(part, PointLULinear):
                for value in part.parameters():
                    value.add_(0.02 * torch.randn_like(value))
    model.eval()
    save_checkpoint(tmp_path / "model.pt", model)
    other, _ = load_checkpoint(tmp_path / "model.pt", body)
    assert isinstance(other, ProHMR)
    assert other.config == model.config
    examples, latents = _examples(body), model.latents(6, 5)
    expected = model(examples.keypoints, examples.box, latents)
    given = other(examples.keypoints, examples.box, latents)
    for name, value in expected.items():
        np.testing.assert_array_equal(given[name].detach(), value.detach(), err_msg=name)
    other.train().log_prob(_poses(6, seed=5)[:, None] * 3, other.condition(examples.keypoints, examples.box))
    for key, value in other.flow.named_parameters():
        if "log_scale" in key:  # initialised once and for all
            np.testing.assert_array_equal(value.detach(), dict(model.flow.named_parameters())[key].detach())

    frozen = copy.deepcopy(model)
    frozen.freeze()
    for name, value in frozen(examples.keypoints, examples.box, latents).items():
        np.testing.assert_allclose(value.detach(), expected[name].detach(), atol=2e-4, err_msg=name)


class _Drawing(nn.Module):
    """Both directions of a flow, for the exporter."""

    def __init__(self, model: ProHMR) -> None:
        super().__init__()
        self.model = model

    def forward(self, keypoints: Tensor, box: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        condition = self.model.condition(keypoints, box)
        pose6d, log_density = self.model.sample(latents, condition)
        return pose6d, log_density, self.model.log_prob(pose6d, condition)


def test_a_frozen_flow_exports_to_plain_operators(body: TorchBody, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from hmr_prob_ros.training.export import compare, export_graph

    model = _prohmr(body).eval()
    _scramble(model.flow, by=0.02)
    model.freeze()
    examples, names = _examples(body), ("pose6d", "log_density", "log_prob")
    inputs = {"keypoints": examples.keypoints, "box": examples.box, "latents": model.latents(6, 5)}
    sizes = {"keypoints": {0: "B"}, "box": {0: "B"}, "latents": {0: "B", 1: "N"}}
    export_graph(_Drawing(model), inputs, names, sizes, tmp_path / "flow.onnx")
    other = {name: value[:1] for name, value in inputs.items()} | {"latents": model.latents(1, 30)}
    for typical, worst in compare(_Drawing(model), other, names, tmp_path / "flow.onnx").values():
        assert max(typical, worst) < 1e-4


@pytest.mark.slow
def test_bundle_of_prohmr(body: TorchBody, tmp_path: Path) -> None:
    from hmr_prob_ros.training.export import export

    save_checkpoint(tmp_path / "model.pt", _prohmr(body))
    bundle = export(tmp_path / "model.pt", tmp_path / "bundle", modes=4, samples=20)
    assert bundle.card["method"] == "prohmr"
    assert bundle.latent_size == 144


def test_configurations_that_make_no_sense() -> None:
    for make, text in (
        (lambda: ProHMRConfig(coupling="affine"), "additive"),
        (lambda: FlowConfig(coupling="cubic"), "'affine' or 'additive'"),
        (lambda: ProHMRConfig(sample_translation=True), "refine_translation"),
        (lambda: LiftingConfig(image="resnet50"), "model.image"),
        (lambda: LiftingConfig(use_keypoints=False), "would be empty|use_keypoints"),
        (lambda: LiftingConfig(sample_shape=True), "model.sample_shape"),
    ):
        with pytest.raises(ValueError, match=text):
            make()


def test_additive_option_of_the_flow(body: TorchBody) -> None:
    sizes = {"hidden": 16, "couplings": 2, "condition": 12, "encoder_width": 16, "encoder_depth": 1}
    affine, additive = (FlowPosterior(FlowConfig(**sizes, coupling=kind), body) for kind in ("affine", "additive"))
    for one, other in zip(affine.flow.transform._transforms[1::2], additive.flow.transform._transforms[1::2]):
        assert (one.last.out_features, other.last.out_features) == (144, 72)
        assert one.first.weight.shape == other.first.weight.shape
    examples = _examples(body, 3)
    out = additive(examples.keypoints, examples.box, additive.latents(3, 5))
    assert (out["sample_log_density"][:, :1] >= out["sample_log_density"]).all()


def test_discriminator() -> None:
    torch.manual_seed(0)
    judge = PoseDiscriminator()
    rotations = axis_angle_to_matrix(torch.randn(2, 3, 24, 3))
    betas = torch.randn(2, 3, 10)
    scores = judge(rotations, betas)
    assert scores.shape == (2, 3, 25)
    assert judge(rotations[:0], betas[:0]).shape == (0, 3, 25)
    np.testing.assert_allclose(judge(rotations[1, 2], betas[1, 2]).detach(), scores[1, 2].detach(), atol=1e-6)
    # 9 * 32 + 32, 32^2 + 32, 23 * 33; 736 * 1024 + 1024, 1024^2 + 1024, 1025; 110 + 55 + 6.
    assert sum(p.numel() for p in judge.parameters()) == 320 + 1056 + 759 + 754_688 + 1_049_600 + 1025 + 171

    def touched(changed: Tensor) -> list[int]:
        return torch.nonzero((changed != scores).any(0).any(0))[:, 0].tolist()

    turned = rotations.clone()
    turned[..., 0, :, :] = torch.eye(3)
    assert touched(judge(turned, betas)) == []  # the root does not count
    turned[..., 5, :, :] = torch.eye(3)
    assert touched(judge(turned, betas)) == [4, 24]
    assert touched(judge(rotations, betas + 1)) == [23]

    scores.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters())
    # It learns to tell small angles from large ones.
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(30):
        real = judge(axis_angle_to_matrix(0.2 * torch.randn(32, 24, 3)), torch.zeros(32, 10))
        fake = judge(axis_angle_to_matrix(1.5 * torch.randn(32, 1, 24, 3)), torch.zeros(32, 1, 10))
        optimizer.zero_grad()
        L.discriminator_loss(real, fake).backward()
        optimizer.step()
    assert real[:, 24].mean() > fake[..., 24].mean() + 0.5


def _lifting(body: TorchBody, **changes) -> Lifting:
    torch.manual_seed(0)
    model = Lifting(LiftingConfig(**{**SMALL, **changes}), body)
    model.fit_statistics(_poses(300))
    return model


def test_lifting(body: TorchBody, tmp_path: Path) -> None:
    model = _lifting(body).eval()
    assert model.encoder.enter[0].in_features == 2 * 17
    examples = _examples(body)
    latents = model.latents(6, 9)
    assert latents.shape == (6, 9, 48)
    assert not latents[:, 0].any()
    out = model(examples.keypoints, examples.box, latents)
    joints = out["sample_joints17"]
    assert joints.shape == (6, 9, 17, 3)
    assert not joints[:, :, 0].any()
    assert out["sample_weight"].sum(1).allclose(torch.ones(6))
    log_prob = model.log_prob(joints, model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(log_prob.detach(), out["sample_log_density"].detach(), atol=1e-2)
    gap = out["sample_log_density"][:, :1] - out["sample_log_density"]
    np.testing.assert_allclose(gap.detach(), 0.5 * latents.square().sum(-1), atol=1e-3)
    # The targets are the joints that evaluation measures.
    expected = joint_set("h36m").rooted(examples.joints.numpy(), examples.keypoints3d.numpy())
    np.testing.assert_allclose(model.joints17(examples.joints, examples.keypoints3d), expected, atol=1e-5)

    save_checkpoint(tmp_path / "model.pt", model)
    other, _ = load_checkpoint(tmp_path / "model.pt", body)
    assert isinstance(other, Lifting)
    again = other(examples.keypoints, examples.box, latents)
    np.testing.assert_array_equal(again["sample_joints17"].detach(), joints.detach())
    assert model(examples.keypoints[:1], examples.box[:1], latents[:1])["sample_joints17"].shape == (1, 9, 17, 3)
    assert model(examples.keypoints[:0], examples.box[:0], latents[:0])["sample_joints17"].shape == (0, 9, 17, 3)


def test_lifting_turns_with_the_camera(body: TorchBody) -> None:
    """The same body seen by a turned camera has the same joints, turned."""
    model = _lifting(body, batch_norm=False).eval()
    examples = _examples(body, 3)
    turn = axis_angle_to_matrix(torch.tensor([[0.1, -0.35, 0.0]]))[0]
    seen = examples.keypoints3d @ turn.T
    rays = seen[..., :2] / seen[..., 2:]
    # A box about the same direction: its centre is where the old centre's ray goes.
    ahead = torch.cat((examples.box[:, :2], torch.ones(3, 1)), dim=1) @ turn.T
    centre = ahead[:, :2] / ahead[:, 2:]
    # Both virtual cameras look the same way, but for a roll; sizes as `face_crop` takes them.
    size = examples.box[:, 2:] * (ahead[:, 2:].reciprocal() * ahead.norm(dim=1, keepdim=True))
    size = size / torch.cat((examples.box[:, :2], torch.ones(3, 1)), dim=1).norm(dim=1, keepdim=True)
    local = (rays - centre[:, None]) / (size / 2)[:, None]
    keypoints = torch.cat((local * examples.keypoints[..., 2:], examples.keypoints[..., 2:]), dim=-1)
    first = model.condition(examples.keypoints, examples.box)
    second = model.condition(keypoints, torch.cat((centre, size), dim=1))
    true = model.joints17(examples.joints, examples.keypoints3d)
    turned = true @ turn.T
    upright = (true[:, None, ..., None, :] * first.turn[:, None, None]).sum(-1)
    other = (turned[:, None, ..., None, :] * second.turn[:, None, None]).sum(-1)
    np.testing.assert_allclose(upright.norm(dim=-1), other.norm(dim=-1), atol=1e-5)
    np.testing.assert_allclose(upright[..., 2], other[..., 2], atol=1e-5)  # the depth along the line of sight


def test_lifting_losses(body: TorchBody) -> None:
    model = _lifting(body, dropout=0.0, flow_dropout=0.0).eval()
    examples = _examples(body)
    config = LossConfig(likelihood=0.001, noise=0.0, mode_joints=1.0)
    terms = model.losses(examples, config)
    true = torch.from_numpy(joint_set("h36m").rooted(examples.joints.numpy(), examples.keypoints3d.numpy()))
    out = model(examples.keypoints, examples.box, torch.zeros(6, 1, 48))
    density = model.log_prob(true[:, None], model.condition(examples.keypoints, examples.box))
    np.testing.assert_allclose(terms["likelihood"].item(), -0.001 * density.mean().item(), rtol=1e-4)
    distance = (out["sample_joints17"][:, 0] - true).abs().sum() / 6
    np.testing.assert_allclose(terms["mode_joints"].item(), distance.item(), rtol=1e-4)

    model.train()
    sum(model.losses(examples, config).values()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0 or key.endswith("bias"), key

    # What is not known does not count.
    model.eval()
    examples.has_joints = torch.ones(6, 24, dtype=torch.bool)
    examples.has_joints[:3, 7] = False
    examples.has_pose = torch.tensor([True] * 5 + [False])
    part = model.losses(examples, config)
    known = (out["sample_joints17"][:, 0] - true).abs().sum((1, 2))[3:5].sum() / 6
    np.testing.assert_allclose(part["mode_joints"].item(), known.item(), rtol=1e-4)


def test_lifting_learns(body: TorchBody) -> None:
    model = _lifting(body, dropout=0.0, flow_dropout=0.0, batch_norm=False, hidden=64, condition=64)
    config = LossConfig(likelihood=0.001, noise=0.005, mode_joints=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    examples, held = _examples(body, 512), _examples(body, 128, seed=1)

    def error() -> float:
        with torch.no_grad():
            out = model.eval()(held.keypoints, held.box, model.latents(128, 1))["sample_joints17"][:, 0]
        return float((out - model.joints17(held.joints, held.keypoints3d)).norm(dim=-1).mean())

    before = error()
    for i in range(150):
        rows = slice(64 * (i % 8), 64 * (i % 8 + 1))
        optimizer.zero_grad()
        sum(model.train().losses(examples[rows], config).values()).backward()
        optimizer.step()
    assert error() < 0.6 * before


def test_poses_are_seen_from_the_crop(body: TorchBody) -> None:
    """The density of a pose is that of the turned one."""
    model = _prohmr(body).eval()
    examples = _examples(body, 3)
    condition = model.condition(examples.keypoints, examples.box)
    inside = model.flow.log_prob(turn_root(examples.pose6d[:, None], condition.turn), condition.code)
    np.testing.assert_array_equal(model.log_prob(examples.pose6d[:, None], condition).detach(), inside.detach())
