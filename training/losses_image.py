r"""Losses between projected samples and what a 2D detector and a person mask know (Wehrbein et al. 2025).

All points lie in crop coordinates: [-1, 1] across the square crop, x right, y down. J is 23, the keypoints of
COCO-WholeBody without face and hands, or 17, the first of them (COCO).
"""

from __future__ import annotations

__all__ = [
    "ARTICULATED",
    "BANDWIDTHS",
    "MASK_TOLERANCE",
    "UNCERTAIN",
    "VISIBLE_PEAK",
    "at_least_float32",
    "inside_crop",
    "inside_mask",
    "invisible_keypoints",
    "mask_loss",
    "mmd",
    "mmd_target",
]

import torch
from torch import Tensor

from hmr_prob_ros.skeleton import KEYPOINT_NAMES

BANDWIDTHS = (0.05, 0.2, 0.9)
"""Widths a of the kernels of the MMD, in crop coordinates (section 4.5)."""

ARTICULATED: tuple[bool, ...] = tuple(name.endswith(("elbow", "wrist", "knee", "ankle")) for name in KEYPOINT_NAMES)
"""Keypoints whose heatmaps are trusted where they are uncertain: elbows, wrists, knees, ankles (section 4.5)."""

UNCERTAIN = (0.15, 0.7)
"""Between these heatmap maxima a keypoint is uncertain. Paper: below 0.7; the lower end is the published code's."""

VISIBLE_PEAK = 0.5
"""A keypoint whose heatmap's maximum is lower is invisible (section 4.5)."""

MASK_TOLERANCE = 0.71
"""Half a pixel's diagonal in pixels, rounded up: a point this near to a pixel's centre belongs to it."""

_FAR = 1e6


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, raised to float32 from half precision, which would not resolve a crop's pixels."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(..., S, 2), (..., T, 2) -> (..., S, T): sum of inverse multiquadratics."""
    # Differences, not |a|^2 + |b|^2 - 2ab, whose rounding matters at a width of 0.05.
    square = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
    return torch.stack([width**2 / (width**2 + square) for width in BANDWIDTHS]).sum(0)


def mmd(
    samples: Tensor,
    target: Tensor,
    use: Tensor | None = None,
    unbiased: bool = False,
    over_all: bool = False,
) -> Tensor:
    r"""Squared maximum mean discrepancy of each joint's samples (Wehrbein et al. 2025, equations 4 and 8),

    .. math::
        M_k = E \varphi(s, s') + E \varphi(t, t') - 2 E \varphi(s, t), \qquad
        \varphi(s, t) = \sum_{a \in \{0.05, 0.2, 0.9\}} \frac{a^2}{a^2 + \lVert s - t \rVert^2}

    over samples s and targets t of joint k. By default the expectations within one set run over all pairs, each
    sample with itself included, as in the published code: M is then never negative. ``unbiased=True`` leaves those
    out and divides by n (n - 1), as equation 4 writes it, so that equal distributions give 0 on average. In the
    gradient the choice only weighs what drives samples apart, by (n - 1) / n: 0.96 for the papers' n = 25.

    The loss is the mean over the image/joint pairs in use. The paper does not state the reduction; its code sums
    over the pairs in use and divides by all B J of them (``over_all=True``), which makes the weight of a pair depend
    on how many keypoints the set has.

    Args:
        samples: (B, S, J, 2) projected random samples; the papers leave the mode out.
        target: (B, T, J, 2), as :func:`mmd_target` gives them.
        use: (B, J) bool or weight; None uses all.
        unbiased: the estimator of equation 4; needs two samples and two targets.
        over_all: divide by B J instead of the pairs in use.

    Returns:
        Scalar; 0 where no pair is in use.

    Raises:
        ValueError: there are too few samples or targets.
    """
    few = 2 if unbiased else 1
    if min(samples.shape[1], target.shape[1]) < few:
        raise ValueError(
            f"the MMD needs {few} samples and targets or more, got {samples.shape[1]} and {target.shape[1]}: "
            "draw more samples in training"
        )
    s, t = at_least_float32(samples).transpose(1, 2), at_least_float32(target).transpose(1, 2)
    within = torch.zeros((), dtype=s.dtype, device=s.device)
    for points in (s, t):
        total, n = _kernel(points, points).sum((-1, -2)), points.shape[-2]
        within = within + ((total - len(BANDWIDTHS) * n) / (n * (n - 1)) if unbiased else total / n**2)
    value = within - 2 * _kernel(s, t).mean((-1, -2))
    if use is None:
        return value.mean()
    use = use.to(value.dtype)
    count = torch.full_like(use.sum(), use.numel()) if over_all else use.sum()
    return (value * use).sum() / count.clamp_min(torch.finfo(count.dtype).tiny)


def inside_crop(points: Tensor) -> Tensor:
    """(..., 2) crop coordinates -> (...) bool: the point lies in the picture."""
    return (points.abs() <= 1).all(-1)


def invisible_keypoints(peak: Tensor, true: Tensor, visible_peak: float = VISIBLE_PEAK) -> Tensor:
    """Keypoints that the mask loss and the mask metrics look at (Wehrbein et al. 2025, section 4.5).

    Args:
        peak: (B, J) maxima of the heatmaps, 0..1.
        true: (B, J, 2) true places.

    Returns:
        (B, J) bool: the heatmap's maximum is below ``visible_peak``, or the true place is outside the crop.
    """
    return (peak < visible_peak) | ~inside_crop(true)


def mmd_target(
    heatmap: Tensor,
    peak: Tensor,
    true: Tensor,
    known: Tensor | None = None,
    uncertain: tuple[float, float] = UNCERTAIN,
    visible_peak: float = VISIBLE_PEAK,
    true_first: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""What the samples of each joint shall be distributed like (Wehrbein et al. 2025, sections 4.2 and 4.5).

    * Uncertain joints take the heatmap's samples: elbows, wrists, knees and ankles with a maximum between 0.15 and
      0.7 whose true place is inside the crop.
    * All others take the true place, T times: a detector overstates the spread of what it sees clearly, and of the
      joints near the root and the face.
    * Left out are joints with the true place outside the crop, and those of the second kind other than elbows,
      wrists, knees and ankles that are invisible.

    Args:
        heatmap: (B, T, J, 2) samples of the heatmaps.
        peak: (B, J) maxima of the heatmaps, 0..1.
        true: (B, J, 2) true places.
        known: (B, J) bool, where the true place is labelled; None: everywhere.
        uncertain: range of the maxima, ends excluded.
        visible_peak: below it a joint is invisible.
        true_first: the first target is the true place also for uncertain joints, as in the published code.

    Returns:
        ``target`` (B, T, J, 2), ``use`` (B, J) bool.
    """
    articulated = torch.tensor(ARTICULATED[: true.shape[1]], device=true.device)
    inside = inside_crop(true)
    if known is not None:
        inside = inside & known.bool()
    sampled = articulated & (peak > uncertain[0]) & (peak < uncertain[1]) & inside
    repeated = true[:, None].expand_as(heatmap).to(heatmap.dtype)
    target = torch.where(sampled[:, None, :, None], heatmap, repeated)
    if true_first:
        target = torch.cat((repeated[:, :1], target[:, 1:]), dim=1)
    return target, inside & (articulated | (peak >= visible_peak))


def inside_mask(points: Tensor, mask: Tensor, tolerance: float = MASK_TOLERANCE) -> Tensor:
    r"""Whether points lie on a person, for the mask loss and the metrics PercIn and MinDist.

    A point is inside where the centre of a set pixel is nearer than ``tolerance`` pixels *of the mask*. Wehrbein et
    al. 2025 call a point outside from 0.71 px on: that is half a pixel's diagonal, :math:`\sqrt{1/2}`, so "not in a
    set pixel" and no length in the picture. A mask of 64 pixels over a crop of 224 therefore keeps the figure 0.71,
    in pixels 3.5 times as wide. (Their code puts pixel centres on whole numbers, half a pixel from here.)

    Args:
        points: (B, ..., 2) crop coordinates. Not-a-number is outside.
        mask: (B, H, W) bool over [-1, 1]^2, rows along y.
        tolerance: in mask pixels, in (0, 1].

    Returns:
        (B, ...) bool; without gradient.

    Raises:
        ValueError: the batch sizes differ or the tolerance is out of range.
    """
    if mask.ndim != 3 or mask.shape[0] != points.shape[0]:
        raise ValueError(
            f"a mask {tuple(mask.shape)} does not fit points {tuple(points.shape)}: it must be (B, H, W), same B"
        )
    if not 0 < tolerance <= 1:
        raise ValueError(f"the tolerance of a mask is {tolerance} pixels: give one in (0, 1]")
    height, width = mask.shape[1:]
    flat = at_least_float32(points.detach()).reshape(points.shape[0], points.shape[1:-1].numel(), 2)
    size = flat.new_tensor((width, height))
    place = (flat + 1) / 2 * size - 0.5
    set_pixels = mask.reshape(mask.shape[0], -1).bool()
    inside = torch.zeros(flat.shape[:2], dtype=torch.bool, device=flat.device)
    # Within one pixel only the four centres around a point can be.
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = place.floor() + flat.new_tensor(step)
        near = (place - pixel).square().sum(-1) < tolerance**2
        near = near & ((pixel >= 0) & (pixel < size)).all(-1)
        column, row = pixel.nan_to_num(0).clamp(min=torch.zeros_like(size), max=size - 1).long().unbind(-1)
        inside |= near & torch.gather(set_pixels, 1, row * width + column)
    return inside.reshape(points.shape[:-1])


def mask_loss(
    points: Tensor,
    target: Tensor,
    mask: Tensor,
    invisible: Tensor,
    use: Tensor | None = None,
    any_joint: bool = False,
    true: Tensor | None = None,
    tolerance: float = MASK_TOLERANCE,
) -> Tensor:
    r"""Draws samples of invisible joints that miss the person back onto it (Wehrbein et al. 2025, section 4.3),

    .. math:: \frac{1}{BS} \sum_{b,s,k} [u_{bsk} \in \text{crop} \setminus \text{mask}]
              \min_{t \in H_{bk} \cap \text{mask}} \lVert u_{bsk} - t \rVert_1

    over invisible joints k, with the heatmap samples :math:`H_{bk}` of the same joint (paper) or of all joints
    (``any_joint=True``, published code). A sample without such a target is left alone. Which target is nearest has
    no gradient. The code also offers the true places of the joints as targets, inside the mask or not: ``true``.

    Args:
        points: (B, S, J, 2) projected random samples, crop coordinates; the papers leave the mode out.
        target: (B, T, J, 2) heatmap samples, not those of :func:`mmd_target`.
        mask: (B, H, W) bool over [-1, 1]^2: the union of all people in the crop.
        invisible: (B, J) bool, of :func:`invisible_keypoints`.
        use: (B,) bool: there is a mask, and no object hides part of the person; None uses all.
        any_joint: the nearest sample of any joint; needs 4 B S J T J bytes (85 MB for B = 64, S = T = 25, J = 23).
        true: (B, J, 2) further targets.
        tolerance: of the mask, see :func:`inside_mask`.
    """
    points = at_least_float32(points)
    target = target.to(points)
    with torch.no_grad():
        fixed = points.detach()
        pull = inside_crop(fixed) & ~inside_mask(fixed, mask, tolerance) & invisible.bool()[:, None]
        if use is not None:
            pull = pull & use.bool()[:, None, None]
        valid = inside_mask(target, mask, tolerance)
        if true is not None:
            target = torch.cat((target, true[:, None].to(target)), dim=1)
            valid = torch.cat((valid, torch.ones_like(valid[:, :1])), dim=1)
        # Joints become groups of their own, (B, J, S, 2); one group of all for `any_joint`.
        fixed, target, pull, valid = (tensor.transpose(1, 2) for tensor in (fixed, target, pull, valid))
        if any_joint:
            fixed, target, pull, valid = (t.flatten(1, 2).unsqueeze(1) for t in (fixed, target, pull, valid))
        target = torch.where(valid[..., None], target, torch.full_like(target, _FAR))
        pull = pull & valid.any(-1, keepdim=True)
        distance = torch.cdist(fixed, target, p=1.0)
        nearest = torch.take_along_dim(target, distance.argmin(-1)[..., None], dim=2)
    free = points.transpose(1, 2)
    free = free.flatten(1, 2).unsqueeze(1) if any_joint else free
    # Where nothing is pulled the target is the sample itself, so that nothing far away is subtracted.
    nearest = torch.where(pull[..., None], nearest, free.detach())
    return (free - nearest).abs().sum() / max(points.shape[0] * points.shape[1], 1)
