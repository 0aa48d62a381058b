"""What all methods share: encoder, heads of shape and camera, translation, body, and the losses on drawn bodies.

One interface: ``forward(keypoints, box, latents, image)`` gives weighted bodies, with a log-density where the method
has one, and ``losses(examples, config)`` what trains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hmr_prob_ros.skeleton import NUM_JOINTS

from .. import losses as L
from ..data.examples import Examples
from ..data.noise import VISIBLE
from ..loss_config import LossConfig
from ..rotations import rotation6d_to_matrix
from .encoder import CameraGuess, Condition, Encoder, PersonHeads, ShapeGuess, TranslationFit

__all__ = ["POSE_SIZE", "LiftingModel", "ModelConfig", "rest_pelvis"]

POSE_SIZE = 6 * NUM_JOINTS


def rest_pelvis(body: nn.Module, num_betas: int = 10) -> tuple[Tensor, Tensor]:
    """Rest pelvis as an affine map of the betas: offset (3,), slope (10, 3)."""
    with torch.no_grad():
        betas = torch.cat((torch.zeros(1, num_betas), torch.eye(num_betas)))
        rotations = torch.eye(3).expand(num_betas + 1, NUM_JOINTS, 3, 3)
        joints, _ = body(rotations, betas, torch.zeros(num_betas + 1, 3))
    pelvis = joints[:, 0]
    return pelvis[0].clone(), pelvis[1:] - pelvis[0]


@dataclass(frozen=True)
class ModelConfig:
    """What shapes the parts that all methods share.

    Attributes:
        hidden: width of the method's own networks.
        condition: width of the condition.
        encoder_width, encoder_depth: the residual MLP that makes the condition; ``dropout``: inside it.
        head_hidden: width of the shape and camera heads.
        refine_translation: fit each sample's translation to the keypoints (else all take the camera head's).
        use_keypoints, use_confidence, use_box: what the condition holds; without confidences every detected keypoint
            counts the same.
        image: name of a ``timm`` backbone whose features join the condition, "" for none.
        image_weights: its weights: a file, "timm" for the library's own download, "" for random ones.
        image_frozen: keep them as they are.
    """

    hidden: int = 512
    condition: int = 256
    encoder_width: int = 512
    encoder_depth: int = 2
    head_hidden: int = 256
    dropout: float = 0.0
    refine_translation: bool = True
    num_betas: int = 10
    use_keypoints: bool = True
    use_confidence: bool = True
    use_box: bool = True
    image: str = ""
    image_weights: str = ""
    image_frozen: bool = True

    def __post_init__(self) -> None:
        if not (self.use_keypoints or self.image):
            raise ValueError("the condition would be empty: set model.use_keypoints or name a backbone in model.image")


class LiftingModel(nn.Module):
    """A person's keypoints and picture -> weighted bodies.

    Args:
        config: sizes and options.
        body: a ``TorchBody``, not saved with the weights.
    """

    name: ClassVar[str] = ""
    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    has_density: ClassVar[bool] = False
    """Whether :meth:`log_prob` gives the density of a pose."""
    adversary: nn.Module | None
    """Judge of drawn bodies in adversarial training: rotations (..., 24, 3, 3), betas (..., 10) -> scores (..., 25).
    Whoever trains sets it; it is no part of the model's checkpoint."""
    drawn: tuple[Tensor, Tensor] | None = None
    """Rotations and betas that the last adversarial loss saw, detached: the adversary learns from them."""
    bfloat16: bool = False
    """Run the networks in bfloat16, which is enough in latent units; kinematics and cameras stay in float32."""

    def __init__(self, config: ModelConfig, body: nn.Module) -> None:
        super().__init__()
        self.adversary = None  # here and not on the class, which would hide a module set later
        self.config = config
        self.encoder = Encoder(config)
        self.person = PersonHeads(config.condition, config.head_hidden, config.num_betas)
        self.translation_fit = TranslationFit()
        self.body = body
        offset, slope = rest_pelvis(body, config.num_betas)
        self.register_buffer("pelvis_offset", offset, persistent=False)
        self.register_buffer("pelvis_slope", slope, persistent=False)

    @property
    def latent_size(self) -> int:
        """D, the numbers of one latent; 0 where the hypotheses are fixed heads."""
        return 0

    @property
    def heads(self) -> int | None:
        """M, how many hypotheses there are; None where any number can be drawn."""
        return None

    @property
    def modes(self) -> int:
        """How many of the first samples are learned modes, each prefix of which stands for the posterior; 0: none."""
        return 0

    def fit_statistics(self, pose6d: Tensor) -> None:
        """Measures the normalisation on training poses (T, 144) as cameras see them."""
        raise NotImplementedError

    def forward(
        self, keypoints: Tensor, box: Tensor, latents: Tensor, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted bodies.

        Args:
            keypoints: crop keypoints in [-1, 1] and confidence, (B, 23, 3).
            box: (cx, cy, size)/focal, (B, 3).
            latents: (B, N, D) as :meth:`latents` draws them; row 0 gives the single answer.
            image: (B, 3, H, W) crop in RGB from 0 to 1, for models with a backbone.

        Returns:
            ``sample_joints`` (B, N, 24, 3), ``sample_keypoints`` (B, N, 23, 3), ``sample_rotations`` (B, N, 24, 3, 3),
            ``sample_betas`` (B, N, 10), ``sample_translation`` (B, N, 3), ``sample_weight`` (B, N), rows of which sum
            to one, ``sample_log_density`` (B, N) where the method has one, and ``sample_pose6d`` (B, N, 144), which
            losses use and the exported graph leaves out.
        """
        raise NotImplementedError

    def losses(self, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """Weighted terms, scalars, whose sum is minimised."""
        raise NotImplementedError

    def finish(
        self, batches: Iterator[Examples], rotations: Callable[[], Tensor], steps: int, seed: int, progress: bool
    ) -> None:
        """Trains what is trained apart, after the rest; nothing, for most methods.

        Args:
            batches: of training examples, more of them without end.
            rotations: gives training poses (T, 24, 3, 3) with any root.
            steps: that the main training took.
            seed: of the training.
            progress: show a bar.
        """

    def latents(self, count: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal latents (count, N, D) on the model's device, the first of each example zero: the single
        answer. N is ``samples``, or M for methods with M heads."""
        latents = torch.randn(count, self.heads or samples, self.latent_size, generator=generator)
        latents[:, 0] = 0
        return latents.to(next(self.parameters()).device)

    def networks(self) -> AbstractContextManager[Any]:
        """Where networks run, and nothing else: bfloat16 if :attr:`bfloat16` is set."""
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, dtype=torch.bfloat16)

    def condition(self, keypoints: Tensor, box: Tensor, image: Tensor | None = None) -> Condition:
        """What keypoints (B, 23, 3) in boxes (B, 3) and pictures (B, 3, H, W) tell; every other method takes it."""
        return self.encoder(keypoints, box, image)

    def guesses(self, condition: Condition) -> tuple[ShapeGuess, CameraGuess]:
        """Shape and camera with their deviations; their ``nll`` methods train the heads."""
        return self.person(condition.code)

    def rest_pelvis(self, betas: Tensor) -> Tensor:
        """Pelvis of the rest pose (..., 3) for betas (..., 10)."""
        return self.pelvis_offset + betas @ self.pelvis_slope

    def bodies(
        self,
        pose6d: Tensor,
        betas: Tensor,
        keypoints: Tensor,
        box: Tensor,
        camera: CameraGuess,
        translation_latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What :meth:`forward` gives, but for weight and density, of poses (B, N, 144) with betas (B, N, 10).

        ``translation_latents`` (B, N, 3) as :class:`TranslationFit` takes them.
        """
        rotations = rotation6d_to_matrix(pose6d.unflatten(-1, (NUM_JOINTS, 6)))
        joints, surface = self.body(rotations, betas, torch.zeros_like(betas[..., :3]))
        rest = self.rest_pelvis(betas)
        if self.config.refine_translation:
            relative = surface - rest[..., None, :]
            pelvis = self.translation_fit(relative, keypoints, box, camera, translation_latents)
        else:
            pelvis = camera.pelvis(box)
            pelvis = pelvis[:, None].expand_as(rest) if pelvis.ndim == 2 else pelvis
        translation = pelvis - rest
        return {
            "sample_joints": joints + translation[..., None, :],
            "sample_keypoints": surface + translation[..., None, :],
            "sample_rotations": rotations,
            "sample_betas": betas,
            "sample_translation": translation,
            "sample_pose6d": pose6d,
        }

    def head_losses(
        self, examples: Examples, shape: ShapeGuess, camera: CameraGuess, config: LossConfig
    ) -> dict[str, Tensor]:
        """Likelihoods of the true shape and place under the heads and the translation fit."""
        terms = {}
        pelvis = examples.joints[:, 0]
        placed = _weight(examples.has_translation, pelvis)
        if config.camera:
            there = _somewhere(pelvis, placed)
            terms["camera"] = config.camera * (placed * camera.nll(examples.box, there)).mean()
        if config.translation and self.config.refine_translation:
            relative = examples.keypoints3d - pelvis[:, None]
            nll = self.translation_fit.nll(relative, examples.keypoints, examples.box, camera, pelvis)
            terms["translation"] = config.translation * (placed * nll).mean()
        if config.betas_nll:
            known = _weight(examples.has_betas, pelvis)
            terms["betas_nll"] = config.betas_nll * (known * shape.nll(examples.betas)).mean()
        return terms

    def place_loss(
        self, out: dict[str, Tensor], examples: Examples, camera: CameraGuess, config: LossConfig
    ) -> dict[str, Tensor]:
        """How far from its true place the single answer stands, of models that fit the translation.

        The fit, the camera head and the condition learn from it. Pose and shape do not: they would bend until the
        depth is right.
        """
        if not (config.place and self.config.refine_translation):
            return {}
        relative = (out["sample_keypoints"][:, :1] - out["sample_joints"][:, :1, :1]).detach()
        pelvis = self.translation_fit(relative, examples.keypoints, examples.box, camera)
        true = examples.joints[:, 0]
        placed = _weight(examples.has_translation, true)
        return {"place": config.place * L.place_l1(pelvis, _somewhere(true, placed), placed)}

    def sample_losses(self, out: dict[str, Tensor], examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """Losses on drawn bodies, the first of each example the single answer.

        Args:
            out: as :meth:`bodies` gives it, (B, S, ...).
            examples: the same B.
        """
        terms = {}
        joints, rotations = out["sample_joints"], out["sample_rotations"]
        has_joints = None if examples.has_joints is None else examples.has_joints.to(joints)
        if config.mode_joints:
            terms["mode_joints"] = config.mode_joints * L.joints_l1(joints[:, :1], examples.joints, has_joints)
        if config.sample_joints:
            best, _ = L.best_of_m(joints, examples.joints, weight=has_joints)
            terms["sample_joints"] = config.sample_joints * best.mean()
        if config.rotations:
            known = None if examples.has_pose is None else examples.has_pose.to(joints)
            terms["rotations"] = config.rotations * L.rotations_l2(rotations[:, :1], examples.rotations, known)
        if config.betas:
            known = None if examples.has_betas is None else examples.has_betas.to(joints)
            terms["betas"] = config.betas * L.betas_l2(out["sample_betas"][:, :1], examples.betas, known)
        if config.orthonormality:
            terms["orthonormality"] = config.orthonormality * L.orthonormality(out["sample_pose6d"])
        if config.adversarial and self.adversary is not None:
            terms["adversarial"] = config.adversarial * L.generator_loss(self.adversary(rotations, out["sample_betas"]))
            self.drawn = rotations.detach(), out["sample_betas"].detach()
        if config.mode_keypoints or config.sample_keypoints or config.mmd or config.mask:
            points = L.project_to_crop(out["sample_keypoints"], examples.box)
            terms |= self._image_losses(points, examples, config)
        return terms

    def _image_losses(self, points: Tensor, examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """Losses of projected keypoints (B, S, 23, 2)."""
        terms = {}
        true, seen = true_keypoints(examples)
        if config.mode_keypoints:
            terms["mode_keypoints"] = config.mode_keypoints * L.keypoints_l1(points[:, :1], true, seen, clamp=2.0)
        if config.sample_keypoints and points.shape[1] > 1:
            terms["sample_keypoints"] = config.sample_keypoints * L.keypoints_l1(points[:, 1:], true, seen, clamp=2.0)
        # The papers leave the mode out of the losses between distributions.
        drawn = points[:, 1:]
        if config.mmd and examples.heatmap is not None:
            known = None if examples.true_keypoints is None else (seen > 0) | examples.whole[:, None]
            target, use = L.mmd_target(examples.heatmap, examples.heatmap_peak, true, known)
            terms["mmd"] = config.mmd * L.mmd(drawn, target, use, unbiased=config.mmd_unbiased)
        if config.mask and examples.heatmap is not None and examples.mask is not None:
            # Points that the detector has no heatmap for have no samples to be drawn to.
            invisible = L.invisible_keypoints(examples.heatmap_peak, true) & (examples.heatmap_peak > 0)
            use = None if examples.occluded is None else ~examples.occluded
            terms["mask"] = config.mask * L.mask_loss(drawn, examples.heatmap, examples.mask, invisible, use)
        return terms

    def total_loss(self, out: dict[str, Tensor], examples: Examples, config: LossConfig) -> dict[str, Tensor]:
        """Biggs' total loss (Biggs et al. 2020, equation 8) of methods that train one body per example, the first of
        ``out``: what ``best_of_m``, ``best_*`` and ``reprojection`` are for the multi-head model if M = 1."""
        single = {name: value[:, :1] for name, value in out.items()}
        terms = {}
        if config.best_of_m:
            joints = single["sample_joints"]
            known = None if examples.has_joints is None else examples.has_joints.to(joints)
            gap, _ = L.best_of_m(joints, examples.joints, weight=known, squared=config.best_of_m_squared)
            terms["best_of_m"] = config.best_of_m * gap.mean()
        return terms | self.best_losses(single, examples, config)

    def best_losses(
        self, out: dict[str, Tensor], examples: Examples, config: LossConfig, chosen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of the best of M heads (Biggs et al. 2020, equations 6 and 7), and the reprojection of all (equation
        5). ``best_vertices`` is a mean over vertices, so that its weight does not depend on the mesh; without a mesh,
        over keypoints.

        Args:
            out: as :meth:`bodies` gives it, (B, M, ...).
            examples: the same B.
            chosen: heads (B, C) whose losses are summed; None where there is only one.
        """

        def of(value: Tensor) -> Tensor:
            if chosen is None:
                return value
            return torch.take_along_dim(value, chosen.reshape(chosen.shape + (1,) * (value.ndim - 2)), dim=1)

        count = 1 if chosen is None else chosen.shape[1]  # losses are means over heads
        terms = {}
        rotations, betas = of(out["sample_rotations"]), of(out["sample_betas"])
        pose, shape = (_weight(known, betas[:, 0]) for known in (examples.has_pose, examples.has_betas))
        if config.best_rotations:
            error = count * L.rotations_l2(rotations, examples.rotations, pose)
            terms["best_rotations"] = config.best_rotations * error
        if config.best_betas:
            terms["best_betas"] = config.best_betas * count * L.betas_l2(betas, examples.betas, shape)
        if config.best_vertices:
            vertices, true = self.surface(rotations, betas), self.surface(examples.rotations, examples.betas)
            error = count * L.vertices_l1(vertices, true, pose * shape) / true.shape[-2]
            terms["best_vertices"] = config.best_vertices * error
        if config.best_keypoints or config.reprojection:
            points = L.project_to_crop(out["sample_keypoints"], examples.box)
            true, seen = true_keypoints(examples)
            if config.reprojection:
                terms["reprojection"] = config.reprojection * L.keypoints_l2(points, true, seen)
            if config.best_keypoints:
                if chosen is not None:  # without a true body none is the best
                    joints = pose if examples.has_joints is None else examples.has_joints.amax(-1).to(pose)
                    seen = seen * torch.maximum(pose, joints)[:, None]
                terms["best_keypoints"] = config.best_keypoints * count * L.keypoints_l2(of(points), true, seen)
        return terms

    def surface(self, rotations: Tensor, betas: Tensor) -> Tensor:
        """Vertices (..., V, 3) of bodies that are not moved, or keypoints (..., 23, 3) where the body has no mesh."""
        still = torch.zeros_like(betas[..., :3])
        if self.body.has_mesh:
            return self.body.vertices(rotations, betas, still)
        return self.body(rotations, betas, still)[1]


def true_keypoints(examples: Examples) -> tuple[Tensor, Tensor]:
    """True keypoints (B, 23, 2) in crop coordinates, and 1 (B, 23) where they are known and visible."""
    true = L.project_to_crop(examples.keypoints3d, examples.box)
    if examples.true_keypoints is None:
        return true, (examples.state == VISIBLE).to(true)
    given, labelled = examples.true_keypoints[..., :2], examples.true_keypoints[..., 2]
    # A whole body tells where its points without a label are.
    return torch.where(((labelled <= 0) & examples.whole[:, None])[..., None], true, given), labelled


def _weight(known: Tensor | None, like: Tensor) -> Tensor:
    """1 (B,) where a target is known."""
    return torch.ones_like(like[:, 0]) if known is None else known.to(like)


def _somewhere(pelvis: Tensor, placed: Tensor) -> Tensor:
    """Places (B, 3), harmless ones where none is known: their losses count nothing, but must stay finite."""
    return torch.where(placed[:, None] > 0, pelvis, pelvis.new_tensor([0.0, 0.0, 1.0]))
