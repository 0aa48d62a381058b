"""Laws that every transform and flow must keep, and their numbers against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")

from nflows.transforms import Transform  # noqa: E402
from torch import nn  # noqa: E402

from hmr_prob_ros.training.flow import (  # noqa: E402
    AffineCoupling,
    ConditionalFlow,
    FixedPermutation,
    Standardise,
    TransformChain,
    soft_clamp,
)

D, C = 8, 5


def _standardise() -> Standardise:
    layer = Standardise(D)
    layer.fit(3 + 2 * torch.randn(100, D))
    return layer


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "standardise": _standardise,
    "permutation": lambda: FixedPermutation(D, seed=3),
    "coupling": lambda: AffineCoupling(D, C, hidden=16),
    "chain": lambda: TransformChain([FixedPermutation(D, 1), AffineCoupling(D, C, 16), _standardise()]),
    "flow": lambda: ConditionalFlow(D, C, hidden=16, couplings=3),
}


def _make(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MAKERS[name]().double()
    with torch.no_grad():  # away from the near-identity start
        for key, value in module.named_parameters():
            if "last" in key:
                value.normal_(0, 0.3)
    return module.eval()


def _directions(module: nn.Module) -> tuple[Callable, Callable]:
    if isinstance(module, ConditionalFlow):
        return module.to_noise, module.to_data
    assert isinstance(module, Transform)
    return module.forward, module.inverse


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str, tmp_path) -> None:
    module = _make(name)
    forward, inverse = _directions(module)
    data, condition = torch.randn(3, 7, D).double(), torch.randn(3, C).double()

    # Shapes, and inverse in both directions with opposite determinants.
    latents, logabsdet = forward(data, condition)
    assert latents.shape == data.shape
    assert logabsdet.shape in ((3, 7), ())
    back, opposite = inverse(latents, condition)
    np.testing.assert_allclose(back.detach(), data, atol=1e-10)
    np.testing.assert_allclose((logabsdet + opposite).detach(), 0, atol=1e-10)

    # Determinant against autograd.
    for function, determinant in ((forward, logabsdet), (inverse, inverse(data, condition)[1])):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, f=function: f(x[None, None], condition[1:2])[0][0, 0], data[1, 2]
        )
        expected = torch.linalg.slogdet(jacobian)[1]
        value = determinant if determinant.ndim == 0 else determinant[1, 2]
        np.testing.assert_allclose(value.detach(), expected, atol=1e-9)

    # A point's image depends on its own condition only, and not on its neighbours.
    alone, _ = forward(data[1:2, 2:3], condition[1:2])
    np.testing.assert_allclose(alone[0, 0].detach(), latents[1, 2].detach(), atol=1e-12)

    # A gradient for every parameter, and for the data.
    data.requires_grad_()
    latents, logabsdet = forward(data, condition)
    (latents.square().sum() + logabsdet.sum()).backward()
    for key, value in module.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0, key
    assert data.grad is not None
    assert data.grad.abs().min() > 0

    # Training mode gives the same (no dropout), and so does a saved and loaded copy made with other random numbers.
    np.testing.assert_array_equal(forward(data, condition)[0].detach(), latents.detach())
    module.train()
    np.testing.assert_array_equal(forward(data, condition)[0].detach(), latents.detach())
    torch.save(module.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    other = MAKERS[name]().double()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_array_equal(_directions(other)[0](data, condition)[0].detach(), latents.detach())
    assert type(module).__name__ in repr(module)


def test_soft_clamp_numbers() -> None:
    values = soft_clamp(torch.tensor([0.5, 1.0, 10.0], dtype=torch.float64))
    np.testing.assert_allclose(values, [0.589759759, 0.999026464, 1.871274402], atol=1e-9)
    assert soft_clamp(torch.tensor([-1e9, 1e9])).abs().max() < 2


def test_split_first_layer_is_one_layer_over_both() -> None:
    torch.manual_seed(0)
    layer = AffineCoupling(D, C, hidden=16).double()
    whole = nn.Linear(D // 2 + C, 16).double()
    with torch.no_grad():
        whole.weight.copy_(torch.cat((layer.first.weight, layer.from_context.weight), dim=1))
        whole.bias.copy_(layer.from_context.bias)
    data, condition = torch.randn(2, 6, D).double(), torch.randn(2, C).double()
    kept, moved = data.chunk(2, dim=-1)
    out = torch.relu(whole(torch.cat((kept, condition[:, None].expand(2, 6, C)), dim=-1)))
    out = layer.last(torch.relu(layer.second(out)))
    scale, shift = out.chunk(2, dim=-1)
    scale = 2 * 0.636 * torch.atan(scale)
    expected = torch.cat((kept, moved * scale.exp() + shift), dim=-1)
    result, logabsdet = layer(data, condition)
    np.testing.assert_allclose(result.detach(), expected.detach(), atol=1e-12)
    np.testing.assert_allclose(logabsdet.detach(), scale.sum(-1).detach(), atol=1e-12)


def test_untrained_flow_is_the_gaussian_of_its_data() -> None:
    flow = ConditionalFlow(144, C, hidden=8, couplings=8).double()
    for layer in flow.transform._transforms:
        if isinstance(layer, AffineCoupling):
            nn.init.zeros_(layer.last.weight)
    data = torch.randn(500, 144).double() * torch.linspace(0.1, 2, 144).double() + 1
    flow.standardise.fit(data)
    points, condition = data[None, :9], torch.randn(1, C).double()
    normal = torch.distributions.Normal(data.mean(0), data.std(0))
    np.testing.assert_allclose(flow.log_prob(points, condition).detach(), normal.log_prob(points).sum(-1), rtol=1e-12)
    zero, density = flow.sample(torch.zeros(1, 1, 144).double(), condition)
    np.testing.assert_allclose(zero[0, 0].detach(), data.mean(0), atol=1e-12)
    expected = -132.327149 - data.std(0).log().sum()
    np.testing.assert_allclose(density.detach()[0, 0], expected, rtol=1e-7)


def test_density_integrates_to_one_and_agrees_with_samples() -> None:
    torch.manual_seed(2)
    flow = ConditionalFlow(2, C, hidden=16, couplings=4).double()
    with torch.no_grad():
        for key, value in flow.named_parameters():
            if "last" in key:
                value.normal_(0, 0.3)
    condition = torch.randn(1, C).double()
    axis = torch.linspace(-30, 30, 501).double()
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    with torch.no_grad():
        density = flow.log_prob(grid.reshape(1, -1, 2), condition).exp().reshape(501, 501)
        samples, log_density = flow.sample(torch.randn(1, 40000, 2).double(), condition)
        np.testing.assert_allclose(flow.log_prob(samples, condition), log_density, atol=1e-8)
    cell = float(axis[1] - axis[0]) ** 2
    assert float(density.sum() * cell) == pytest.approx(1, abs=0.02)
    mean = (density[..., None] * grid).sum((0, 1)) * cell
    assert torch.allclose(samples.mean((0, 1)), mean, atol=0.1 * float(samples.std()))


def test_autocast_sums_the_determinant_in_float32() -> None:
    flow = ConditionalFlow(D, C, hidden=16, couplings=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = flow.log_prob(torch.randn(2, 3, D), torch.randn(2, C))
    assert value.dtype == torch.float32


def test_a_coupling_needs_an_even_size() -> None:
    with pytest.raises(ValueError, match="even"):
        AffineCoupling(7, C, 8)


def test_base_density() -> None:
    flow = ConditionalFlow(D, C, hidden=4, couplings=1)
    np.testing.assert_allclose(flow.base_log_prob(torch.zeros(1, 1, D)), -D / 2 * math.log(2 * math.pi), rtol=1e-6)
