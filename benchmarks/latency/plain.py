"""The plain sampler that the package is compared with: ``nflows``' own flow, the condition repeated for each sample.

The same weights as the package's flow, on the classes that ``nflows`` has for it: ``Flow.sample_and_log_prob`` repeats
the condition N times and hands it, joined to the kept half of the numbers, to the network of every coupling.
"""

from __future__ import annotations

__all__ = ["PlainSampler"]

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, PointwiseAffineTransform
from nflows.transforms.coupling import AffineCouplingTransform
from nflows.transforms.permutations import Permutation
from torch import Tensor, nn

from hmr_prob_ros.training.flow import (
    AdditiveCoupling,
    AffineCoupling,
    ConditionalFlow,
    FixedPermutation,
    soft_clamp,
)


class _Given(StandardNormal):
    """A standard normal whose next draw is known, so that two samplers can be given the same."""

    noise: Tensor

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return self.noise


class _Network(nn.Module):
    """Three layers on the kept numbers and the condition together."""

    def __init__(self, coupling: AffineCoupling) -> None:
        super().__init__()
        first = nn.Linear(coupling.half + coupling.from_context.in_features, coupling.first.out_features)
        with torch.no_grad():
            first.weight.copy_(torch.cat((coupling.first.weight, coupling.from_context.weight), dim=1))
            first.bias.copy_(coupling.from_context.bias)
        self.layers = nn.Sequential(first, nn.ReLU(), coupling.second, nn.ReLU(), coupling.last)

    def forward(self, kept: Tensor, context: Tensor) -> Tensor:
        return self.layers(torch.cat((kept, context), dim=1))


class _Coupling(AffineCouplingTransform):
    """``nflows``' affine coupling with the soft clamp in place of its fixed sigmoid."""

    def __init__(self, coupling: AffineCoupling) -> None:
        self.outputs = coupling.outputs
        mask = torch.cat((torch.zeros(coupling.half), torch.ones(coupling.half)))
        super().__init__(mask, lambda inputs, outputs: _Network(coupling))
        self.alpha = coupling.alpha
        self.raw_scale = coupling.raw_scale if isinstance(coupling, AdditiveCoupling) else None

    def _transform_dim_multiplier(self) -> int:
        return self.outputs

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        if self.raw_scale is not None:
            return torch.exp(soft_clamp(self.raw_scale, self.alpha)).expand_as(transform_params), transform_params
        raw, shift = transform_params.chunk(2, dim=1)
        return torch.exp(soft_clamp(raw, self.alpha)), shift


class PlainSampler(nn.Module):
    """Takes the place of a :class:`ConditionalFlow` where samples are drawn, with its weights.

    Raises:
        TypeError: another kind of flow.
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(f"the plain sampler is made of a ConditionalFlow, not of a {type(flow).__name__}")
        scale = 1 / flow.standardise.std
        layers: list[nn.Module] = [PointwiseAffineTransform(shift=-flow.standardise.mean * scale, scale=scale)]
        for layer in flow.transform._transforms:
            layers.append(Permutation(layer.order, dim=1) if isinstance(layer, FixedPermutation) else _Coupling(layer))
        self.size = flow.size
        self.flow = Flow(CompositeTransform(layers), _Given([flow.size])).eval()

    def sample(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """As ``ConditionalFlow.sample``: latents (B, N, D), condition (B, C) -> points (B, N, D), densities (B, N)."""
        self.flow._distribution.noise = latents
        return self.flow.sample_and_log_prob(latents.shape[1], context=condition)
