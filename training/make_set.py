"""Evaluation sets from motion capture: held-out poses before random cameras, as a detector would report them."""

from __future__ import annotations

__all__ = ["make_set"]

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hmr_prob_ros.body import Body
from hmr_prob_ros.setfile import PoseSet

from .body import TorchBody
from .data.mocap import SPLITS, Mocap, load_mocap
from .data.noise import DetectorNoise
from .data.retarget import MocapError
from .data.synthesize import Examples, SynthesisConfig, Synthesizer
from .data.widen import mirror

logger = logging.getLogger(__name__)

BATCH = 256
_TRIES = 40  # batches in a row without a usable example before it is given up


def make_set(
    paths: Sequence[str | Path],
    count: int,
    seed: int = 0,
    occlusion: str = "none",
    body: Body | str | Path | None = None,
    noise: str | Path = "blazepose",
    split: str | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> PoseSet:
    """An evaluation set of ``count`` examples.

    Frames are drawn evenly over the motion capture, half of them mirrored; each gets a heading, a shape and a camera as
    robots have them, is hidden in part by the protocol, and seen with a detector's errors. Equal arguments, equal sets.

    Args:
        paths: motion capture, see :func:`~hmr_prob_ros.training.data.mocap.load_mocap`.
        count: number of examples.
        seed: of everything that is drawn.
        occlusion: ``none``; ``biggs``: arms and head, legs, head, or nothing is hidden (shares 0.3, 0.3, 0.3, 0.1) and
            the crop follows what is left; ``truncation``: the picture is cut.
        body: body or file of one; None for the shipped one.
        noise: name or path of a detector's table, or ``none`` for true keypoints.
        split: ``train``, ``validation``, ``test`` or ``all``; None takes ``test`` where an index tells the takes, else
            ``all``.
        cache: npz file that keeps the motion capture for the next time.
        progress: show bars.

    Raises:
        MocapError: the motion capture cannot be read, or has no frames in the split.
        ValueError: unknown occlusion, split or noise table.
    """
    if occlusion not in ("none", "biggs", "truncation"):
        raise ValueError(f"unknown occlusion {occlusion!r}: use none, biggs or truncation")
    loaded = body if isinstance(body, Body) else Body.load(body)
    tables = [] if str(noise) == "none" else [DetectorNoise.load(noise)]
    mocap = _select(
        load_mocap(paths, loaded, cache, progress=progress), split or ("test" if _indexed(paths) else "all")
    )
    # Only what this detector does: no perfect keypoints, no detector without feet.
    config = SynthesisConfig(clean=0.0, no_feet=0.0)
    synthesizer = Synthesizer(TorchBody(loaded), tables, config, seed=seed)
    rng = np.random.default_rng(seed)
    parts: list[Examples] = []
    rows: list[np.ndarray] = []
    made = idle = 0
    with tqdm(total=count, desc="make-set", unit="example", disable=not progress) as bar:
        while made < count:
            drawn = rng.integers(len(mocap), size=BATCH)
            poses = mocap.pose[drawn]
            poses = np.where(rng.random((BATCH, 1, 1)) < 0.5, mirror(poses), poses)
            examples = synthesizer(poses, occlusion)[: count - made]
            idle = 0 if len(examples) else idle + 1
            if idle > _TRIES:
                raise MocapError("no pose of this motion capture gives a usable picture: is it in metres, with y up?")
            parts.append(examples)
            rows.append(drawn[examples.index.numpy()])
            made += len(examples)
            bar.update(len(examples))
    return _to_set(parts, np.concatenate(rows), mocap, loaded, f"occlusion {occlusion}, noise {noise}, seed {seed}")


def _indexed(paths: Sequence[str | Path]) -> bool:
    """Whether an index.json tells which takes there are."""
    return any(
        (Path(p) / "index.json").is_file() or Path(p).name == "index.json" or ".tar" in Path(p).name for p in paths
    )


def _select(mocap: Mocap, split: str) -> Mocap:
    chosen = mocap if split == "all" else mocap.select(split)
    if not len(chosen):
        raise MocapError(
            f"the motion capture has no frames in the split {split!r}: use --split all or one of {', '.join(SPLITS)}"
        )
    return chosen


def _to_set(parts: list[Examples], rows: np.ndarray, mocap: Mocap, body: Body, note: str) -> PoseSet:
    def gather(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name).numpy() for part in parts])

    return PoseSet(
        keypoints=gather("detected"),
        intrinsics=gather("intrinsics"),
        image_size=gather("size"),
        joints=gather("joints"),
        keypoints3d=gather("keypoints3d"),
        visible=gather("visible"),
        take=np.array([mocap.takes[mocap.take[row]] for row in rows]),
        rotations=gather("rotations"),
        betas=gather("betas"),
        translation=gather("translation"),
        body=body.hash,
        note=note,
    )
