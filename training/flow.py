r"""Conditional RealNVP: one density over poses for every condition.

A chain of affine couplings (Dinh et al., "Density estimation using Real NVP", ICLR 2017) with the soft clamp of
Ardizzone et al. ("Guided image generation with conditional invertible neural networks", 2019), on the transform
classes of ``nflows``. As there, ``forward`` goes from data to noise and ``inverse`` from noise to data. Unlike
there, every transform works on (B, N, D), N points for each of B conditions (B, C), and gives its log-determinant
as (B, N), or as a scalar where it is the same for all: so what depends on the condition alone is computed once per
person and not once per sample.
"""

from __future__ import annotations

import math

import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, nn

__all__ = [
    "AdditiveCoupling",
    "AffineCoupling",
    "ConditionalFlow",
    "FixedPermutation",
    "Standardise",
    "TransformChain",
    "soft_clamp",
]


def soft_clamp(raw: Tensor, alpha: float = 2.0) -> Tensor:
    r"""Bounded log-scale :math:`0.636\,\alpha\,\arctan(u)`, about :math:`(-\alpha, \alpha)`; same shape.

    >>> soft_clamp(torch.tensor([0.5, 1.0, 10.0]))
    tensor([0.5898, 0.9990, 1.8713])
    """
    return (0.636 * alpha) * torch.atan(raw)


class FixedPermutation(Transform):
    """A random but fixed reordering of the D numbers; volume preserving.

    Args:
        size: D.
        seed: seed of the permutation, which is also saved with the weights.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)
        self.register_buffer("back", torch.argsort(order))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.index_select(inputs, -1, self.order), inputs.new_zeros(())

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # index_select and not inputs[..., order]: the latter exports as GatherND.
        return torch.index_select(inputs, -1, self.back), inputs.new_zeros(())

    def extra_repr(self) -> str:
        return f"size={self.order.numel()}"


class Standardise(Transform):
    r"""Data to zero mean and unit deviation per dimension, :math:`y = (x - \mu)/\sigma`, with its log-determinant.

    The two are buffers, measured on the training data by :meth:`fit`, so latent zero lies near the mean pose.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, data: Tensor, floor: float = 0.02) -> None:
        """Measures mean and deviation of ``data`` (T, D); a deviation is at least ``floor`` (6D units)."""
        self.mean.copy_(data.mean(0))
        self.std.copy_(data.std(0).clamp_min(floor))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        volume = -torch.log(self.std).sum()
        return (inputs - self.mean) / self.std, volume

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        volume = torch.log(self.std).sum()
        return inputs * self.std + self.mean, volume

    def extra_repr(self) -> str:
        return f"size={self.mean.numel()}"


class AffineCoupling(Transform):
    r"""The first half of the numbers steers scale and shift of the second half.

    .. math:: y_a = x_a, \qquad y_b = x_b\,e^{s(x_a, c)} + t(x_a, c), \qquad \log|\det| = \sum_i s_i

    ``(s, t)`` come from three linear layers of width ``hidden``. The first is split in a part for ``x_a`` and a part
    for the condition, ``W [x_a; c] = W_x x_a + W_c c``: the second product is taken once per person and broadcast
    over the N samples, which saves up to half of the work.

    Args:
        size: D, an even number.
        context: width C of the condition.
        hidden: width H of the layers.
        alpha: bound of the soft clamp, see :func:`soft_clamp`.
        dropout: probability, active in training only.
    """

    outputs = 2
    """Numbers that the networks give for each one that is moved: a scale and a shift."""

    def __init__(self, size: int, context: int, hidden: int, alpha: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"an affine coupling halves its numbers, so their count must be even, not {size}")
        self.half, self.alpha = size // 2, alpha
        self.first = nn.Linear(self.half, hidden, bias=False)
        self.from_context = nn.Linear(context, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, self.outputs * self.half)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.first, self.from_context, self.second):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        # Nearly the identity at the start, and still a gradient for every parameter.
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.bias)

    def _network(self, kept: Tensor, context: Tensor) -> Tensor:
        hidden = torch.relu(self.first(kept) + self.from_context(context)[:, None])
        # Two axes from here on: a runtime fuses product, bias and ReLU of a matrix, not of a batch of them.
        hidden = self.dropout(torch.relu(self.second(hidden.flatten(0, 1))))
        # Under autocast the layers give bfloat16; the determinant is summed in the precision of the data.
        return self.last(hidden).to(kept.dtype).reshape(kept.shape[:2] + (self.outputs * self.half,))

    def _scale_shift(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        out = self._network(kept, context)
        return soft_clamp(out[..., : self.half], self.alpha), out[..., self.half :]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, moved = inputs[..., : self.half], inputs[..., self.half :]
        scale, shift = self._scale_shift(kept, context)
        return torch.cat((kept, moved * torch.exp(scale) + shift), dim=-1), scale.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, moved = inputs[..., : self.half], inputs[..., self.half :]
        scale, shift = self._scale_shift(kept, context)
        return torch.cat((kept, (moved - shift) * torch.exp(-scale)), dim=-1), -scale.sum(-1)

    def extra_repr(self) -> str:
        return f"size={2 * self.half}, alpha={self.alpha}"


class AdditiveCoupling(AffineCoupling):
    r"""A coupling whose networks only shift, and whose scale is learned but the same for all points and conditions.

    .. math:: y_b = x_b\,e^{s} + t(x_a, c), \qquad \log|\det| = \sum_i s_i

    (Dinh et al., "NICE", 2015; its diagonal scaling is here in every coupling, else a flow of them could not be
    narrower than its data.) The determinant is constant, so latent zero is exactly the mode.
    """

    outputs = 1

    def __init__(self, size: int, context: int, hidden: int, alpha: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__(size, context, hidden, alpha, dropout)
        self.raw_scale = nn.Parameter(torch.zeros(self.half))

    def _scale_shift(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return soft_clamp(self.raw_scale, self.alpha), self._network(kept, context)


class TransformChain(CompositeTransform):
    """``nflows``' composition, for points of shape (B, N, D) instead of (B, D)."""

    @staticmethod
    def _cascade(inputs: Tensor, funcs, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = None
        for func in funcs:
            inputs, logabsdet = func(inputs, context)
            total = logabsdet if total is None else total + logabsdet
        return inputs, total


class ConditionalFlow(nn.Module):
    r"""Density :math:`p(x \mid c)` over D numbers, and exact samples of it.

    .. math:: \log p(x \mid c) = \log\mathcal N(f(x; c); 0, I) + \log|\det \partial f/\partial x|

    Args:
        size: D.
        context: width C of the condition.
        hidden: width of the coupling networks.
        couplings: how many affine couplings, each before a fixed random permutation.
        alpha, dropout: see :class:`AffineCoupling`.
        seed: seed of the permutations.
        additive: :class:`AdditiveCoupling` instead; latent zero is then exactly the mode.

    Example:
        >>> flow = ConditionalFlow(size=6, context=3, hidden=16, couplings=2)
        >>> condition, latents = torch.zeros(2, 3), torch.zeros(2, 5, 6)
        >>> points, log_density = flow.sample(latents, condition)
        >>> points.shape, log_density.shape
        (torch.Size([2, 5, 6]), torch.Size([2, 5]))
        >>> bool(torch.allclose(flow.log_prob(points, condition), log_density, atol=1e-5))
        True
    """

    def __init__(
        self,
        size: int,
        context: int,
        hidden: int,
        couplings: int = 8,
        alpha: float = 2.0,
        dropout: float = 0.0,
        seed: int = 0,
        additive: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        coupling = AdditiveCoupling if additive else AffineCoupling
        self.standardise = Standardise(size)
        layers: list[Transform] = []
        for i in range(couplings):
            layers.append(FixedPermutation(size, seed=1000 * seed + i))
            layers.append(coupling(size, context, hidden, alpha, dropout))
        self.transform = TransformChain(layers)

    def to_noise(self, data: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Data (B, N, D), condition (B, C) -> latents (B, N, D), log-determinant (B, N)."""
        standard, first = self.standardise(data)
        latents, rest = self.transform(standard, condition)
        return latents, first + rest

    def to_data(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D), condition (B, C) -> data (B, N, D), log-determinant (B, N) of this direction."""
        standard, first = self.transform.inverse(latents, condition)
        data, rest = self.standardise.inverse(standard)
        return data, first + rest

    def base_log_prob(self, latents: Tensor) -> Tensor:
        """Log-density (B, N) of the standard normal at ``latents`` (B, N, D)."""
        return -0.5 * (latents * latents).sum(-1) - 0.5 * self.size * math.log(2 * math.pi)

    def log_prob(self, data: Tensor, condition: Tensor) -> Tensor:
        """Log-density (B, N), in nats per D-dimensional volume, at ``data`` (B, N, D)."""
        latents, logabsdet = self.to_noise(data, condition)
        return self.base_log_prob(latents) + logabsdet

    def sample(self, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Data (B, N, D) for standard normal ``latents`` (B, N, D), and its log-density (B, N)."""
        data, logabsdet = self.to_data(latents, condition)
        return data, self.base_log_prob(latents) - logabsdet
