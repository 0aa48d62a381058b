r"""Prior over poses as joints in space: what weighs the hypotheses of :class:`.multi_head.MultiHead` (Biggs et al.,
"3D Multi-bodies", NeurIPS 2020, equation 4 and appendix F).

A RealNVP over the 24 x 3 joints of a body whose pelvis stands at the origin and is not turned: 20 couplings with random
masks and networks of 72-512-512-72, the scale through tanh. Trained alone, by maximum likelihood.

A body has far fewer than 72 degrees of freedom: bones are rigid, the pelvis is always zero. Joints as they are have no
density in 72 dimensions; training adds Gaussian noise of ``NOISE`` metres, and the prior is the density of joints known
to that accuracy.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from nflows.transforms import Transform
from torch import Tensor, nn
from tqdm import trange

from hmr_prob_ros.skeleton import JOINT_NAMES, NUM_JOINTS

from ..flow import Standardise, TransformChain

__all__ = ["NOISE", "MaskedCoupling", "PosePrior", "PriorConfig", "PriorError", "root_align", "train_prior"]

NOISE = 0.01
"""Metres: deviation of the noise on training joints.

It hardly matters which. At 5 and at 10 mm alike 93.5 % of poses of unseen takes were likelier than themselves with a
hip, knee, shoulder or elbow turned by some 60 degrees, and 99 % than themselves with every joint off by 15 degrees.
Less noise only widens the gaps (median 15 and 12 nats), so that the likeliest head outweighs all others even more.
"""

SIZE = 3 * NUM_JOINTS

_LEFT, _RIGHT, _SPINE = (JOINT_NAMES.index(name) for name in ("left_hip", "right_hip", "spine1"))


class PriorError(ValueError):
    """A prior that cannot be trained, or a file of one that cannot be used; the text says why and how to mend it."""


def root_align(joints: Tensor) -> Tensor:
    r"""Joints (..., 24, 3) with the pelvis at the origin and its rotation taken away; same shape, at least float32.

    The hips and the lowest spine joint hang rigidly on the pelvis, so they tell its rotation: :math:`x` from the right
    to the left hip, :math:`y` from the hips to the spine and square to it, :math:`z = x \times y`. For one shape that
    is the pelvis' own frame times a constant; joints of any source will do, also without rotations.
    """
    joints = joints.float() if joints.dtype in (torch.float16, torch.bfloat16) else joints
    joints = joints - joints[..., :1, :]
    left, right = joints[..., _LEFT, :], joints[..., _RIGHT, :]
    x = nn.functional.normalize(left - right, dim=-1)
    up = joints[..., _SPINE, :] - (left + right) / 2
    y = nn.functional.normalize(up - (up * x).sum(-1, keepdim=True) * x, dim=-1)
    frame = torch.stack((x, y, torch.linalg.cross(x, y)), dim=-2)  # rows are the axes
    # A sum of products: autocast would round a matrix product to bfloat16.
    return (joints[..., None, :] * frame[..., None, :, :]).sum(-1)


class MaskedCoupling(Transform):
    r"""An affine coupling whose halves are chosen by a fixed random mask :math:`m`,

    .. math:: y = m x + (1 - m) (x - t(m x)) e^{-s(m x)}, \qquad \log|\det| = -\sum_i (1 - m_i) s_i, \quad |s| < 1

    Points are (..., D), log-determinants (...).

    Args:
        size: D; ``hidden``: width of the two networks; ``dropout``: of their layers; ``seed``: of the mask, which is
            also saved with the weights.
    """

    def __init__(self, size: int, hidden: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.5
        self.register_buffer("mask", mask.float())
        self.scale, self.shift = (_network(size, hidden, dropout) for _ in range(2))

    def _scale_shift(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        moved = 1 - self.mask
        kept = inputs * self.mask
        # Under autocast the layers give bfloat16; the determinant is summed in the precision of the data.
        scale = torch.tanh(self.scale(kept).to(inputs.dtype))
        return moved * scale, moved * self.shift(kept).to(inputs.dtype)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, shift = self._scale_shift(inputs)
        return (inputs - shift) * torch.exp(-scale), -scale.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, shift = self._scale_shift(inputs)
        return inputs * torch.exp(scale) + shift, scale.sum(-1)

    def extra_repr(self) -> str:
        return f"size={len(self.mask)}, kept={int(self.mask.sum())}"


def _network(size: int, hidden: int, dropout: float) -> nn.Sequential:
    last = nn.Linear(hidden, size)
    # Nearly the identity at the start, and still a gradient for every parameter.
    nn.init.normal_(last.weight, std=1e-3)
    nn.init.zeros_(last.bias)
    layers: list[nn.Module] = []
    for inputs in (size, hidden):
        layers += [nn.Linear(inputs, hidden), nn.Dropout(dropout), nn.LeakyReLU()]
    return nn.Sequential(*layers, last)


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a :class:`PosePrior`; the defaults are the published ones (``dropout``: the published code's)."""

    hidden: int = 512
    couplings: int = 20
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.couplings < 1:
            raise ValueError("a pose prior needs at least one coupling and one hidden unit")


class PosePrior(nn.Module):
    r"""Density :math:`p(X)` of root-aligned joints.

    Log-densities of two bodies easily differ by tens of nats: subtract before you exponentiate.

    Example:
        >>> prior = PosePrior(PriorConfig(hidden=16, couplings=2)).eval()
        >>> prior.log_prob(torch.randn(3, 5, 24, 3)).shape
        torch.Size([3, 5])
    """

    def __init__(self, config: PriorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PriorConfig()
        self.standardise = Standardise(SIZE)
        seeds = range(1000 * config.seed, 1000 * config.seed + config.couplings)
        self.transform = TransformChain([MaskedCoupling(SIZE, config.hidden, config.dropout, seed) for seed in seeds])
        self.register_buffer("steps", torch.zeros(()))  # a float, which averaging of weights does not round

    @property
    def trained(self) -> bool:
        """Whether it was trained at all."""
        return bool(self.steps > 0)

    def points_log_prob(self, points: Tensor) -> Tensor:
        """Log-density (...) of aligned joints as numbers (..., 72), in nats per metre^72."""
        standard, first = self.standardise(points)
        latents, rest = self.transform(standard)
        return first + rest - 0.5 * (latents * latents).sum(-1) - 0.5 * SIZE * math.log(2 * math.pi)

    def log_prob(self, joints: Tensor) -> Tensor:
        """Log-density (...) of joints (..., 24, 3) in metres, wherever they stand and face."""
        return self.points_log_prob(root_align(joints).flatten(-2))

    def sample(self, latents: Tensor) -> Tensor:
        """Aligned joints (..., 24, 3) of standard normal ``latents`` (..., 72)."""
        standard, _ = self.transform.inverse(latents)
        return self.standardise.inverse(standard)[0].unflatten(-1, (NUM_JOINTS, 3))

    def save(self, path: str | Path) -> None:
        """Writes sizes and weights; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu() for key, value in self.state_dict().items()}
        partial = path.with_name(path.name + ".part")
        torch.save({"pose_prior": dataclasses.asdict(self.config), "state": state}, partial)
        partial.replace(path)

    @staticmethod
    def load(path: str | Path) -> PosePrior:
        """A saved prior, in evaluation mode.

        Raises:
            PriorError: no such file, no pose prior, or weights that do not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise PriorError(f"no pose prior at {path}: train one with train_prior and save it")
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
            prior = PosePrior(PriorConfig(**data["pose_prior"]))
            prior.load_state_dict(data["state"])
        except Exception as error:
            reason = type(error).__name__  # torch's text is a page
            raise PriorError(f"{path} is no pose prior of this version ({reason}): train it again") from error
        return prior.eval()


def train_prior(
    prior: PosePrior,
    joints: Tensor,
    steps: int = 4000,
    batch: int = 256,
    rate: float = 5e-4,
    noise: float = NOISE,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Trains a prior by maximum likelihood; leaves it frozen and in evaluation mode.

    Called again it goes on from the weights it has.

    Args:
        prior: what is trained, on the device it lies on.
        joints: true joints (T, 24, 3) in metres, wherever they stand and face; ``examples.joints`` will do.
        steps, batch, rate: of Adam; the rate falls to zero along a cosine.
        noise: metres, deviation of the Gaussian noise on the aligned joints.
        seed: of batches and noise.
        progress: show a bar.

    Returns:
        Mean negative log-likelihood of each step's batch (steps,), nats.

    Raises:
        ValueError: ``joints`` have another shape, or some are not finite.
        PriorError: the likelihood became NaN or infinite.
    """
    if joints.ndim != 3 or joints.shape[1:] != (NUM_JOINTS, 3) or not len(joints) or not torch.isfinite(joints).all():
        raise ValueError(f"the prior needs finite joints (T, {NUM_JOINTS}, 3) with T > 0, not {tuple(joints.shape)}")
    device = prior.steps.device
    points = root_align(joints.detach().float()).flatten(-2)
    if not prior.trained:
        # Noise widens each number, also those that never change.
        points_std = points.std(0, unbiased=False).square().add(noise**2).sqrt()
        prior.standardise.mean.copy_(points.mean(0))
        prior.standardise.std.copy_(points_std)
    generator = torch.Generator().manual_seed(seed + int(prior.steps))
    prior.requires_grad_(True).train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    history = []
    bar = trange(steps, desc="training the pose prior", unit="step", disable=not progress)
    for step in bar:
        rows = torch.randint(len(points), (batch,), generator=generator)
        drawn = points[rows.to(points.device)].to(device)
        drawn = drawn + noise * torch.randn(drawn.shape, generator=generator).to(device)
        loss = -prior.points_log_prob(drawn).mean()
        if not torch.isfinite(loss):
            raise PriorError(f"the pose prior's likelihood is not finite at step {step}: lower the rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        history.append(loss.detach())
        if step % 50 == 0:
            bar.set_postfix(nll=f"{float(history[-1]):.1f}")
    prior.steps += steps
    prior.requires_grad_(False).eval()
    return torch.stack(history).cpu() if history else torch.zeros(0)
