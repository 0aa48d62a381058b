r"""ProHMR (Kolotouros et al., "Probabilistic modeling for human mesh recovery", ICCV 2021): **additive** couplings.

Four layers of [ActNorm, LULinear, additive coupling] from ``nflows``, as in Glow (Kingma and Dhariwal, NeurIPS
2018). The log-determinant is the same for every latent and every person, so latent zero is exactly the most likely
pose, and the mean of :math:`\log p(\text{mode}) - \log p(\text{sample})` is :math:`D/2`. Betas and camera come from
heads and are the same for all samples; the options of :class:`FlowConfig` to draw them work here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from nflows.nn.nets import ResidualNet
from nflows.transforms import ActNorm, AdditiveCouplingTransform, LULinear, Transform
from torch import Tensor, distributed, nn

from ..flow import ConditionalFlow, TransformChain
from .base import POSE_SIZE
from .flow import FlowConfig, FlowPosterior

__all__ = [
    "FixedLinear",
    "Glow",
    "PointActNorm",
    "PointCoupling",
    "PointLULinear",
    "PointNet",
    "PointNorm",
    "ProHMR",
    "ProHMRConfig",
]

STD_FLOOR = 1e-3
"""Smallest deviation that ActNorm divides by: some of the 6D numbers hardly move."""


class PointActNorm(ActNorm):
    r"""``nflows``' ActNorm, :math:`y = e^{s} x + t`, for points (B, N, D).

    Starts as the standardisation of its data: of :meth:`fit`, or of the first batch that it sees in training, that of
    all processes together. That it was done is part of the state, so a resumed training does not do it again.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self.initialized:
            self.fit(inputs, everywhere=True)
        return inputs * self.scale + self.shift, self.log_scale.sum()

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (inputs - self.shift) * torch.exp(-self.log_scale), -self.log_scale.sum()

    @torch.no_grad()
    def fit(self, data: Tensor, everywhere: bool = False) -> None:
        """Takes mean and deviation of ``data`` (..., D), at least two points; fewer leave it as it is.

        ``everywhere``: of the data of all processes of a distributed training, each of which must call this.
        """
        points = data.reshape(-1, data.shape[-1])

        def total(values: Tensor) -> Tensor:
            if everywhere and distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(values)
            return values

        sums = total(torch.cat((points.sum(0), points.new_tensor([len(points)]))))
        if sums[-1] < 2:
            return
        mean = sums[:-1] / sums[-1]
        squares = total((points - mean).square().sum(0))
        std = (squares / (sums[-1] - 1)).sqrt().clamp_min(STD_FLOOR)
        self.log_scale.copy_(-torch.log(std))
        self.shift.copy_(-mean / std)
        self.initialized.fill_(True)


class PointLULinear(LULinear):
    """``nflows``' linear map by its triangular factors, L U x + b, for points (B, N, D); starts as the identity."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # The points themselves pass through here, so bfloat16, which is enough for networks, is not.
        with torch.autocast(inputs.device.type, enabled=False):
            lower, upper = self._create_lower_upper()
            return F.linear(F.linear(inputs, upper), lower, self.bias), self.logabsdet()

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(inputs.device.type, enabled=False):
            lower, upper = self._create_lower_upper()
            rows = (inputs - self.bias).flatten(0, -2)
            rows = torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False, unitriangular=True)
            rows = torch.linalg.solve_triangular(upper.T, rows, upper=False, left=False)
            return rows.reshape(inputs.shape), -self.logabsdet()

    def fixed(self) -> FixedLinear:
        """The same map as plain matrices."""
        with torch.no_grad():
            lower, upper = (factor.double() for factor in self._create_lower_upper())
            weight = lower @ upper
            return FixedLinear(weight, torch.linalg.inv(weight), self.bias, self.logabsdet())


class FixedLinear(Transform):
    """A linear map of points (B, N, D) that does not learn: weight, inverse (D, D), bias (D,), log-determinant ()."""

    def __init__(self, weight: Tensor, inverse: Tensor, bias: Tensor, logabsdet: Tensor) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("inverse_weight", inverse), ("bias", bias), ("volume", logabsdet)):
            self.register_buffer(name, value.detach().to(bias.dtype).clone())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.linear(inputs, self.weight, self.bias), self.volume

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.linear(inputs - self.bias, self.inverse_weight), -self.volume


class PointNorm(nn.BatchNorm1d):
    """Batch normalisation of (P, H) that also takes a single point in training: by the running statistics."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > 1:
            return super().forward(inputs)
        # Written out: a runtime then needs no operator of its own for it.
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return inputs * scale + (self.bias - self.running_mean * scale)


class PointNet(ResidualNet):
    """``nflows``' residual MLP, points (B, N, K) and conditions (B, C) -> (B, N, ``outputs``).

    As in the published flow the condition joins at the first layer and not in the blocks. That layer is split as in
    :class:`..flow.AffineCoupling`: the condition's part is computed once per person.
    """

    def __init__(
        self, inputs: int, outputs: int, context: int, hidden: int, blocks: int, dropout: float, batch_norm: bool
    ) -> None:
        super().__init__(inputs, outputs, hidden, num_blocks=blocks, dropout_probability=dropout)
        self.from_context = nn.Linear(context, hidden, bias=False)
        bound = (inputs + context) ** -0.5  # torch's start of one layer over both
        for weight in (self.initial_layer.weight, self.initial_layer.bias, self.from_context.weight):
            nn.init.uniform_(weight, -bound, bound)
        if batch_norm:
            for block in self.blocks:
                block.use_batch_norm = True
                block.batch_norm_layers = nn.ModuleList(PointNorm(hidden, eps=1e-3) for _ in range(2))

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        hidden = (self.initial_layer(inputs) + self.from_context(context)[:, None]).flatten(0, 1)
        for block in self.blocks:
            hidden = block(hidden)
        out = self.final_layer(hidden).to(inputs.dtype)  # networks may run in bfloat16, points do not
        return out.reshape(inputs.shape[:2] + (self.final_layer.out_features,))


class PointCoupling(AdditiveCouplingTransform):
    r"""``nflows``' additive coupling, :math:`y_a = x_a,\ y_b = x_b + t(x_a, c)`, for points (B, N, D): volumes stay.

    Args:
        mask: (D,), positive for b.
        make_net: (numbers in, numbers out) -> network of points (B, N, in) and conditions (B, C).
    """

    def __init__(self, mask: Tensor, make_net: Callable[[int, int], nn.Module]) -> None:
        super().__init__(mask, make_net)
        order = torch.cat((self.identity_features, self.transform_features))
        self.register_buffer("back", torch.argsort(order), persistent=False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(inputs, context, 1.0)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._moved(inputs, context, -1.0)

    def _moved(self, inputs: Tensor, context: Tensor | None, sign: float) -> tuple[Tensor, Tensor]:
        kept = torch.index_select(inputs, -1, self.identity_features)
        moved = torch.index_select(inputs, -1, self.transform_features) + sign * self.transform_net(kept, context)
        return torch.index_select(torch.cat((kept, moved), dim=-1), -1, self.back), inputs.new_zeros(())


class Glow(ConditionalFlow):
    r"""Density :math:`p(x \mid c)` of [ActNorm, LULinear, additive coupling] layers.

    Even numbers are kept and odd ones moved in the first layer, and the other way round in each next one.

    Args:
        size: D.
        context: width C of the condition.
        hidden, blocks, dropout, batch_norm: of the couplings' residual networks.
        layers: how many.

    Example:
        >>> flow = Glow(size=6, context=3, hidden=16, layers=2).eval()
        >>> condition, latents = torch.zeros(2, 3), torch.zeros(2, 5, 6)
        >>> points, log_density = flow.sample(latents, condition)
        >>> bool(torch.allclose(flow.log_prob(points, condition), log_density, atol=1e-5))
        True
    """

    def __init__(
        self,
        size: int,
        context: int,
        hidden: int = 1024,
        layers: int = 4,
        blocks: int = 2,
        dropout: float = 0.5,
        batch_norm: bool = True,
    ) -> None:
        super().__init__(size, context, hidden, couplings=0)
        self.context = context

        def make_net(inputs: int, outputs: int) -> nn.Module:
            return PointNet(inputs, outputs, context, hidden, blocks, dropout, batch_norm)

        parts: list[Transform] = []
        for i in range(layers):
            mask = (torch.arange(size) + i) % 2
            parts += [PointActNorm(size), PointLULinear(size), PointCoupling(mask, make_net)]
        # The first ActNorm is what standardises the data.
        self.standardise, self.transform = parts[0], TransformChain(parts[1:])

    @torch.no_grad()
    def fit(self, data: Tensor, most: int = 8192) -> None:
        """Starts every ActNorm on ``data`` (T, D), of which about ``most`` are taken, with conditions of zeros."""
        points = data[None, :: max(len(data) // most, 1)]
        context = points.new_zeros(1, self.context)
        training = self.training
        self.eval()  # dropout must not blur the data, and batch statistics are those of a training batch
        for part in (self.standardise, *self.transform._transforms):
            if isinstance(part, PointActNorm):
                part.fit(points)
            points, _ = part(points, context)
        self.train(training)

    def freeze(self) -> None:
        """Replaces the linear maps by plain matrices, as an exported graph needs them; ends training and saving."""
        parts = self.transform._transforms
        for i, part in enumerate(parts):
            if isinstance(part, PointLULinear):
                parts[i] = part.fixed()


@dataclass(frozen=True)
class ProHMRConfig(FlowConfig):
    """Everything that shapes a :class:`ProHMR`; the defaults are the published flow's. It has no permutations to seed.

    Attributes:
        couplings: number of layers.
        hidden, blocks, flow_dropout, batch_norm: of the couplings' networks; on little data or few steps less of
            everything trains better: 256 wide, no dropout, no batch normalisation.
    """

    hidden: int = 1024
    couplings: int = 4
    coupling: str = "additive"
    blocks: int = 2
    flow_dropout: float = 0.5
    batch_norm: bool = True
    refine_translation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coupling != "additive":
            raise ValueError(
                f"model.coupling={self.coupling!r}: ProHMR's flow is additive; set model=flow to compare couplings"
            )


class ProHMR(FlowPosterior):
    """p(pose | keypoints, box, picture) whose latent zero is exactly its mode."""

    name = "prohmr"
    config_class = ProHMRConfig

    def make_flow(self, config: ProHMRConfig) -> Glow:
        return Glow(
            POSE_SIZE,
            config.condition,
            config.hidden,
            config.couplings,
            config.blocks,
            config.flow_dropout,
            config.batch_norm,
        )

    def fit_statistics(self, pose6d: Tensor, noise: float = 0.005) -> None:
        """Starts the flow's ActNorms on training poses (T, 144), as the first training batch does without it.

        The likelihood's noise is added as there. Without it every ActNorm would divide what captures leave constant,
        hands for one, by its floor once more, and the noise would be 1e9 deviations at the end of the chain.
        """
        generator = torch.Generator().manual_seed(0)
        self.flow.fit(pose6d + noise * torch.randn(pose6d.shape, generator=generator).to(pose6d))

    def freeze(self) -> None:
        """Makes the flow exportable, see :meth:`Glow.freeze`."""
        self.flow.freeze()
