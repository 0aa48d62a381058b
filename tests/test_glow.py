"""The additive flow of ProHMR: the laws of its parts, and what only an additive flow can promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from model_helpers import scramble  # noqa: E402
from nflows import transforms as library  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hmr_prob_ros.training.flow import AdditiveCoupling, ConditionalFlow  # noqa: E402
from hmr_prob_ros.training.models.prohmr import (  # noqa: E402
    Glow,
    PointActNorm,
    PointCoupling,
    PointLULinear,
    PointNet,
    ProHMRConfig,
)

D, C = 8, 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _net(inputs: int, outputs: int, batch_norm: bool = False) -> PointNet:
    return PointNet(inputs, outputs, C, hidden=16, blocks=2, dropout=0.0, batch_norm=batch_norm)


def _coupling(batch_norm: bool = False) -> PointCoupling:
    return PointCoupling(torch.arange(D) % 2, lambda i, o: _net(i, o, batch_norm))


def _glow(size: int = D, **changes) -> Glow:
    return Glow(size, C, **{"hidden": 16, "layers": 3, "dropout": 0.0, "batch_norm": False, **changes})


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "actnorm": lambda: PointActNorm(D),
    "lu": lambda: PointLULinear(D),
    "fixed": lambda: scramble(PointLULinear(D).double()).fixed(),
    "coupling": _coupling,
    "normed coupling": lambda: _coupling(batch_norm=True),
    "additive": lambda: AdditiveCoupling(D, C, 16),
    "additive flow": lambda: ConditionalFlow(D, C, 16, couplings=3, additive=True),
    "glow": _glow,
    "normed glow": lambda: _glow(batch_norm=True),
    "odd glow": lambda: _glow(size=D - 1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = scramble(MAKERS[name]().double()).eval()
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
    flow = scramble(_glow(batch_norm=True).double()).eval()

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
    flow = scramble(make().double(), by=0.02).eval()
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
    flow = scramble(ConditionalFlow(144, C, 16, couplings=3).double()).eval()
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
