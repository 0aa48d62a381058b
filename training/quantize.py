"""n-quantised modes as a piece of the exported graph: batched, unrolled, plain operators only.

The same steps as :mod:`hmr_prob_ros.quantize`, where they are explained. Instead of indexing and scatter, which
export as GatherND and ScatterND, a choice is a one-hot row times a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..quantize import CANDIDATES, STEPS, candidate_uniforms

__all__ = ["Quantizer", "relative_points", "shares"]

_FAR = 1e9
_WEIGHT_GRID = float(2**20)


def relative_points(joints: Tensor) -> Tensor:
    """Joints relative to the pelvis, (B, N, J, 3) -> (B, N, 3 J): the space that modes are chosen in."""
    return (joints - joints[:, :, :1]).flatten(2)


class Quantizer(nn.Module):
    """Weighted k-means of N samples to n modes, each mode one of the samples.

    Args:
        n: number of modes, at most N.
        candidates: of each greedy k-means++ step.
        steps: Lloyd steps.
    """

    def __init__(self, n: int, candidates: int = CANDIDATES, steps: int = STEPS) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"the number of modes must be at least 1, not {n}")
        self.n, self.steps = n, steps
        uniforms = torch.from_numpy(candidate_uniforms(n, candidates))
        self.register_buffer("uniforms", uniforms[:, None, :, None], persistent=False)  # (n, 1, candidates, 1)
        self.register_buffer("modes", torch.arange(n)[:, None], persistent=False)
        self.register_buffer("candidates", torch.arange(candidates), persistent=False)

    def forward(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Modes, heaviest first.

        Args:
            points: (B, N, P), for example :func:`relative_points`.
            weights: of the samples, (B, N), positive, each row sums to one.

        Returns:
            ``index`` (B, n) int64, all different; ``weight`` (B, n), each row sums to one; ``choice`` (B, n, N), the
            one-hot rows of ``index``, which gather anything: ``choice @ values`` (B, n, F).
        """
        dtype = points.dtype
        points = points - points.mean(1, keepdim=True)
        square = (points * points).sum(-1, keepdim=True)  # (B, N, 1)
        one = torch.ones_like(square)
        # |x - c|^2 = (-2 c, |c|^2, 1) . (x, 1, |x|^2): one product for all distances to chosen samples.
        right = torch.cat((points, one, square), dim=-1).transpose(1, 2)  # (B, P + 2, N)
        left = torch.cat((-2 * points, square, one), dim=-1)  # (B, N, P + 2)
        number = torch.arange(points.shape[1], device=points.device)
        mass, column = weights[:, None], weights[..., None]  # (B, 1, N), (B, N, 1)

        # Greedy k-means++.
        nearest, chosen = None, []
        for k in range(self.n):
            reach = torch.cumsum(mass if nearest is None else mass * nearest, dim=-1)  # (B, 1, N)
            beyond = (reach > self.uniforms[k] * reach[..., -1:]).to(dtype)
            picks = (beyond.argmax(-1, keepdim=True) == number).to(dtype) @ left  # (B, candidates, P + 2)
            cost = (picks @ right).clamp_min(0.0)
            if nearest is not None:
                cost = torch.minimum(cost, nearest)
            best = ((cost @ column).argmin(1, keepdim=True) == self.candidates).to(dtype)  # (B, 1, candidates)
            nearest = best @ cost
            chosen.append(best @ picks)
        centres = torch.cat(chosen, dim=1)  # (B, n, P + 2)

        # Lloyd; an empty cluster stays where it is, and before the last step moves to the sample that costs most.
        for step in range(self.steps):
            cost = centres @ right
            member = (cost.argmin(1, keepdim=True) == self.modes).to(dtype) * mass  # (B, n, N)
            total = member.sum(-1, keepdim=True)
            moved = (member @ left[..., :-2]) / total.clamp_min(1e-37)  # -2 c
            moved = torch.cat((moved, (0.25 * moved * moved).sum(-1, keepdim=True), one[:, :1].expand_as(total)), -1)
            if step == self.steps - 2:
                worst = (cost.amin(1, keepdim=True) * mass).argmax(-1, keepdim=True) == number
                centres = torch.where(total > 0, moved, worst.to(dtype) @ left)
            else:
                centres = torch.where(total > 0, moved, centres)

        # The member nearest to the centre stands for its cluster; the k-th empty one takes the k-th free sample.
        cost = centres @ right
        member = (cost.argmin(1, keepdim=True) == self.modes).to(dtype)
        filled = member.amax(-1, keepdim=True)  # (B, n, 1), 1 or 0
        choice = ((cost + _FAR * (1 - member)).argmin(-1, keepdim=True) == number).to(dtype) * filled
        free = 1 - choice.sum(1, keepdim=True)
        mended = (torch.cumsum(free, -1) == torch.cumsum(1 - filled, 1)).to(dtype) * free * (1 - filled)
        choice = choice + mended
        # Whoever stands for a mode belongs to it.
        member = choice + member * (1 - choice.sum(1, keepdim=True))
        weight = member @ column  # (B, n, 1)

        order = _heaviest_first(weight)
        choice = order @ choice
        weight = (order @ weight)[..., 0]
        index = (choice * number.to(dtype)).sum(-1)
        return index.to(torch.int64), weight / weight.sum(-1, keepdim=True), choice


def _heaviest_first(weight: Tensor) -> Tensor:
    """The permutation (B, n, n) that sorts weights (B, n, 1), without a sort: the rank of a mode is the number of
    heavier ones, ties by order."""
    level = torch.round(weight * _WEIGHT_GRID)
    across = level.transpose(1, 2)
    number = torch.arange(weight.shape[1], device=weight.device)
    heavier = ((across > level) | ((across == level) & (number < number[:, None]))).to(weight.dtype).sum(-1)  # (B, n)
    return (heavier[:, None] == number[:, None].to(weight.dtype)).to(weight.dtype)  # (B, rank, n)


def shares(modes: Tensor, draws: Tensor) -> Tensor:
    """Weights (B, n) of given modes: the share of draws that lie nearest to each, where every mode counts as one draw
    too.

    Args:
        modes: (B, n, P).
        draws: (B, N, P).
    """
    centre = modes.mean(1, keepdim=True)
    modes, draws = modes - centre, draws - centre
    # |x - c|^2 without |x|^2, which is the same for all modes.
    cost = (modes * modes).sum(-1, keepdim=True) - 2 * (modes @ draws.transpose(1, 2))  # (B, n, N)
    number = torch.arange(modes.shape[1], device=modes.device)
    member = (cost.argmin(1, keepdim=True) == number[:, None]).to(modes.dtype)
    count = member.sum(-1) + 1
    return count / count.sum(1, keepdim=True)
