"""A batch of examples: the currency of the training half. Synthetic views, shards and datasets all become this."""

from __future__ import annotations

__all__ = ["Examples", "batch_condition"]

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hmr_prob_ros import camera as camera_module
from hmr_prob_ros.skeleton import JOINT_KEYPOINTS

from ..losses import project_to_crop
from .noise import VISIBLE


@dataclass
class Examples:
    """B examples; metres and radians, optical frame; crop coordinates are [-1, 1] across the square crop.

    What a model is given: ``keypoints`` (B, 23, 3) and ``box`` (B, 3) as ``camera.condition`` gives them, and, where
    the data has pictures, ``image`` (B, 3, H, W), the crop in RGB from 0 to 1.

    What is true: ``pose6d`` (B, 144); ``rotations`` (B, 24, 3, 3); ``betas`` (B, 10); ``translation`` (B, 3);
    ``joints`` (B, 24, 3); ``keypoints3d`` (B, 23, 3); ``state`` (B, 23) of the noise module. Data that does not know
    all of it says so with ``has_pose`` (B,), ``has_betas`` (B,), ``has_joints`` (B, 24) and ``has_translation`` (B,),
    bool (None: all is known), and holds zeros there.

    Where it comes from: ``detected`` (B, 23, 3) pixels and confidence; ``intrinsics`` (B, 4); ``size`` (B, 2);
    ``index`` (B,) row of the pose that was given.

    ``true_keypoints`` (B, 23, 3): true keypoints in crop coordinates and 1 where labelled, for data that knows the
    picture better than the body; None: projections of ``keypoints3d``, where they are visible.

    What a detector saw (None where there was none): ``heatmap`` (B, T, 23, 2), samples of its heatmaps in crop
    coordinates; ``heatmap_peak`` (B, 23), their maxima; ``mask`` (B, H, W) bool, visible pixels of all people over the
    crop; ``occluded`` (B,) bool, an object hides a part of the person.
    """

    keypoints: Tensor
    box: Tensor
    pose6d: Tensor
    rotations: Tensor
    betas: Tensor
    translation: Tensor
    joints: Tensor
    keypoints3d: Tensor
    state: Tensor
    detected: Tensor
    intrinsics: Tensor
    size: Tensor
    index: Tensor
    image: Tensor | None = None
    heatmap: Tensor | None = None
    heatmap_peak: Tensor | None = None
    mask: Tensor | None = None
    occluded: Tensor | None = None
    true_keypoints: Tensor | None = None
    has_pose: Tensor | None = None
    has_betas: Tensor | None = None
    has_joints: Tensor | None = None
    has_translation: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, rows: Any) -> Examples:
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Examples:
        """The same on another device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def _map(self, function: Any) -> Examples:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Examples(**{name: None if value is None else function(value) for name, value in values.items()})

    @staticmethod
    def cat(parts: Sequence[Examples]) -> Examples:
        """All of several batches.

        Where only some have labels or masks, or do not know all, the others say the same in these fields: ``has_*``
        true, ``true_keypoints`` the projections that they stood for, an empty ``mask`` with ``occluded``, so that
        nobody looks at it. Any other field that one of them lacks is left out.
        """
        values: dict[str, Any] = {}
        masked = any(part.mask is not None for part in parts)
        for f in fields(Examples):
            column = [getattr(part, f.name) for part in parts]
            if masked and f.name == "occluded":
                column = [part._ones() if part.mask is None else part.occluded for part in parts]
            like = next((value for value in column if value is not None), None)
            if like is not None:
                column = [part._instead(f.name, like) if v is None else v for part, v in zip(parts, column)]
            values[f.name] = None if any(value is None for value in column) else torch.cat(column)
        return Examples(**values)

    def _ones(self) -> Tensor:
        return torch.ones(len(self), dtype=torch.bool, device=self.box.device)

    def _instead(self, name: str, like: Tensor) -> Tensor | None:
        """What None means in a field that others hold as ``like``; None where nothing says it."""
        if name == "true_keypoints":
            placed = self._ones() if self.has_translation is None else self.has_translation
            seen = (self.state == VISIBLE) & (self.keypoints3d != 0).any(-1) & placed[:, None]
            points = project_to_crop(self.keypoints3d, self.box)
            return torch.cat((points * seen[..., None], seen[..., None].to(points)), dim=-1)
        if name in ("occluded", "mask"):
            return like.new_zeros((len(self), *like.shape[1:]))
        return like.new_ones((len(self), *like.shape[1:])) if name.startswith("has_") else None

    @property
    def whole(self) -> Tensor:
        """(B,) bool: pose, shape and place are known, so that ``keypoints3d`` are the true ones."""
        known = self._ones()
        for flag in (self.has_pose, self.has_betas, self.has_translation):
            known = known if flag is None else known & flag
        return known

    @property
    def visible(self) -> Tensor:
        """(B, 24) bool: a joint is visible where one of the keypoints that show it is really seen."""
        seen = self.state == VISIBLE
        return torch.stack([seen[:, list(k)].any(dim=1) for k in JOINT_KEYPOINTS], dim=1)


def batch_condition(detected: Tensor, intrinsics: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``hmr_prob_ros.camera.condition`` for a batch of undistorted cameras.

    Returns:
        ``keypoints`` (B, 23, 3), ``box`` (B, 3), and (B,) how many keypoints shape the crop.
    """
    pixels, confidence = detected[..., :2], detected[..., 2].clamp(0, 1)
    inside = ((pixels >= 0) & (pixels < size[:, None])).all(dim=-1)
    confidence = torch.where(inside, confidence, torch.zeros_like(confidence))
    rays = (pixels - intrinsics[:, None, 2:]) / intrinsics[:, None, :2]
    sure = confidence >= camera_module.CROP_CONFIDENCE
    far = torch.full_like(rays, torch.inf)
    low = torch.where(sure[..., None], rays, far).amin(dim=1)
    high = torch.where(sure[..., None], rays, -far).amax(dim=1)
    centre = (low + high) / 2
    side = ((high - low).amax(dim=1) * camera_module.CROP_PADDING).clamp_min(camera_module.MIN_CROP)
    local = ((rays - centre[:, None]) / (side[:, None, None] / 2)).clamp(-3, 3)
    local = torch.where(confidence[..., None] > 0, local, torch.zeros_like(local))
    keypoints = torch.cat((local, confidence[..., None]), dim=-1)
    return keypoints, torch.cat((centre, side[:, None]), dim=1), sure.sum(dim=1)
