"""The body in torch: the kinematics of `hmr_prob_ros.body`, differentiable and exportable to ONNX.

Same formulas, same numbers, same conventions as `hmr_prob_ros.body.Body`; see there. The chain is in `.kinematics`.
"""

from __future__ import annotations

__all__ = ["TorchBody"]

import torch
from torch import Tensor, nn

from hmr_prob_ros.body import Body

from .kinematics import Kinematics


def _samples_last(values: Tensor, axes: int) -> Tensor:
    """(..., *A) with ``axes`` axes A -> (*A, 1, N), all that led to them in one axis."""
    return values.reshape((-1, *values.shape[-axes:])).movedim(0, -1).unsqueeze(-2)


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

        self.kinematics = Kinematics(body)
        keep("joint_template", body.joint_template)
        keep("joint_dirs", columns(body.joint_dirs))
        keep("v_template", body.v_template if mesh else None)
        keep("shapedirs", columns(body.shapedirs) if mesh else None)
        keep("posedirs", columns(body.posedirs) if mesh else None)
        keep("weights", body.weights if mesh else None)
        keep("faces", body.faces.astype("int64") if mesh else None)
        keep("_eye", torch.eye(3))

    def rest_joints(self, betas: Tensor) -> Tensor:
        """Joints at rest (..., 24, 3) for betas (..., 10)."""
        return self.joint_template + self._along(self.joint_dirs, betas)

    def global_rotations(self, rotations: Tensor) -> Tensor:
        """Global rotations (..., 24, 3, 3) from local ones of the same shape."""
        world = self.kinematics.world(_samples_last(rotations, 3))
        return world[..., 0, :].movedim(-1, 0).reshape(rotations.shape)

    def forward(self, rotations: Tensor, betas: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
        """Joints (..., 24, 3) and keypoints (..., 23, 3) of posed bodies.

        :param rotations: (..., 24, 3, 3) local; betas: (..., 10); translation: (..., 3). Equal leading dimensions.
        """
        joints, surface = self.kinematics(_samples_last(rotations, 3), _samples_last(betas, 1))
        # SMPL turns the body about the pelvis at rest and moves it then.
        pelvis = self.kinematics.root + betas @ self.kinematics.root_dirs + translation
        shift = _samples_last(pelvis, 1)
        lead = rotations.shape[:-3]
        places, surface = ((points + shift)[..., 0, :].movedim(-1, 0) for points in (joints, surface))
        return places.reshape(lead + places.shape[1:]), surface.reshape(lead + surface.shape[1:])

    def vertices(self, rotations: Tensor, betas: Tensor, translation: Tensor) -> Tensor:
        """Mesh (..., V, 3) of posed bodies. Parameters as in `forward`.

        :raises RuntimeError: the module was built with ``mesh=False``.
        """
        if not self.has_mesh:
            raise RuntimeError("this TorchBody has no mesh: build it with TorchBody(body, mesh=True)")
        rest = self.rest_joints(betas)
        world = self.global_rotations(rotations)
        places, _ = self(rotations, betas, translation)
        offset = places - _apply(world, rest)
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
