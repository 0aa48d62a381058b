"""Models from 2D keypoints to bodies, one file per method, and their checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adversary import PoseDiscriminator
from .base import POSE_SIZE, LiftingModel, ModelConfig
from .cvae import VariationalConfig, VariationalPosterior
from .encoder import CameraGuess, Encoder, PersonHeads, ShapeGuess, TranslationFit
from .flow import FlowConfig, FlowPosterior
from .joint import JointConfig, JointPosterior
from .lifting import Lifting, LiftingConfig
from .mdn import MixtureConfig, MixtureDensity
from .multi_head import MultiHead, MultiHeadConfig
from .prohmr import ProHMR, ProHMRConfig
from .regressor import Regressor, RegressorConfig

__all__ = [
    "MODELS",
    "POSE_SIZE",
    "CameraGuess",
    "CheckpointError",
    "Encoder",
    "FlowConfig",
    "FlowPosterior",
    "JointConfig",
    "JointPosterior",
    "Lifting",
    "LiftingConfig",
    "LiftingModel",
    "MixtureConfig",
    "MixtureDensity",
    "ModelConfig",
    "MultiHead",
    "MultiHeadConfig",
    "PersonHeads",
    "PoseDiscriminator",
    "ProHMR",
    "ProHMRConfig",
    "Regressor",
    "RegressorConfig",
    "ShapeGuess",
    "TranslationFit",
    "VariationalConfig",
    "VariationalPosterior",
    "build_model",
    "load_checkpoint",
    "model_state",
    "save_checkpoint",
]

MODELS: dict[str, type[LiftingModel]] = {
    model.name: model
    for model in (
        FlowPosterior,
        JointPosterior,
        ProHMR,
        Lifting,
        MultiHead,
        MixtureDensity,
        VariationalPosterior,
        Regressor,
    )
}
"""Every method by its name; ``config_class`` is what configures it."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text says why and how to mend it."""


def build_model(config: dict[str, Any], body: nn.Module) -> nn.Module:
    """A model of ``config``: ``{"model": one of MODELS, **fields of its configuration}``.

    Raises:
        CheckpointError: unknown model or field.
    """
    values = dict(config)
    name = values.pop("model", None)
    if name not in MODELS:
        raise CheckpointError(f"unknown model {name!r}: set 'model' to one of {', '.join(MODELS)}")
    model_class = MODELS[name]
    config_class = model_class.config_class
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(
            f"{config_class.__name__} has no field {', '.join(unknown)}: it has {', '.join(sorted(known))}"
        )
    return model_class(config_class(**values), body)


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model without its body, which has a file of its own, and its adversary."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith(("body.", "adversary."))}


def save_checkpoint(path: str | Path, model: nn.Module, meta: dict[str, Any] | None = None) -> None:
    """Writes ``{"config", "state", "meta"}``; ``meta`` holds plain numbers, texts, lists and dicts only.

    The file appears whole or not at all, so that a killed training can resume from it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"model": model.name, **dataclasses.asdict(model.config)}
    state = {key: value.detach().cpu() for key, value in model_state(model).items()}
    partial = path.with_name(path.name + ".part")
    torch.save({"config": config, "state": state, "meta": dict(meta or {})}, partial)
    partial.replace(path)


def load_checkpoint(path: str | Path, body: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Model in evaluation mode, and the checkpoint's ``meta``.

    Raises:
        CheckpointError: no such file, not a checkpoint of this project, one of another body, or weights that do not
            fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `hmr-prob train`")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = type(error).__name__  # torch's text is a page
        raise CheckpointError(f"{path} cannot be read ({reason}): it is truncated or no checkpoint") from error
    missing = [key for key in ("config", "state", "meta") if not isinstance(data, dict) or key not in data]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by this project's training")
    trained_with, given = data["meta"].get("body_hash"), getattr(body, "body_hash", None)
    if trained_with and given and trained_with != given:
        raise CheckpointError(
            f"{path} was trained with the body {trained_with[:12]}, not {given[:12]}: give the body file that it was "
            "trained with as --body"
        )
    # The state holds a backbone's weights too: the file or the network that they came from is not needed again.
    weights = data["config"].get("image_weights", "")
    model = build_model({**data["config"], "image_weights": ""}, body)
    model.config = dataclasses.replace(model.config, image_weights=weights)
    try:
        result = model.load_state_dict(data["state"], strict=False)
    except RuntimeError as error:  # a weight of another shape
        raise CheckpointError(f"{path} does not fit its own configuration: {error}; train again") from error
    missing = [key for key in result.missing_keys if not key.startswith("body.")]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{path} does not fit its own configuration: missing {missing}, "
            f"unknown {result.unexpected_keys}; train again"
        )
    return model.eval(), data["meta"]
