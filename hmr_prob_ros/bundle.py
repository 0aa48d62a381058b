"""The model bundle: a folder with a graph and a card, the seam between training and robot.

``model.onnx``
    the graph from keypoints to hypotheses.
``density.onnx``
    log-density of given poses; optional, only evaluation reads it.
``model.yaml``
    the card: what the model is, what it expects, what it was made from, and the SHA-256 of both graphs.
"""

from __future__ import annotations

__all__ = ["FORMAT", "VERSION", "Bundle", "BundleError", "save_bundle", "update_card"]

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .skeleton import JOINT_NAMES, KEYPOINT_NAMES

FORMAT = "hmr_prob_ros/bundle"
VERSION = 1
_DEFAULT = Path(__file__).resolve().parent / "assets" / "bundle"
_AGAIN = "export it again with `hmr-prob export`"
_FIELDS: dict[str, type] = {
    "name": str,
    "latent_size": int,
    "samples": int,
    "num_modes": int,
    "joint_names": list,
    "keypoint_names": list,
    "body": dict,
    "sha256": dict,
}


class BundleError(ValueError):
    """A bundle is missing, damaged or does not fit this version; the text says how to mend it."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(path)


def _digest(path: Path) -> str:  # Python 3.10
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A checked bundle; :meth:`load` makes one.

    Attributes:
        path: its folder.
        card: all of ``model.yaml``.
        model_path: ``model.onnx``.
        density_path: ``density.onnx``, or None where the bundle has none.
        name: of the bundle.
        latent_size: D.
        samples: N that the card recommends.
        num_modes: n that the graph makes.
        nested_modes: whether the first of them, for any number, are good modes on their own.
        joint_names, keypoint_names: of the graph's joints and keypoints, those of :mod:`hmr_prob_ros.skeleton`.
        body_hash: ``Body.hash`` of the body inside the graph.
    """

    path: Path
    card: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Bundle:
        """Reads and checks a bundle.

        Args:
            path: its folder; None: the one shipped in the package.

        Raises:
            BundleError: no such folder, a file is missing or damaged, or the card lacks something or is of another
                version.
        """
        folder = Path(_DEFAULT if path is None else path)
        if not folder.is_dir():
            mend = (
                "the package was built without it, install it again"
                if path is None
                else "give the folder that `hmr-prob export` wrote, or leave the path out for the shipped bundle"
            )
            raise BundleError(f"no bundle at {folder}: {mend}")
        card_path = folder / "model.yaml"
        if not card_path.is_file():
            raise BundleError(f"{folder} has no model.yaml: give the folder that `hmr-prob export` wrote")
        try:
            card = yaml.safe_load(card_path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BundleError(f"{card_path} is no YAML ({str(error).splitlines()[0]}): {_AGAIN}") from error
        bundle = cls(folder, _checked_card(card, card_path))
        bundle._check_files()
        return bundle

    @property
    def model_path(self) -> Path:
        return self.path / "model.onnx"

    @property
    def density_path(self) -> Path | None:
        return self.path / "density.onnx" if "density.onnx" in self.card["sha256"] else None

    @property
    def name(self) -> str:
        return str(self.card["name"])

    @property
    def latent_size(self) -> int:
        return int(self.card["latent_size"])

    @property
    def samples(self) -> int:
        return int(self.card["samples"])

    @property
    def num_modes(self) -> int:
        return int(self.card["num_modes"])

    @property
    def nested_modes(self) -> bool:
        return bool(self.card.get("nested_modes", False))

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(self.card["joint_names"])

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        return tuple(self.card["keypoint_names"])

    @property
    def body_hash(self) -> str:
        return str(self.card["body"]["hash"])

    def check_body(self, body_hash: str) -> None:
        """Raises BundleError unless the graph was made with the body of this ``Body.hash``."""
        if body_hash != self.body_hash:
            raise BundleError(
                f"the bundle {self.name} was made with the body {self.card['body'].get('name', '')} "
                f"({self.body_hash[:12]}), not with {body_hash[:12]}: load that body, or train and export with yours"
            )

    def _check_files(self) -> None:
        for name, expected in self.card["sha256"].items():
            file = self.path / name
            if not file.is_file():
                raise BundleError(f"{self.path} lacks {name}: copy the whole folder, or {_AGAIN}")
            if _sha256(file) != expected:
                raise BundleError(
                    f"{file} ({file.stat().st_size} bytes) is not the file that model.yaml tells of, it is truncated "
                    f"or was changed: copy it again (with Git LFS files fetched), or {_AGAIN}"
                )


def _checked_card(card: Any, path: Path) -> dict[str, Any]:
    if not isinstance(card, dict):
        raise BundleError(f"{path} holds no mapping of names to values: {_AGAIN}")
    if card.get("format") != FORMAT:
        raise BundleError(f"{path} is not the card of a bundle, its 'format' is not {FORMAT!r}: {_AGAIN}")
    if card.get("version") != VERSION:
        mend = "update hmr_prob_ros" if isinstance(card.get("version"), int) and card["version"] > VERSION else _AGAIN
        raise BundleError(f"{path} has version {card.get('version')!r}, this package reads version {VERSION}: {mend}")
    for name, kind in _FIELDS.items():
        if name not in card:
            raise BundleError(f"{path} lacks '{name}': {_AGAIN}")
        if not isinstance(card[name], kind) or isinstance(card[name], bool):
            raise BundleError(f"'{name}' in {path} must be a {kind.__name__}, not {card[name]!r}: {_AGAIN}")
    for name in ("latent_size", "samples", "num_modes"):
        if card[name] < 1:
            raise BundleError(f"'{name}' in {path} must be at least 1, not {card[name]}: {_AGAIN}")
    if not isinstance(card.get("nested_modes", False), bool):
        raise BundleError(f"'nested_modes' in {path} must be true or false, not {card['nested_modes']!r}: {_AGAIN}")
    if not isinstance(card["body"].get("hash"), str):
        raise BundleError(f"'body' in {path} lacks 'hash': {_AGAIN}")
    if "model.onnx" not in card["sha256"]:
        raise BundleError(f"'sha256' in {path} lacks model.onnx: {_AGAIN}")
    for name in card["sha256"]:
        if name != Path(name).name:
            raise BundleError(f"'sha256' in {path} names a file outside of the bundle ({name}): {_AGAIN}")
    for name, known in (("joint_names", JOINT_NAMES), ("keypoint_names", KEYPOINT_NAMES)):
        if tuple(card[name]) != known:
            raise BundleError(
                f"'{name}' in {path} is not this package's skeleton ({len(known)} names from {known[0]} on): {_AGAIN}"
                f" from the same version"
            )
    return card


def update_card(path: str | Path, **entries: Any) -> Bundle:
    """Adds entries to the card of a bundle, metrics for example; reads it back.

    Raises:
        BundleError: there is no such bundle, or an entry does not fit.
    """
    bundle = Bundle.load(path)
    file = bundle.path / "model.yaml"
    card = _checked_card({**bundle.card, **entries}, file)
    file.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    return Bundle.load(path)


def save_bundle(
    path: str | Path, card: Mapping[str, Any], model: str | Path, density: str | Path | None = None
) -> Bundle:
    """Writes a bundle and reads it back.

    Args:
        path: its folder, made if need be; older files of a bundle in it are replaced.
        card: the card, without ``sha256``.
        model, density: the graphs, copied.

    Raises:
        BundleError: the card lacks something.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.onnx": Path(model)} | ({"density.onnx": Path(density)} if density is not None else {})
    full = {**card, "sha256": {name: _sha256(file) for name, file in files.items()}}
    _checked_card(full, folder / "model.yaml")
    (folder / "density.onnx").unlink(missing_ok=True)
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    text = yaml.safe_dump(full, sort_keys=False, allow_unicode=True, width=120)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return Bundle.load(folder)
