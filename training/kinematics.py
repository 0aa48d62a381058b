"""Forward kinematics with the samples as the **last** axes, (..., B, N).

With 24 joints of 3x3 numbers as the last axes, a CPU spends its time on thousands of tiny products; here every
elementwise operation runs over contiguous samples, and gathering joints copies whole rows. Training takes 0.4 of the
time, and so does an exported graph.
"""

from __future__ import annotations

__all__ = ["Kinematics"]

from typing import Any

import torch
from torch import Tensor, nn

from ..body import Body
from ..skeleton import NUM_JOINTS, NUM_KEYPOINTS, PARENTS


class Kinematics(nn.Module):
    """Joints and keypoints of posed bodies, samples last.

    What is linear is folded to one matrix each: bones and keypoint parts in the betas, positions in the turned bones
    (a joint is the sum of the bones above it), keypoints in turned parts and positions.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        parents, above, order = list(PARENTS), [0], [0]
        self.depth = 0
        while level := [j for j in range(NUM_JOINTS) if parents[j] in above]:
            self._keep(f"level{self.depth}", level)
            self._keep(f"places{self.depth}", [above.index(parents[j]) for j in level])  # of their parents above
            self.depth, above, order = self.depth + 1, level, order + level
        self._keep("back", [order.index(j) for j in range(NUM_JOINTS)])
        self._keep("next", [1, 2, 0])
        self._keep("afternext", [2, 0, 1])
        self._keep("eye", torch.eye(3)[:, :, None, None])

        template = torch.as_tensor(body.joint_template)
        slopes = torch.as_tensor(body.joint_dirs).permute(2, 0, 1)  # (10, 24, 3)
        self._keep("root", template[0])
        self._keep("root_dirs", slopes[:, 0])
        self._keep("parent", parents[1:])
        self._keep("bone", template[1:] - template[parents[1:]])
        self._keep("bone_dirs", (slopes[:, 1:] - slopes[:, parents[1:]]).flatten(1))
        joint, mass = torch.as_tensor(body.pair_joint), torch.as_tensor(body.pair_mass)[:, None]  # (Q,), (Q, 1)
        part_dirs = torch.as_tensor(body.pair_dirs).permute(2, 0, 1)  # (10, Q, 3)
        pair_sum = torch.as_tensor(body.pair_sum)
        self._keep("pair_joint", joint)
        self._keep("part", torch.as_tensor(body.pair_base) - mass * template[joint])
        self._keep("part_dirs", (part_dirs - mass * slopes[:, joint]).flatten(1))
        self._keep("pair_sum", pair_sum)
        # A path of the tree is a row of ones: position = path @ turned bones.
        path = torch.zeros(NUM_JOINTS, NUM_JOINTS - 1)
        for j in range(1, NUM_JOINTS):
            k = j
            while k > 0:
                path[j, k - 1] = 1
                k = parents[k]
        self._keep("path", path)
        one_hot = nn.functional.one_hot(joint.long(), NUM_JOINTS).to(mass.dtype)
        self._keep("pair_path", pair_sum @ (mass * one_hot) @ path)
        correctives = body.pair_posedirs
        self._keep("correctives", None if correctives is None else correctives.reshape(-1, correctives.shape[-1]))

    def _keep(self, name: str, value: Any) -> None:
        self.register_buffer(name, None if value is None else torch.as_tensor(value).clone(), persistent=False)

    def rotations(self, pose6d: Tensor) -> Tensor:
        """Gram-Schmidt, (144, B, N) -> (24, 3, 3, B, N); formula in ``rotations.rotation6d_to_matrix``."""
        columns = pose6d.unflatten(0, (NUM_JOINTS, 6))
        first, second = columns[:, :3], columns[:, 3:]
        first = first * (first * first).sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        second = second - (first * second).sum(1, keepdim=True) * first
        second = second * (second * second).sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        third = first.index_select(1, self.next) * second.index_select(1, self.afternext)
        third = third - first.index_select(1, self.afternext) * second.index_select(1, self.next)
        return torch.stack((first, second, third), dim=2)

    def world(self, rotations: Tensor) -> Tensor:
        """Global rotations (24, 3, 3, B, N) of local ones of the same shape."""
        level = rotations[:1]
        levels = [level]
        for depth in range(self.depth):
            above = level.index_select(0, getattr(self, f"places{depth}"))
            below = rotations.index_select(0, getattr(self, f"level{depth}"))
            level = (above[:, :, :, None] * below[:, None]).sum(2)
            levels.append(level)
        return torch.cat(levels).index_select(0, self.back)

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (24, 3, B, N) and keypoints (23, 3, B, N), the pelvis at the origin.

        Args:
            rotations: local, (24, 3, 3, B, N).
            betas: (10, B, 1 or N).
        """
        world = self.world(rotations)
        tail = rotations.shape[3:]

        bones = self._along(self.bone, self.bone_dirs, betas)  # (23, 3, B, 1 or N)
        turned = (world.index_select(0, self.parent) * bones[:, None]).sum(2).flatten(1)  # (23, 3 B N)
        parts = self._along(self.part, self.part_dirs, betas)
        if self.correctives is not None:
            feature = (rotations[1:] - self.eye).flatten(0, 2)
            parts = parts + (self.correctives @ feature.flatten(1)).reshape(parts.shape[:2] + tail)
        moved = (world.index_select(0, self.pair_joint) * parts[:, None]).sum(2).flatten(1)
        joints = (self.path @ turned).reshape((NUM_JOINTS, 3) + tail)
        surface = (self.pair_sum @ moved + self.pair_path @ turned).reshape((NUM_KEYPOINTS, 3) + tail)
        return joints, surface

    @staticmethod
    def _along(base: Tensor, slopes: Tensor, betas: Tensor) -> Tensor:
        moved = (slopes.T @ betas.flatten(1)).reshape(base.shape + betas.shape[1:])
        return base[..., None, None] + moved
