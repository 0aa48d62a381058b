"""The body in torch: the kinematics of `hmr_prob_ros.body`, differentiable and exportable to ONNX.

Same formulas, same numbers, same conventions as `hmr_prob_ros.body.Body`; see there. The chain runs level by level
(eight steps for 24 joints) with gathers and concatenations only, so that the graph is short and has no in-place write.
"""

from __future__ import annotations

__all__ = ["TorchBody"]

import torch
from torch import Tensor, nn

from hmr_prob_ros.body import Body
from hmr_prob_ros.skeleton import NUM_JOINTS, PARENTS


def _order() -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Joints by depth, the place of each one's parent in the level above, and the way back to SMPL's order."""
    levels: list[list[int]] = [[0]]
    while True:
        below = [j for j in range(NUM_JOINTS) if PARENTS[j] in levels[-1]]
        if not below:
            break
        levels.append(below)
    local = [[levels[d - 1].index(PARENTS[j]) for j in level] for d, level in enumerate(levels) if d > 0]
    flat = [j for level in levels for j in level]
    return levels[1:], local, [flat.index(j) for j in range(NUM_JOINTS)]


_LEVELS, _LOCAL, _BACK = _order()


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.matmul(matrices, vectors.unsqueeze(-1))[..., 0]


class TorchBody(nn.Module):
    """Kinematics, keypoints and skinning as a module without parameters.

    :param body: the body, default `Body.load()`.
    :param mesh: also keep the arrays that `vertices` needs (an exported graph drops what it does not use anyway).

    ``forward(rotations (..., 24, 3, 3), betas (..., 10), translation (..., 3))`` returns joints (..., 24, 3) and
    keypoints (..., 23, 3). Buffers are not part of a checkpoint: the body comes from its own file.
    """

    def __init__(self, body: Body | None = None, mesh: bool = True) -> None:
        super().__init__()
        body = Body.load() if body is None else body
        self.body_hash = body.hash
        self.num_betas = body.num_betas
        self.has_mesh = mesh

        def keep(name: str, array) -> None:
            value = None if array is None else torch.as_tensor(array).clone()
            self.register_buffer(name, value, persistent=False)

        def columns(array):  # (X, 3, C) -> (C, 3 X), so that coefficients @ columns is one matrix product
            return None if array is None else array.reshape(-1, array.shape[-1]).T

        keep("joint_template", body.joint_template)
        keep("joint_dirs", columns(body.joint_dirs))
        keep("pair_joint", body.pair_joint)
        keep("pair_mass", body.pair_mass[:, None])
        keep("pair_base", body.pair_base)
        keep("pair_dirs", columns(body.pair_dirs))
        keep("pair_posedirs", columns(body.pair_posedirs))
        keep("pair_sum", body.pair_sum)
        keep("v_template", body.v_template if mesh else None)
        keep("shapedirs", columns(body.shapedirs) if mesh else None)
        keep("posedirs", columns(body.posedirs) if mesh else None)
        keep("weights", body.weights if mesh else None)
        keep("faces", body.faces.astype("int64") if mesh else None)
        for d, (level, local) in enumerate(zip(_LEVELS, _LOCAL, strict=True)):
            keep(f"_level{d}", torch.tensor(level))
            keep(f"_local{d}", torch.tensor(local))
            keep(f"_parent{d}", torch.tensor([PARENTS[j] for j in level]))
        keep("_back", torch.tensor(_BACK))
        keep("_eye", torch.eye(3))

    def rest_joints(self, betas: Tensor) -> Tensor:
        """Joints at rest (..., 24, 3) for betas (..., 10)."""
        return self.joint_template + self._along(self.joint_dirs, betas)

    def global_rotations(self, rotations: Tensor) -> Tensor:
        """Global rotations (..., 24, 3, 3) from local ones of the same shape."""
        level = rotations[..., :1, :, :]
        levels = [level]
        for d in range(len(_LEVELS)):
            above = level.index_select(-3, getattr(self, f"_local{d}"))
            level = torch.matmul(above, rotations.index_select(-3, getattr(self, f"_level{d}")))
            levels.append(level)
        return torch.cat(levels, -3).index_select(-3, self._back)

    def forward(self, rotations: Tensor, betas: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (..., 24, 3) and keypoints (..., 23, 3) of posed bodies.

        :param rotations: (..., 24, 3, 3) local; betas: (..., 10); translation: (..., 3). Equal leading dimensions.
        """
        rest = self.rest_joints(betas)
        world = self.global_rotations(rotations)
        places = self._place(world, rest) + translation.unsqueeze(-2)
        local = self.pair_base + self._along(self.pair_dirs, betas)
        local = local - self.pair_mass * rest.index_select(-2, self.pair_joint)
        if self.pair_posedirs is not None:
            local = local + self._along(self.pair_posedirs, self._pose_feature(rotations))
        turned = _apply(world.index_select(-3, self.pair_joint), local)
        pairs = turned + self.pair_mass * places.index_select(-2, self.pair_joint)
        return places, torch.matmul(self.pair_sum, pairs)

    def vertices(self, rotations: Tensor, betas: Tensor, translation: Tensor) -> Tensor:
        """Mesh (..., V, 3) of posed bodies. Parameters as in `forward`.

        :raises RuntimeError: the module was built with ``mesh=False``.
        """
        if not self.has_mesh:
            raise RuntimeError("this TorchBody has no mesh: build it with TorchBody(body, mesh=True)")
        rest = self.rest_joints(betas)
        world = self.global_rotations(rotations)
        offset = self._place(world, rest) + translation.unsqueeze(-2) - _apply(world, rest)
        mesh = self.v_template + self._along(self.shapedirs, betas)
        if self.posedirs is not None:
            mesh = mesh + self._along(self.posedirs, self._pose_feature(rotations))
        linear = torch.matmul(self.weights, world.flatten(-2)).unflatten(-1, (3, 3))
        return _apply(linear, mesh) + torch.matmul(self.weights, offset)

    @staticmethod
    def _along(columns: Tensor, coefficients: Tensor) -> Tensor:
        return torch.matmul(coefficients, columns).unflatten(-1, (-1, 3))

    def _pose_feature(self, rotations: Tensor) -> Tensor:
        return (rotations[..., 1:, :, :] - self._eye).flatten(-3)

    def _place(self, world: Tensor, rest: Tensor) -> Tensor:
        level = rest[..., :1, :]
        levels = [level]
        for d in range(len(_LEVELS)):
            parent = getattr(self, f"_parent{d}")
            bones = rest.index_select(-2, getattr(self, f"_level{d}")) - rest.index_select(-2, parent)
            level = level.index_select(-2, getattr(self, f"_local{d}")) + _apply(world.index_select(-3, parent), bones)
            levels.append(level)
        return torch.cat(levels, -2).index_select(-2, self._back)
