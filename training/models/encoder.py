r"""From 2D keypoints to a condition, and from the condition to shape and camera translation.

Shared by all lifting models. Everything is scale-equivariant in the box: the heads speak in crop units, the box
turns them to metres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ...skeleton import KEYPOINT_NAMES, NUM_KEYPOINTS

if TYPE_CHECKING:
    from .base import ModelConfig

__all__ = [
    "CameraGuess",
    "Condition",
    "Encoder",
    "PersonHeads",
    "ShapeGuess",
    "TranslationFit",
    "crop_to_rays",
    "face_crop",
    "turn_root",
]

MIN_DEPTH = 0.2
"""Metres: no pelvis nearer than this to the camera's plane is given out."""


class Condition(NamedTuple):
    """What a model knows of a person.

    ``code`` (B, C): the encoder's features; ``turn`` (B, 3, 3): rotation from the camera to a virtual camera that
    looks straight at the crop, see :func:`face_crop`.
    """

    code: Tensor
    turn: Tensor

    def first(self, count: int) -> Condition:
        """The condition of the first ``count`` persons, in the precision of the turn."""
        return Condition(self.code[:count].to(self.turn.dtype), self.turn[:count])


class CameraGuess(NamedTuple):
    """What the condition alone says about the place of the pelvis; all in units of the crop.

    ``offset`` (B, 2): pelvis in the crop, [-1, 1] inside it; ``log_depth`` (B,): log of depth times box size;
    ``log_sigma`` (B, 2): log standard deviation of the offset and of the log-depth.
    """

    offset: Tensor
    log_depth: Tensor
    log_sigma: Tensor

    def first(self, count: int) -> CameraGuess:
        """The guess for the first ``count`` persons."""
        return CameraGuess(*(value[:count] for value in self))

    def pelvis(self, box: Tensor) -> Tensor:
        """Pelvis (B, 3) in the optical frame, metres, for boxes (B, 3) = (cx, cy, size)/focal."""
        depth = torch.exp(self.log_depth) / box[:, 2]
        ray = box[:, :2] + self.offset * (box[:, 2:] / 2)
        return torch.cat((ray, torch.ones_like(ray[:, :1])), dim=-1) * depth[:, None]

    def nll(self, box: Tensor, pelvis: Tensor) -> Tensor:
        """Negative log-likelihood (B,), up to a constant, of the true ``pelvis`` (B, 3): what trains the head."""
        ray = pelvis[:, :2] / pelvis[:, 2:]
        offset = (ray - box[:, :2]) / (box[:, 2:] / 2) - self.offset
        depth = torch.log(pelvis[:, 2] * box[:, 2]) - self.log_depth
        lateral, radial = self.log_sigma.unbind(-1)
        square = (offset * offset).sum(-1) * torch.exp(-2 * lateral) + depth * depth * torch.exp(-2 * radial)
        return 0.5 * square + 2 * lateral + radial


class ShapeGuess(NamedTuple):
    """Mean (B, 10) and log standard deviation (B, 10) of the betas given the condition."""

    mean: Tensor
    log_sigma: Tensor

    def first(self, count: int) -> ShapeGuess:
        """The guess for the first ``count`` persons."""
        return ShapeGuess(self.mean[:count], self.log_sigma[:count])

    def nll(self, betas: Tensor) -> Tensor:
        """Negative log-likelihood (B,), up to a constant, of the true ``betas`` (B, 10)."""
        residual = (betas - self.mean) * torch.exp(-self.log_sigma)
        return (0.5 * residual * residual + self.log_sigma).sum(-1)


class _Block(nn.Module):
    """x + W relu(V norm(x))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.bias)
        nn.init.normal_(self.outer.weight, std=0.1 / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.dropout(torch.relu(self.inner(self.norm(x)))))


class Encoder(nn.Module):
    """Residual MLP over 23 keypoints, the box and a picture: (B, 23, 3), (B, 3) -> :class:`Condition` of C features.

    What the configuration switches off enters as zeros. Features of a picture join by one linear map.

    Args:
        config: a ``ModelConfig``: condition (C), encoder_width, encoder_depth, dropout, use_*, image*.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.use = (config.use_keypoints, config.use_confidence, config.use_box)
        width = config.encoder_width
        self.enter = nn.Linear(3 * NUM_KEYPOINTS + 3, width)
        self.backbone = self.picture = None
        if config.image:
            from .backbone import Backbone  # needs timm, which a model of keypoints alone does not

            self.backbone = Backbone(config.image, config.image_weights, config.image_frozen)
            self.picture = nn.Linear(self.backbone.features, width)
        self.blocks = nn.ModuleList(_Block(width, config.dropout) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, config.condition)

    def forward(self, keypoints: Tensor, box: Tensor, image: Tensor | None = None) -> Condition:
        use_keypoints, use_confidence, use_box = self.use
        if use_box:
            keypoints, turn = face_crop(keypoints, box)
        else:  # a crop that could be anywhere is taken to lie straight ahead
            turn = torch.eye(3, dtype=box.dtype, device=box.device).expand(len(box), 3, 3)
        points, confidence = keypoints[..., :2].flatten(1), keypoints[..., 2]
        if not use_confidence:
            confidence = (confidence > 0).to(confidence.dtype)
        confidence = 2 * confidence - 1
        # The size enters by its logarithm, about unit spread.
        place = torch.cat((box[:, :2], torch.log(box[:, 2:].clamp_min(1e-4)) + 1.0), dim=-1)
        if not use_keypoints:
            points, confidence = torch.zeros_like(points), torch.zeros_like(confidence)
        if not use_box:
            place = torch.zeros_like(place)
        hidden = self.enter(torch.cat((points, confidence, place), dim=-1))
        if self.backbone is not None:
            if image is None:
                raise ValueError(
                    "the model has an image backbone but was given no picture: train on data with images "
                    "(`hmr-prob make-shards` without --no-images), or set model.image to ''"
                )
            hidden = hidden + self.picture(self.backbone(image))
        for block in self.blocks:
            hidden = block(hidden)
        return Condition(torch.relu(self.leave(self.norm(hidden))), turn)


class PersonHeads(nn.Module):
    """Shape and camera from the condition (B, C), each with its own uncertainty."""

    def __init__(self, condition: int, hidden: int = 256, num_betas: int = 10) -> None:
        super().__init__()
        self.num_betas = num_betas
        self.inner = nn.Linear(condition, hidden)
        self.outer = nn.Linear(hidden, 2 * num_betas + 5)
        nn.init.normal_(self.outer.weight, std=1e-2 / hidden**0.5)
        with torch.no_grad():
            self.outer.bias.zero_()
            # A whole person of 1.7 m in a box 1.2 times as large: depth * size = 2, known to about 20 %.
            self.outer.bias[2 * num_betas :] = torch.tensor([0.0, 0.0, 0.7, -2.0, -1.6])

    def forward(self, condition: Tensor) -> tuple[ShapeGuess, CameraGuess]:
        out = self.outer(torch.relu(self.inner(condition)))
        # Under autocast the layer gives bfloat16, too coarse for a depth in metres.
        out = out.to(self.outer.weight.dtype)
        n = self.num_betas
        shape = ShapeGuess(out[:, :n], out[:, n : 2 * n].clamp(-5.0, 2.0))
        return shape, CameraGuess(out[:, 2 * n : 2 * n + 2], out[:, 2 * n + 2], out[:, 2 * n + 3 :].clamp(-6.0, 2.0))


def face_crop(keypoints: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    r"""The keypoints as a virtual camera sees them that is turned to look straight at the crop.

    A body 50 degrees aside is seen from 50 degrees aside. Turning the camera there, as the homography
    :math:`R` does (Hartley and Zisserman, "Multiple View Geometry", 2004, section 8.4), makes the same body look the
    same wherever it stands in the picture, so the network need not learn it:

    .. math:: R a = e_z, \quad a = (c_x, c_y, 1)/|\cdot|, \quad v = a \times e_z, \quad
        R = I + [v]_\times + [v]_\times^2/(1 + a_z)

    Args:
        keypoints: crop keypoints and confidence, (B, 23, 3).
        box: (cx, cy, size)/focal, (B, 3).

    Returns:
        Keypoints (B, 23, 3), still about [-1, 1] and zero without confidence, and the turn R (B, 3, 3).
    """
    ahead = torch.cat((box[:, :2], torch.ones_like(box[:, :1])), dim=-1)
    x, y, z = (ahead / ahead.norm(dim=-1, keepdim=True)).unbind(-1)
    # v = (y, -x, 0); v v^T - |v|^2 I is its squared cross matrix.
    k = 1 / (1 + z)
    xy = -x * y * k
    turn = torch.stack((1 - x * x * k, xy, -x, xy, 1 - y * y * k, -y, x, y, z), dim=-1).unflatten(-1, (3, 3))
    rays = crop_to_rays(keypoints, box)
    # Products of threes are written out: autocast would round a matrix product to bfloat16.
    turned = (torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1)[..., None, :] * turn[:, None]).sum(-1)
    # At the crop's centre the picture shrinks by z across and z^2 along; z keeps the points about [-1, 1].
    half = (box[:, 2] * z / 2)[:, None, None]
    local = (turned[..., :2] / turned[..., 2:].clamp_min(0.1) / half).clamp(-4.0, 4.0)
    confidence = keypoints[..., 2:]
    return torch.cat((local * (confidence > 0), confidence), dim=-1), turn


def turn_root(pose6d: Tensor, turn: Tensor) -> Tensor:
    """The pose (B, N, 144) after the whole body was turned by (B, 3, 3): only the two columns of the root change.

    A rotation keeps volumes, so a density over poses does not change.
    """
    root = (pose6d[..., :6].unflatten(-1, (2, 1, 3)) * turn[:, None, None]).sum(-1)
    return torch.cat((root.flatten(-2), pose6d[..., 6:]), dim=-1)


def crop_to_rays(keypoints: Tensor, box: Tensor) -> Tensor:
    """Ray coordinates (B, 23, 2) = (x/z, y/z) of crop keypoints (B, 23, 3) in boxes (B, 3)."""
    return box[:, None, :2] + keypoints[..., :2] * (box[:, None, 2:] / 2)


def _initial_weights() -> Tensor:
    """Log weights of the keypoints: the torso tells more about the translation than a hand."""
    torso, middle = ("shoulder", "hip"), ("nose", "eye", "ear", "elbow", "knee")
    return torch.tensor([0.0 if n.endswith(torso) else -0.7 if n.endswith(middle) else -1.4 for n in KEYPOINT_NAMES])


class _Equations(NamedTuple):
    """The solved normal equations of one person's fit: everything but the samples."""

    matrix: Tensor  # (B, 69, 3)
    ray: Tensor  # (B, 1, 2)
    prior: Tensor  # (B, 1, 1) metres, as the rest
    guessed: Tensor  # (B, 1, 1)
    lateral: Tensor  # (B, 1, 1) deviation across
    radial: Tensor  # (B, 1, 1) deviation along


class TranslationFit(nn.Module):
    r"""Camera translation of each sample from the 2D keypoints: one weighted linear least squares, in closed form.

    A sample's keypoint :math:`r_i = (X, Y, Z)` relative to the pelvis must lie on its ray :math:`(u_i, v_i)`, which
    is linear in the pelvis :math:`p` (the algebraic error of a direct linear transform, cf. Hartley and Zisserman,
    "Multiple View Geometry", 2004, ch. 4):

    .. math:: p_x - u_i p_z = u_i Z_i - X_i =: a_i, \qquad p_y - v_i p_z = v_i Z_i - Y_i =: b_i

    with weights :math:`w_i = c_i^2 e^{\lambda_i}/\sigma^2`; the head's guess is one more such ray with weight
    :math:`\sigma_o^{-2}` (a = b = 0) and a term :math:`(p_z - z_0)^2 k`,
    :math:`k = (\mathrm{size}/2)^2/\sigma_z^2`.
    (All is divided by the squared half crop at the guessed depth, so residuals are in crop units.) About the
    weighted mean ray :math:`(\bar u, \bar v)` the normal equations are diagonal:

    .. math::
        p_z = \frac{k z_0 - \sum_i w_i (\delta u_i a_i + \delta v_i b_i)}{k + \sum_i w_i (\delta u_i^2 + \delta v_i^2)},
        \quad p_x = \bar a + \bar u p_z, \quad p_y = \bar b + \bar v p_z

    So a far and large body and a near and small one each come to stand where they explain the picture. The depth
    stays within half and twice the head's, and beyond ``MIN_DEPTH``.

    The same equations tell how sure the fit is. With :math:`h` the half crop at the guessed depth, :math:`p_z` has the
    deviation :math:`s_r h/\sqrt{k + \sum_i w_i (\delta u_i^2 + \delta v_i^2)}`, and :math:`p_x, p_y` given :math:`p_z`
    have :math:`s_l h/\sqrt{\sum_i w_i}`. The factors :math:`s_l, s_r` are learned (:meth:`nll`), because detectors err
    on whole bodies and not point by point. With latents the pelvis is drawn from that Gaussian.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(_initial_weights())
        self.log_sigma = nn.Parameter(torch.tensor(-2.0))
        self.log_spread = nn.Parameter(torch.zeros(2))

    def forward(
        self, relative: Tensor, keypoints: Tensor, box: Tensor, guess: CameraGuess, latents: Tensor | None = None
    ) -> Tensor:
        """Pelvis (B, N, 3), metres in the optical frame.

        Args:
            relative: the samples' keypoints minus their pelvis, camera axes, (B, N, 23, 3).
            keypoints: crop keypoints and confidence, (B, 23, 3).
            box: (B, 3).
            guess: the head's.
            latents: standard normal (B, N, 3), across and along; None gives the means.
        """
        fit = self._equations(keypoints, box, guess)
        sums = relative.flatten(2) @ fit.matrix
        depth = sums[..., 2:] + fit.prior
        if latents is not None:
            depth = depth + latents[..., 2:] * fit.radial
        # A sample that does not resemble the picture at all must not run away along the ray.
        depth = torch.minimum(torch.maximum(depth, fit.guessed / 2), fit.guessed * 2).clamp_min(MIN_DEPTH)
        across = sums[..., :2] + fit.ray * depth
        if latents is not None:
            across = across + latents[..., :2] * fit.lateral
        return torch.cat((across, depth), dim=-1)

    def nll(self, relative: Tensor, keypoints: Tensor, box: Tensor, guess: CameraGuess, pelvis: Tensor) -> Tensor:
        """Negative log-likelihood (B,), up to a constant, of the true ``pelvis`` (B, 3) of the true body, whose
        keypoints minus pelvis are ``relative`` (B, 23, 3)."""
        fit = self._equations(keypoints, box, guess)
        sums = relative[:, None].flatten(2) @ fit.matrix
        true = pelvis[:, None]
        along = (true[..., 2:] - sums[..., 2:] - fit.prior) / fit.radial
        across = (true[..., :2] - sums[..., :2] - fit.ray * true[..., 2:]) / fit.lateral
        square = (along * along).sum((1, 2)) + (across * across).sum((1, 2))
        return 0.5 * square + torch.log(fit.radial)[:, 0, 0] + 2 * torch.log(fit.lateral)[:, 0, 0]

    def _equations(self, keypoints: Tensor, box: Tensor, guess: CameraGuess) -> _Equations:
        half = box[:, 2:] / 2
        rays = torch.cat((crop_to_rays(keypoints, box), box[:, None, :2] + (guess.offset * half)[:, None]), dim=1)
        weight = keypoints[..., 2] ** 2 * torch.exp(self.log_weight - 2 * self.log_sigma)
        weight = torch.cat((weight, torch.exp(-2 * guess.log_sigma[:, :1])), dim=1)[..., None]  # (B, 24, 1)
        total = weight.sum(1, keepdim=True)
        share = weight / total
        mean = (share * rays).sum(1)  # (B, 2)
        delta = rays - mean[:, None]
        precision = (half[:, 0] * torch.exp(-guess.log_sigma[:, 1])) ** 2
        stiffness = precision + (weight * delta * delta).sum((1, 2))  # (B,)
        guessed = torch.exp(guess.log_depth) / box[:, 2]

        # Per person a matrix from a sample's 69 numbers to (sum of a, sum of b, pull on the depth).
        points, pull, part = rays[:, :-1], (weight * delta)[:, :-1], share[:, :-1]
        zero = torch.zeros_like(part)
        columns = (
            torch.cat((-part, zero, part * points[..., :1]), dim=-1),
            torch.cat((zero, -part, part * points[..., 1:]), dim=-1),
            torch.cat((pull, -(pull * points).sum(-1, keepdim=True)), dim=-1) / stiffness[:, None, None],
        )
        unit = (half[:, 0] * guessed)[:, None, None]
        lateral, radial = torch.exp(self.log_spread).unbind(-1)
        return _Equations(
            matrix=torch.stack(columns, dim=-1).flatten(1, 2),
            ray=mean[:, None],
            prior=(precision * guessed / stiffness)[:, None, None],
            guessed=guessed[:, None, None],
            lateral=lateral * unit * total.rsqrt(),
            radial=radial * unit * stiffness.rsqrt()[:, None, None],
        )
