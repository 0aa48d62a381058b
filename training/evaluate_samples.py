"""What an evaluation works on: the truth of examples as arrays, and the errors of many samples, drawn in portions."""

from __future__ import annotations

__all__ = ["Drawn", "Source", "Truth"]

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hmr_prob_ros.joint_sets import JointSet
from hmr_prob_ros.metrics import mpjpe, pa_mpjpe, pve
from hmr_prob_ros.metrics_image import project_to_crop
from hmr_prob_ros.skeleton import JOINT_KEYPOINTS, NUM_JOINTS

from .body import TorchBody
from .data.examples import Examples
from .data.noise import VISIBLE

_PORTION = 4096  # bodies at once
_MESHES = 128
_MM = 1000.0


@dataclass(frozen=True)
class Truth:
    """The truth of B examples, NaN where unknown.

    ``joints`` (B, 24, 3), their place only right where ``placed`` (B,); ``rooted`` (B, J, 3), the joint set relative to
    its root; ``points`` (B, 23, 2) keypoints in crop coordinates; ``visible`` (B, 24) joints and ``seen`` (B, 23)
    keypoints; ``posed`` (B,) pose and shape are known.
    """

    joints: np.ndarray
    rooted: np.ndarray
    points: np.ndarray
    visible: np.ndarray
    seen: np.ndarray
    placed: np.ndarray
    posed: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """N samples of B examples, the first P of them kept.

    ``errors``: metric -> (B, N) mm, of PVE (B, P); ``joints`` (B, P, 24, 3) and ``keypoints`` (B, P, 23, 3), or
    (B, P, 17, 3) and None of a method that only knows Human3.6M's joints; ``rooted`` (B, P, J, 3), the joint set
    relative to its root; ``weights`` (B, N), rows of which sum to one, and ``logs``, their logarithms; ``strange``: how
    many samples are not finite.
    """

    errors: dict[str, np.ndarray]
    joints: np.ndarray
    keypoints: np.ndarray | None
    rooted: np.ndarray
    weights: np.ndarray
    logs: np.ndarray
    strange: int


class Source:
    """Draws and measures samples of one model.

    Args:
        model: the method.
        chosen: joints that errors are of.
        total: samples of each example; methods with M heads give M.
        keep: how many of them are kept.
        vertices: also measure ``pve`` of the first ``keep`` samples.
        visible_by: ``truth`` or ``detector``.
        seed: of the latents.
    """

    def __init__(
        self, model: nn.Module, chosen: JointSet, total: int, keep: int, vertices: bool, visible_by: str, seed: int
    ) -> None:
        self.model, self.chosen, self.total, self.keep = model, chosen, total, keep
        self.vertices, self.visible_by, self.seed = vertices, visible_by, seed
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.regressed = None if chosen.body is None else TorchBody(chosen.body, mesh=False).to(self.device)

    def truth(self, part: Examples) -> Truth:
        """What is true of a batch."""

        def flags(name: str, shape: tuple[int, ...]) -> np.ndarray:
            value = getattr(part, name)
            return np.ones(shape, bool) if value is None else array(value)

        one, every = (len(part),), (len(part), NUM_JOINTS)
        posed, placed = flags("has_pose", one) & flags("has_betas", one), flags("has_translation", one)
        joints = np.where(flags("has_joints", every)[..., None], array(part.joints), np.nan)
        surface = array(part.keypoints3d)
        surface = np.where((surface != 0).any(axis=-1, keepdims=True), surface, np.nan)  # zeros: unknown
        points = project_to_crop(np.where(placed[:, None, None], surface, np.nan), array(part.box))
        if part.true_keypoints is not None:
            labelled = array(part.true_keypoints)
            points = np.where(labelled[..., 2:] > 0, labelled[..., :2], points)
        if self.regressed is not None:
            surface = array(self.regressed(part.rotations, part.betas, part.translation)[1])
            surface = np.where(posed[:, None, None], surface, np.nan)
        sure = array(part.state) == VISIBLE if self.visible_by == "truth" else array(part.keypoints)[..., 2] >= 0.5
        visible = np.stack([sure[:, list(k)].any(axis=1) for k in JOINT_KEYPOINTS], axis=1)
        return Truth(joints, self.chosen.rooted(joints, surface), points, visible, sure, placed, posed)

    def latents(self, start: int, count: int) -> Tensor:
        """Latents (count, N, D) of the examples from place ``start`` on, each from a seed of its own."""
        rows = []
        for place in range(start, start + count):
            # Neighbouring seeds of a Mersenne twister begin alike; a sequence hashes them.
            seed = int(np.random.SeedSequence((self.seed, place)).generate_state(1)[0])
            generator = torch.Generator().manual_seed(seed)
            # torch draws the last 16 numbers anew; rows to spare keep the rest the same for every total.
            rows.append(self.model.latents(1, self.total + 16, generator)[:, : self.total])
        return torch.cat(rows).to(self.device)

    def draw(self, part: Examples, truth: Truth, start: int) -> Drawn:
        """Samples of the examples ``part``, the first of which is number ``start`` of the data."""
        latents = self.latents(start, len(part))
        total = latents.shape[1]
        # Heads are all of one forward pass; any others may come one by one.
        step = total if self.model.heads else max(1, _PORTION // len(part))
        errors: dict[str, list[np.ndarray]] = {}
        kept: dict[str, list[np.ndarray]] = {}
        weights, logs, strange = [], [], 0
        for first in range(0, total, step):
            out = self.model(part.keypoints, part.box, latents[:, first : first + step], part.image)
            values = self.points(out)
            share = values["joints"].shape[1] / total
            strange += int((~np.isfinite(values["joints"]).all(axis=(-1, -2))).sum())
            weights.append(share * array(out["sample_weight"]).astype(np.float64))
            logs.append(self.log_weights(out))
            few = max(0, self.keep - first)
            for name, value in values.items():
                kept.setdefault(name, []).append(value[:, :few])
            true = truth.rooted[:, None]
            errors.setdefault("mpjpe", []).append(_MM * mpjpe(values["rooted"], true, root=None))
            errors.setdefault("pa_mpjpe", []).append(_MM * pa_mpjpe(values["rooted"], true))
            if self.vertices and few:
                errors.setdefault("pve", []).append(_MM * self.vertex_errors(part, truth, out, few))
        arrays = {name: np.concatenate(parts, axis=1) for name, parts in kept.items()}
        mass = np.concatenate(weights, axis=1)
        return Drawn(
            errors={name: np.concatenate(parts, axis=1) for name, parts in errors.items()},
            joints=arrays["joints"],
            keypoints=arrays.get("keypoints"),
            rooted=arrays["rooted"],
            weights=mass / mass.sum(axis=1, keepdims=True),
            logs=np.concatenate(logs, axis=1),
            strange=strange,
        )

    def points(self, out: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Joints, keypoints and the joint set relative to its root, of what a model gave."""
        if "sample_joints" not in out:
            joints = array(out["sample_joints17"])
            return {"joints": joints, "rooted": self.chosen.of_h36m(joints)}
        joints, keypoints = array(out["sample_joints"]), array(out["sample_keypoints"])
        surface = keypoints
        if self.regressed is not None:
            bodies = out["sample_rotations"], out["sample_betas"], out["sample_translation"]
            surface = array(self.regressed(*bodies)[1])
        return {"joints": joints, "keypoints": keypoints, "rooted": self.chosen.rooted(joints, surface)}

    def log_weights(self, out: dict[str, Tensor]) -> np.ndarray:
        """(B, n) logarithms of the samples' weights: the model's own where it has them, because the weights of heads
        that are a thousand nats apart are 0 and 1."""
        if hasattr(self.model, "log_weights"):
            return array(self.model.log_weights(out["sample_joints"])).astype(np.float64)
        with np.errstate(divide="ignore"):
            return np.log(array(out["sample_weight"]).astype(np.float64))

    def vertex_errors(self, part: Examples, truth: Truth, out: dict[str, Tensor], kept: int) -> np.ndarray:
        """PVE (B, n) in metres of the first ``kept`` samples, relative to the joint set's root."""
        true, true_root = self.meshes(part.rotations, part.betas, part.translation)
        true[~truth.posed] = np.nan
        bodies = [out[f"sample_{name}"][:, :kept] for name in ("rotations", "betas", "translation")]
        step = max(1, _MESHES // len(part))
        rows = []
        for first in range(0, bodies[0].shape[1], step):
            mesh, root = self.meshes(*(value[:, first : first + step] for value in bodies))
            rows.append(pve(mesh, true[:, None], root, true_root[:, None]))
        return np.concatenate(rows, axis=1)

    def meshes(self, rotations: Tensor, betas: Tensor, translation: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (..., V, 3) and the joint set's root (..., 3)."""
        points = (self.regressed or self.model.body)(rotations, betas, translation)
        return array(self.model.body.vertices(rotations, betas, translation)), self.chosen.origin(*map(array, points))


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array on the CPU; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
