"""Image features of any ``timm`` network, frozen or trained.

``timm`` (Wightman 2019) holds the networks of all three papers under one interface and knows the normalisation of each:
ResNet-50 (``resnet50``), HRNet-W48 (``hrnet_w48``), and small ones that a CPU can run (``mobilenetv3_small_100``).
"""

from __future__ import annotations

__all__ = ["Backbone", "BackboneError"]

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = ("state_dict", "model", "model_state_dict", "network")
"""Keys under which training programs put the weights of a network."""
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")
_HEADS = ("fc.", "classifier.", "head.", "incre_modules.", "downsamp_modules.", "final_layer.")
"""Layers after the features, which weight files have and this use has not: classifiers, and HRNet's heads."""


class BackboneError(ValueError):
    """A network or weights that cannot be had; the text says why and how to mend it."""


class Backbone(nn.Module):
    """Picture (B, 3, H, W) in RGB from 0 to 1 -> features (B, ``features``), averaged over the picture.

    The network's own mean and deviation are applied inside. Convolutional networks take any size of at least 32 px;
    those with a fixed grid, as most transformers, get the picture resized to it.

    HRNet gives the averages of its four resolutions, one after the other (48 + 96 + 192 + 384 = 720 for W48), as the
    condition of Wehrbein et al. 2025 has them; others what precedes their classifier.

    A frozen backbone stays in evaluation mode, batch statistics included, takes no gradient, and so no optimiser moves
    it. Frozen or not, its weights are part of a checkpoint: a model is then complete without the file they came from.

    Args:
        name: of a ``timm`` model.
        weights: a state dict (.safetensors, or what ``torch.save`` wrote: .pth, .pt, .bin), "timm" for the library's
            own download, "" for random ones.
        frozen: keep them as they are.

    Raises:
        BackboneError: ``timm`` is not installed, no such model, or its weights cannot be had or do not fit.
    """

    def __init__(self, name: str, weights: str = "", frozen: bool = True) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
            raise BackboneError(
                f"timm {timm.__version__} has no model {name!r}: set model.image to another, "
                f"for example {', '.join(near or ['resnet50'])}"
            )
        self.frozen = frozen
        self.network = _create(timm, name, pretrained=weights == "timm")
        if weights not in ("", "timm"):
            load_weights(self.network, Path(weights), name)
        self.multiscale = _is_hrnet(name)
        self.features: int = sum(self.network.feature_info.channels()) if self.multiscale else _width(self.network)
        data = timm.data.resolve_model_data_config(self.network)
        self.size = tuple(data["input_size"][1:]) if self.network.pretrained_cfg.get("fixed_input_size") else None
        # Saved with the weights: another version of the library may name other numbers.
        self.register_buffer("mean", torch.tensor(data["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(data["std"])[:, None, None])
        if frozen:
            self.network.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """A frozen backbone stays in evaluation mode: its batch statistics are part of its weights."""
        return super().train(mode and not self.frozen)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ValueError(
                f"the backbone takes pictures (B, 3, H, W) of floats from 0 to 1, "
                f"not {tuple(image.shape)} of {str(image.dtype).removeprefix('torch.')}"
            )
        if self.size is not None and image.shape[-2:] != self.size:
            image = nn.functional.interpolate(image, self.size, mode="bilinear", antialias=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            out = self.network((image - self.mean) / self.std)
            return torch.cat([level.mean((2, 3)) for level in out], dim=1) if self.multiscale else out


def _timm() -> ModuleType:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise BackboneError(
            "model.image names an image backbone, which needs the package timm: install it with "
            "`pip install timm`, or set model.image to '' to use keypoints alone"
        ) from error
    return timm


def _is_hrnet(name: str) -> bool:
    return name.startswith("hrnet")


def _create(timm: ModuleType, name: str, pretrained: bool) -> nn.Module:
    """The network without its classifier."""
    options: dict[str, Any] = {"num_classes": 0}
    if _is_hrnet(name):
        options = {"features_only": True, "feature_location": "", "out_indices": (1, 2, 3, 4)}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # any of the network's, the hub's and the file system's
        if not pretrained:
            raise
        raise BackboneError(
            f"timm could not download the weights of {name!r} ({type(error).__name__}): check the network, or get a "
            "state dict elsewhere and name the file (.safetensors or .pth) in model.image_weights"
        ) from error


def _width(network: nn.Module) -> int:
    """Features of a network; some widen them after their last block."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def load_weights(network: nn.Module, path: Path, name: str) -> None:
    """Fills ``network`` from a file. Weights of a classifier are passed over; all others must fit one to one.

    Raises:
        BackboneError: no such file, not a state dict, or one that does not fit; the differences are named.
    """
    state = _read(path)
    own = network.state_dict()
    for prefix in _PREFIXES:
        if not any(key in own for key in state) and any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # Counters of batches do nothing here, and older files lack them.
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in state}
    state = {key: value for key, value in state.items() if key in own or not key.startswith(_HEADS)} | counters
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape],
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in faults.items() if keys]
    if told:
        raise BackboneError(
            f"the weights {path} do not fit {name!r}: {'; '.join(told)}. Name the timm model they belong to in "
            "model.image, or other weights in model.image_weights"
        )
    network.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, by name."""
    if not path.is_file():
        raise BackboneError(
            f"model.image_weights: no file {path}: name a state dict (.safetensors or .pth), 'timm' or ''"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(
            f"the weights {path} cannot be read ({type(error).__name__}): they are truncated, or hold more than "
            "tensors; save the network's state_dict() alone"
        ) from error
    for key in _CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(f"{path} is no state dict of names and tensors: save the network's state_dict() alone")
    return dict(state)
