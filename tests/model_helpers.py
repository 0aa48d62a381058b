"""For tests of models: random people, shards of them, and weights as after training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from hmr_prob_ros.training.body import TorchBody
from hmr_prob_ros.training.data.examples import Examples
from hmr_prob_ros.training.data.shards import Shard
from hmr_prob_ros.training.rotations import axis_angle_to_matrix, matrix_to_rotation6d


def random_poses(count: int, seed: int = 0) -> Tensor:
    """Poses in 6D (count, 144)."""
    random = torch.Generator().manual_seed(seed)
    return matrix_to_rotation6d(axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=random))).flatten(1)


def random_people(body: TorchBody, count: int = 6, seed: int = 0) -> Examples:
    """Random people 3 to 5 m away, upright in the camera, all keypoints seen but one."""
    random = torch.Generator().manual_seed(seed)
    vectors = 0.3 * torch.randn(count, 24, 3, generator=random)
    vectors[:, 0] = torch.tensor([np.pi, 0.0, 0.0])
    rotations = axis_angle_to_matrix(vectors)
    betas = torch.randn(count, 10, generator=random)
    translation = torch.tensor([0.5, 0.0, 4.0]) + 0.5 * torch.randn(count, 3, generator=random)
    joints, keypoints3d = body(rotations, betas, translation)
    rays = keypoints3d[..., :2] / keypoints3d[..., 2:]
    low, high = rays.amin(1), rays.amax(1)
    size = 1.2 * (high - low).amax(1, keepdim=True)
    box = torch.cat(((low + high) / 2, size), dim=1)
    keypoints = torch.cat(((rays - box[:, None, :2]) / (size / 2)[:, None], torch.ones(count, 23, 1)), dim=-1)
    keypoints[:, 9] = 0
    return Examples(
        keypoints=keypoints,
        box=box,
        pose6d=matrix_to_rotation6d(rotations).flatten(1),
        rotations=rotations,
        betas=betas,
        translation=translation,
        joints=joints,
        keypoints3d=keypoints3d,
        state=torch.zeros(count, 23, dtype=torch.long),
        detected=torch.zeros(count, 23, 3),
        intrinsics=torch.ones(count, 4),
        size=torch.ones(count, 2),
        index=torch.arange(count),
    )


def save_shards(examples: Examples, body: TorchBody, folder: Path, pictures: bool = False) -> None:
    """The first 110 examples as four shards of different sizes."""
    names = [f.name for f in dataclasses.fields(examples) if getattr(examples, f.name) is not None]
    picture = cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()
    for i, part in enumerate((examples[:30], examples[30:70], examples[70:75], examples[75:110])):
        fields = {n: getattr(part, n).numpy() for n in names if n != "pose6d"}
        jpeg = (picture,) * len(part) if pictures else None
        Shard({**fields, "take": np.array(["a"] * len(part))}, body.body_hash, jpeg).save(folder / f"{i}.npz")


def scramble(module: nn.Module, by: float = 0.2) -> nn.Module:
    """Weights, initialisation and batch statistics as after some training."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if "layers" not in key and "first" not in key and "initial_layer" not in key:
                value.add_(by * torch.randn(value.shape, generator=random).to(value))
        for key, value in module.named_buffers():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1, generator=random)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2, generator=random)
            elif key.endswith("initialized"):
                value.fill_(True)
    return module
