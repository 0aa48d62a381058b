"""Drawing from a flow with the samples as the **last** axis, for the exported graph.

The numbers that :meth:`ConditionalFlow.sample` gives, computed on (D, B N). A permutation then copies whole rows where
with D as the last axis a CPU picks single numbers, and halving and joining need no strides: a quarter of the time. The
networks inside keep one row for each sample, since runtimes pack weights beforehand that are second factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import AdditiveCoupling, AffineCoupling, ConditionalFlow, FixedPermutation, soft_clamp

__all__ = ["sample_columns"]


def sample_columns(flow: ConditionalFlow, latents: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Data (D, B, N) for standard normal ``latents`` (D, B, N) and ``condition`` (B, C), and its log-density (B, N).

    Raises:
        TypeError: the flow holds a transform that is not known here.
    """
    tail = latents.shape[1:]
    points = latents.flatten(1)
    log_density = flow.base_log_prob(points.T) - torch.log(flow.standardise.std).sum()
    for layer in reversed(flow.transform._transforms):
        if isinstance(layer, FixedPermutation):
            points = points.index_select(0, layer.back)
        elif isinstance(layer, AffineCoupling):
            points, volume = _uncouple(layer, points, condition, tail)
            log_density = log_density - volume
        else:
            raise TypeError(f"a {type(layer).__name__} has no form with the samples last")
    points = points * flow.standardise.std[:, None] + flow.standardise.mean[:, None]
    return points.unflatten(1, tail), log_density.unflatten(0, tail)


def _uncouple(layer: AffineCoupling, points: Tensor, condition: Tensor, tail: torch.Size) -> tuple[Tensor, Tensor]:
    """``AffineCoupling.inverse`` of points (D, B N): the result, and its log-determinant (B N,)."""
    kept, moved = points[: layer.half], points[layer.half :]
    person = layer.from_context(condition)[:, None]  # (B, 1, H)
    hidden = torch.relu(layer.first(kept.T).unflatten(0, tail) + person).flatten(0, 1)
    out = layer.last(torch.relu(layer.second(hidden))).T
    if isinstance(layer, AdditiveCoupling):
        shift, raw = out, layer.raw_scale[:, None].expand_as(out)
    else:
        raw, shift = out[: layer.half], out[layer.half :]
    scale = soft_clamp(raw, -layer.alpha)  # of the inverse
    return torch.cat((kept, (moved - shift) * torch.exp(scale))), scale.sum(0)
