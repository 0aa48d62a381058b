"""The data of the bench, and one job of it: train a row with a seed, measure it, write ``result.json``; times."""

from __future__ import annotations

__all__ = ["prepare", "run_job", "time_rows"]

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rows import COMMON, GPU, ROWS, Row

from hmr_prob_ros.body import Body
from hmr_prob_ros.training.baselines import DrawsOnly, GaussianRoundMode, RandomPoses, mode_deviations
from hmr_prob_ros.training.body import TorchBody
from hmr_prob_ros.training.config import TrainConfig, load_config
from hmr_prob_ros.training.data.examples import Examples
from hmr_prob_ros.training.data.mocap import load_mocap
from hmr_prob_ros.training.data.noise import DetectorNoise
from hmr_prob_ros.training.data.shards import read_examples, shard_paths
from hmr_prob_ros.training.data.synthesize import SynthesisConfig, Synthesizer
from hmr_prob_ros.training.data.widen import load_pool
from hmr_prob_ros.training.evaluate import evaluate_model
from hmr_prob_ros.training.fitting import Material, fit
from hmr_prob_ros.training.make_shards import main as make_shards
from hmr_prob_ros.training.models import LiftingModel, load_checkpoint
from hmr_prob_ros.training.streams import FixedSource, MixedSource, ShardSource, fixed_examples

DETECTORS = ("blazepose", "tinypose")
TESTS = {"clean": "none", "ambiguous": "biggs"}
"""Test set -> occlusion of its synthetic views."""
SHARDS_SHARE = 0.25


def _data(options: argparse.Namespace, name: str) -> Examples:
    """``train``, ``validation``, ``clean`` or ``ambiguous``: made once, then read."""
    folder = options.out / "data"
    body = Body.load()
    mocap = load_mocap(options.mocap, body, folder / "mocap.npz", progress=False)
    noises = [DetectorNoise.load(detector) for detector in DETECTORS]
    if name in TESTS:
        # Only what detectors do: no perfect keypoints, no detector without feet.
        synthesizer = Synthesizer(TorchBody(body, mesh=False), noises, SynthesisConfig(clean=0.0, no_feet=0.0))
        poses, count, occlusion = mocap.select("test").pose, options.test, TESTS[name]
    else:
        synthesizer = Synthesizer(TorchBody(body, mesh=False), noises)
        train = name == "train"
        count = options.pool if train else max(options.pool // 20, 1)
        poses, _ = load_pool(folder / f"pool_{name}.npz", mocap, name, count, 0, body)
        count, occlusion = options.examples if train else options.test, "mixed"
    path = folder / f"{name}.npz"
    return fixed_examples(path, poses, synthesizer, count, 0, occlusion, progress=not path.is_file())


def _shards(options: argparse.Namespace, part: str) -> Path:
    return (options.shards or options.out / "data" / "shards") / part


def _keep_settings(options: argparse.Namespace) -> None:
    """Writes ``bench.json``; the rows of one folder must have the same budget and tests.

    Raises:
        ValueError: the folder was begun with others.
    """
    settings = {name: getattr(options, name) for name in ("seeds", "steps", "pool", "examples", "test", "gpu")}
    path = options.out / "bench.json"
    before = json.loads(path.read_text()) if path.is_file() else settings
    changed = [f"--{name} {before.get(name)}" for name in settings if before.get(name) != settings[name]]
    changed = [text for text in changed if not text.startswith("--seeds")]
    if changed:
        raise ValueError(f"{options.out} was begun with {', '.join(changed)}: ask for the same, or give another --out")
    path.write_text(json.dumps({**settings, "seeds": max(settings["seeds"], before["seeds"])}, indent=1))


def prepare(options: argparse.Namespace, pictures: bool) -> None:
    """Makes what the jobs read; nothing that is there already.

    Raises:
        ValueError: the folder holds a bench with another budget.
    """
    torch.set_num_threads(1)  # batches are small: more threads only wait for each other
    options.out.mkdir(parents=True, exist_ok=True)
    _keep_settings(options)
    for name in ("train", "validation", *TESTS):
        _data(options, name)
    if pictures and options.shards is None:
        weights = [] if options.weights is None else ["--weights", str(options.weights)]
        made_of = {
            "train": ["--pool", str(options.out / "data" / "pool_train.npz")],
            "test": ["--mocap", *map(str, options.mocap), "--split", "test"],
        }
        for (part, source), count in zip(made_of.items(), (options.people, options.test)):
            out = _shards(options, part)
            make_shards([*source, "--count", str(count), "--no-images", "--out", str(out), *weights])


def _config(options: argparse.Namespace, row: Row, seed: int) -> TrainConfig:
    settings = [*COMMON, *row.settings, f"engine.steps={options.steps}", f"engine.seed={seed}"]
    wide = [s for s in GPU if not s.startswith("model.") or row.config != "lifting"] if options.gpu else []
    return load_config(row.config, None, [*settings, *wide])


def _train(options: argparse.Namespace, row: Row, seed: int, folder: Path, train: Examples) -> LiftingModel:
    config = _config(options, row, seed)
    body = TorchBody(Body.load(), mesh=False)
    source = FixedSource(train, config.optimiser.batch, seed)
    if row.shards:
        rendered = ShardSource([_shards(options, "train")], config.optimiser.batch, seed, images=False)
        source = MixedSource(source, rendered, SHARDS_SHARE)
    # The same statistics and the same first pictures for all.
    material = Material(source, train.pose6d[:16384], lambda: train.rotations, [])
    return fit(config, material, body, folder)


def run_job(options: argparse.Namespace) -> None:
    """``options.job`` is ROW:SEED; does nothing where its result was written already."""
    name, _, number = options.job.partition(":")
    row, seed = next(row for row in ROWS if row.name == name), int(number)
    folder = options.out / "jobs" / f"{name}-{seed}"
    if (folder / "result.json").is_file():
        return
    torch.set_num_threads(1)
    train = _data(options, "train")
    whole = not (folder / "checkpoints").exists()
    began = time.process_time()
    if row.of:
        model, _ = load_checkpoint(options.out / "jobs" / f"{row.of}-{seed}" / "model.pt", _body())
        model = _wrapped(row, model, train, _data(options, "validation"))
    else:
        model = _train(options, row, seed, folder, train)
    result = {"row": name, "title": row.title, "group": row.group, "of": row.of, "seed": seed}
    # A job that was killed and went on does not know what it took before.
    result["cpu_seconds"] = round(time.process_time() - began, 1) if whole else None
    result["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    began = time.process_time()
    for test in TESTS:
        data = _data(options, test)
        result[test] = evaluate_model(model, data, joint_set=row.joint_set, timing=False, progress=False)
        if row.config == "multi_head":  # as Biggs' code: head 0 kept, the others clustered
            kept = evaluate_model(model, data, (5, 10), keep_first=True, timing=False, progress=False)
            result[test] |= {f"{kind}_kept": kept[kind] for kind in ("quantised", "quantised_uniform")}
    if row.shards:
        pictured = read_examples(shard_paths([_shards(options, "test")]), images=False)[: options.test]
        result["rendered"] = evaluate_model(model, pictured, (1, 100), quantised=False, timing=False, progress=False)
    result["evaluation_seconds"] = round(time.process_time() - began, 1)
    partial = folder / "result.json.part"
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(folder / "result.json")


def time_rows(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """``times.json``: row -> milliseconds for one image, one after the other, when no job takes the cores."""
    path = options.out / "times.json"
    times = json.loads(path.read_text()) if path.is_file() else {}
    one = _data(options, "clean")[:1]
    for row in (row for row in rows if row.wrap in ("", "draws")):
        checkpoint = options.out / "jobs" / f"{row.of or row.name}-0" / "model.pt"
        if checkpoint.is_file():
            model, _ = load_checkpoint(checkpoint, _body())
            model = _wrapped(row, model, one, one)
            measured = evaluate_model(model, one, (1,), row.joint_set, quantised=False, progress=False)["ms"]
            times[row.name] = max(measured.values())
    path.write_text(json.dumps(times, indent=1))


def _body() -> TorchBody:
    return TorchBody(Body.load(), mesh=False)


def _wrapped(row: Row, model: LiftingModel, train: Examples, validation: Examples) -> torch.nn.Module:
    """The model itself, or a baseline that stands on its single answer."""
    if row.wrap == "draws":
        return DrawsOnly(model)
    if row.wrap == "random":
        return RandomPoses(model, train.pose6d)
    if row.wrap == "gaussian":
        return GaussianRoundMode(model, mode_deviations(model, [validation]))
    return model
