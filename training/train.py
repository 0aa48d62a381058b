"""``hmr-prob train``: from motion capture or shards to a trained model, and to a bundle where the method makes one.

    hmr-prob train --mocap DIR --out runs/joint                              # ours, on synthetic views
    hmr-prob train prohmr --data SHARDS --config mine.yaml --out runs/prohmr
    hmr-prob train flow --mocap DIR --set losses.mmd=0 engine.steps=20000 --out runs/flow

METHOD is a named configuration: joint (ours, the default), flow, prohmr, lifting, multi_head, mdn, cvae or regressor.
A configuration file holds the settings that differ from it; ``OUT/config.yaml`` shows all there are. Each stage is kept
below ``OUT`` and not done again when the command is called again: a killed training goes on from its last checkpoint.
"""

from __future__ import annotations

__all__ = ["main", "train", "train_on"]

import argparse
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import Bundle, update_card
from hmr_prob_ros.evaluate import evaluate

from .body import TorchBody
from .config import ConfigError, TrainConfig, config_names, load_config
from .data.examples import Examples
from .data.mocap import SPLITS, Mocap, load_mocap
from .data.noise import DetectorNoise
from .data.retarget import MocapError
from .data.synthesize import Synthesizer
from .data.widen import load_pool
from .fitting import Material, fit
from .make_set import make_set
from .models import LiftingModel, load_checkpoint
from .rotations import axis_angle_to_matrix
from .streams import FixedSource, MixedSource, MocapSource, ShardSource, Source, key

logger = logging.getLogger(__name__)

BUNDLES = ("joint", "flow", "prohmr")
"""Methods that a bundle can hold."""


def train_on(
    examples: Examples,
    config: TrainConfig,
    body: Body | TorchBody,
    out: str | Path,
    validation: Examples | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> LiftingModel:
    """Trains on examples in memory, without motion capture, data workers or export; goes on where it was stopped.

    Args:
        examples: what is trained on; the batches are the same for every method.
        config: method, losses, optimiser, engine. Its ``data`` is not used.
        body: that the examples are made of.
        out: folder of the run: ``model.pt``, ``config.yaml``, ``checkpoints``, ``log``.
        validation: examples that are validated on every ``engine.validate_every`` steps.
        callbacks: of Lightning, besides its own.

    Returns:
        The trained model, in evaluation mode.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch_body = _body(body, config)
    if _finished(out, config):
        return load_checkpoint(out / "model.pt", torch_body)[0]
    known = examples if examples.has_pose is None else examples[examples.has_pose]
    material = Material(
        FixedSource(examples, config.optimiser.batch, config.engine.seed),
        known.pose6d[:16384],
        lambda: known.rotations,
        _split(validation, 256),
    )
    quick = replace(config, engine=replace(config.engine, workers=0))
    return fit(quick, material, torch_body, out, callbacks, tensorboard=False)


def train(config: TrainConfig, out: Path, body_file: Path | None = None) -> Path:
    """From data to a model; returns what it made: a bundle's folder, ``regressor.onnx``, or ``model.pt``.

    Raises:
        ConfigError, DataError, MocapError, ShardError: what is asked for or given cannot be trained on.
        TrainingError: the loss became NaN or infinite; the last good checkpoint stays in ``OUT/checkpoints``.
    """
    if not config.data.mocap and not config.data.shards:
        raise ConfigError("there is nothing to train on: give --mocap PATH... or --data SHARDS..., or both")
    if config.data.mocap and config.model.image:
        raise ConfigError(
            f"model.image is {config.model.image!r}, but motion capture has no pictures: give --data alone, "
            "or set model.image=''"
        )
    out.mkdir(parents=True, exist_ok=True)
    body, checkpoint = Body.load(body_file), out / "model.pt"
    mocap = None
    if config.data.mocap:
        with _MainProcessFirst(out, config, body):
            mocap = load_mocap([Path(p) for p in config.data.mocap], body, out / "mocap.npz")
    if _finished(out, config):
        logger.warning("%s was trained already and is only exported: name another --out to train again", checkpoint)
    else:
        fit(config, _material(config, mocap, body, out), _body(body, config), out, tensorboard=True)
    if rank_zero_only.rank:
        return checkpoint
    return _export(config, mocap, body, body_file, out)


def _export(config: TrainConfig, mocap: Mocap | None, body: Body, body_file: Path | None, out: Path) -> Path:
    checkpoint = out / "model.pt"
    if config.model.image:
        logger.warning("a model with an image backbone is not exported: the robot half gives it no picture")
        return checkpoint
    if config.method not in (*BUNDLES, "regressor"):
        return checkpoint
    from .export import export, export_regressor  # which needs onnx

    if config.method == "regressor":
        return export_regressor(checkpoint, out / "regressor.onnx", body_file)
    modes = min(10, getattr(config.model, "hypotheses", 10))
    bundle = export(checkpoint, out / "bundle", body_file, name="default", modes=modes, extra=_card(config, mocap))
    if config.data.mocap:
        update_card(bundle.path, metrics=_test(bundle, out, body, config))
    return bundle.path


def _finished(out: Path, config: TrainConfig) -> bool:
    """Whether ``out`` holds a model that was trained for as many steps (or stopped early)."""
    if not (out / "model.pt").is_file():
        return False
    meta = torch.load(out / "model.pt", map_location="cpu", weights_only=True)["meta"]
    return bool(meta.get("complete", 0) >= config.engine.steps)


def _body(body: Body | TorchBody, config: TrainConfig) -> TorchBody:
    """With a mesh where a loss looks at vertices."""
    return body if isinstance(body, TorchBody) else TorchBody(body, mesh=config.losses.best_vertices > 0)


def _split(examples: Examples | None, size: int) -> list[Examples]:
    return [] if examples is None else [examples[i : i + size] for i in range(0, len(examples), size)]


def _material(config: TrainConfig, mocap: Mocap | None, body: Body, out: Path) -> Material:
    """Training batches, poses for normalisation, and validation batches, from motion capture, shards or both."""
    views = None if mocap is None else _views(config, mocap, body, out)
    shards = _shards(config, body) if config.data.shards else None
    if views is None or shards is None:
        material = views or shards
        assert material is not None
        return material
    source = MixedSource(views.source, shards.source, config.data.shards_share)
    return replace(views, source=source, validation=shards.validation or views.validation)


def _views(config: TrainConfig, mocap: Mocap, body: Body, out: Path) -> Material:
    """Synthetic views of motion capture."""
    data, seed = config.data, config.engine.seed
    for split in ("train", "validation"):
        if not len(mocap.select(split)):
            raise MocapError(
                f"the motion capture ({len(mocap.takes)} takes) leaves no frames for the {split} split: "
                "give recordings of at least five takes"
            )
    with _MainProcessFirst(out, config, body):
        poses, _ = load_pool(out / "pool_train.npz", mocap, "train", data.pool, seed, body)
        held_out, _ = load_pool(out / "pool_validation.npz", mocap, "validation", data.pool // 20, seed + 1, body)
    noises = [DetectorNoise.load(name) for name in data.detectors]
    # A body of its own: examples are made on the CPU, also where the model goes to a GPU.
    torch_body = TorchBody(body, mesh=False)

    def views(of: Any, batch: int, number: int) -> MocapSource:
        synthesizer = Synthesizer(torch_body, noises, data.synthesis)
        return MocapSource(of, synthesizer, batch, key(seed, number), data.occlusion)

    validation = views(held_out, 256, 2)
    statistics = views(poses, 16384, 3).batch(0).pose6d  # as cameras see them
    return Material(
        views(poses, config.optimiser.batch, 1),
        statistics,
        lambda: axis_angle_to_matrix(torch.from_numpy(poses)),
        [validation.batch(step) for step in range(max(data.validation // 256, 1))],
    )


def _shards(config: TrainConfig, body: Body) -> Material:
    """Rendered or annotated people."""
    from .data.shards import ShardError, read_examples, shard_paths

    data, images = config.data, bool(config.model.image)
    paths: list[Path] = shard_paths(list(data.shards))
    held_out = shard_paths(list(data.validation_shards)) if data.validation_shards else paths[9::10]
    paths = [path for path in paths if path not in set(held_out)]
    if not paths:
        raise ShardError("data.validation_shards holds all shards of --data: leave some of them to train on")

    def of(files: Sequence[Path], with_images: bool) -> ShardSource:
        return ShardSource(files, config.optimiser.batch, config.engine.seed, with_images, body.hash)

    source: Source = of(paths, images)
    few = read_examples(paths[:16], body=body.hash)
    known = few if few.has_pose is None else few[few.has_pose]
    if not len(known):
        raise ShardError(f"no example of {paths[0]} and the next shards knows its pose: add data with true poses")
    validation = read_examples(held_out[:4], images=images, body=body.hash)[: data.validation] if held_out else None
    if validation is None:
        logger.warning("fewer than ten shards: none is held out for validation; give data.validation_shards")
    return Material(source, known.pose6d[:16384], lambda: known.rotations, _split(validation, 64 if images else 256))


class _MainProcessFirst:
    """Has the first of several processes make what is kept in files; the others wait for it and read."""

    def __init__(self, out: Path, config: TrainConfig, body: Body) -> None:
        made_of = f"{config.data}/{config.engine.seed}/{body.hash}"
        self.token = hashlib.sha256(made_of.encode()).hexdigest()
        self.path = out / "prepared.txt"
        # Lightning's own launcher sets the rank of a second machine only when the trainer begins.
        self.main = not rank_zero_only.rank and os.environ.get("NODE_RANK", "0") == "0"

    def __enter__(self) -> None:
        start = time.monotonic()
        while not self.main and not (self.path.is_file() and self.path.read_text() == self.token):
            if time.monotonic() - start > 4 * 3600:
                raise TimeoutError(f"the first process has not finished {self.path} in four hours: look at its output")
            time.sleep(0.5)

    def __exit__(self, *error: Any) -> None:
        if self.main and error[0] is None:
            self.path.write_text(self.token)


def _test(bundle: Bundle, out: Path, body: Body, config: TrainConfig) -> dict[str, Any]:
    """Errors on the test takes in mm, for the bundle's card; empty where no take was held out."""
    metrics: dict[str, Any] = {}
    paths = [Path(path) for path in config.data.mocap]
    for occlusion in ("none", "biggs"):
        try:
            data = make_set(paths, config.data.test, 0, occlusion, body, split="test", cache=out / "mocap.npz")
        except MocapError:
            return metrics
        modes = bundle.num_modes
        result = evaluate(data, bundle, counts=(modes, 25), progress=config.engine.progress)
        kept = {"count": result["count"], "mode": result["mode"], "min_of_25": result["min_of"]["25"]}
        quantised = {f"quantised_{modes}": result["quantised"][str(modes)]}
        metrics[occlusion] = {**kept, **quantised, "nll": result["nll"]}
    return metrics


def _card(config: TrainConfig, mocap: Mocap | None) -> dict[str, Any]:
    """What the bundle's card tells about data and training."""
    steps, batch, data = config.engine.steps, config.optimiser.batch, config.data
    training: dict[str, Any] = {"steps": steps, "batch": batch, "examples": steps * batch}
    training |= {"configuration": config.name, "noise": config.losses.noise, "seed": config.engine.seed}
    sources = []
    if mocap is not None:
        sources.append("motion capture, retargeted and widened; synthetic cameras, occlusion and detector noise")
        training |= {"takes": len(mocap.takes), "pool": data.pool, "detectors": list(data.detectors)}
        training["frames"] = {name: int((mocap.split == k).sum()) for k, name in enumerate(SPLITS)}
    if data.shards:
        sources.append("shards of rendered or annotated people")
    licence = "Apache-2.0; made from the motion capture and the body that NOTICE names"
    return {"licence": licence, "training": {"data": " and ".join(sources), **training}}


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="hmr-prob train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(config_names())
    parser.add_argument("method", nargs="?", default="", metavar="METHOD", help=f"one of {names} (default: joint)")
    parser.add_argument(
        "--mocap",
        nargs="+",
        metavar="PATH",
        help="motion capture: folders or files, index.json with archives, .bvh, .amc, AMASS .npz",
    )
    parser.add_argument("--data", nargs="+", metavar="SHARDS", help="shards of `hmr-prob make-shards`, folders too")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the run; call again to go on")
    parser.add_argument("--config", type=Path, metavar="FILE", help="yaml with settings, as DIR/config.yaml of a run")
    parser.add_argument("--steps", type=int, help="short for --set engine.steps=N")
    parser.add_argument("--body", type=Path, metavar="FILE", help="a licensed SMPL file instead of the free body")
    parser.add_argument(
        "--set", nargs="*", default=[], action="extend", metavar="NAME=VALUE", help="settings, e.g. losses.mmd=0.05"
    )
    options = parser.parse_args(arguments)
    settings = [] if options.steps is None else [f"engine.steps={options.steps}"]
    config = load_config(options.method, options.config, [*settings, *options.set])
    given = {name: tuple(map(str, v)) for name, v in (("mocap", options.mocap), ("shards", options.data)) if v}
    made = train(replace(config, data=replace(config.data, **given)), options.out, options.body)
    if not rank_zero_only.rank:
        print(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
