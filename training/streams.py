"""Where batches come from. Batch k of a source is a pure function of (seed, k): a training that was stopped goes on
with the very batches that it would have seen, and every process of a parallel training takes its part of the same one.

    source = MocapSource(poses, synthesizer, batch=512, seed=0)
    source.batch(7)                      # Examples, always the same
    source.batch(7, rank=1, ranks=2)     # their second half
    DataLoader(Stream(source, start=7), batch_size=None)
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "FixedSource",
    "MixedSource",
    "MocapSource",
    "ShardSource",
    "Source",
    "Stream",
    "check_examples",
    "fixed_examples",
    "key",
]

import dataclasses
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from .body import TorchBody
from .data.examples import Examples
from .data.synthesize import Synthesizer
from .rotations import matrix_to_rotation6d, rotation6d_to_matrix

PIECE = 128
"""Examples of a batch that are synthesised together."""


class DataError(ValueError):
    """Examples that cannot be trained on; the text names the field and the mend."""


class Source(Protocol):
    """Batches by their number."""

    size: int
    """Examples in a batch, all processes together."""

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Examples:
        """Process ``rank``'s part of batch number ``step``."""
        ...


def key(*numbers: int) -> int:
    """A seed of several numbers; close ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def part(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last but one row of a process's part of ``size`` rows."""
    return size * rank // ranks, size * (rank + 1) // ranks


def check_examples(examples: Examples, where: str) -> None:
    """Raise DataError where a number is NaN or infinite; pictures are bytes and cannot be."""
    for f in dataclasses.fields(examples):
        value = getattr(examples, f.name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or f.name == "image":
            continue
        if not torch.isfinite(value.sum()):  # cheaper than looking at each, and enough to know whether to look
            bad = (~torch.isfinite(value)).flatten(1).any(1).nonzero()
            if len(bad):
                raise DataError(
                    f"{where}: {f.name} of example {int(bad[0])} ({len(bad)} of {len(examples)}) is NaN or infinite: "
                    "mend the data; what is unknown must be zero, with has_pose, has_betas, has_joints or "
                    "has_translation false"
                )


class MocapSource:
    """Synthetic views of poses from a pool.

    Args:
        poses: (T, 24, 3) axis-angle.
        synthesizer: makes examples of them; it is seeded anew for each piece of a batch.
        batch: examples a batch, exactly; more poses are drawn to make up for those without a usable picture.
        seed: of the draw.
        occlusion: as the synthesizer takes it.
    """

    def __init__(
        self, poses: np.ndarray, synthesizer: Synthesizer, batch: int, seed: int = 0, occlusion: str = "mixed"
    ) -> None:
        self.poses, self.synthesizer, self.size, self.seed = poses, synthesizer, batch, seed
        self.occlusion = occlusion

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Examples:
        first, last = part(self.size, rank, ranks)
        pieces = []
        for number in range(first // PIECE, -(-last // PIECE)):
            start, end = number * PIECE, min((number + 1) * PIECE, self.size)
            piece = self._piece(end - start, key(self.seed, step, number))
            pieces.append(piece[max(first - start, 0) : last - start])
        return pieces[0] if len(pieces) == 1 else Examples.cat(pieces)

    def _piece(self, count: int, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        self.synthesizer.numpy = rng
        self.synthesizer.generator.manual_seed(seed)
        parts: list[Examples] = []
        while sum(map(len, parts)) < count:
            rows = rng.integers(len(self.poses), size=int(count * 1.3) + 8)
            parts.append(self.synthesizer(self.poses[rows], self.occlusion))
        return Examples.cat(parts)[:count]


class FixedSource:
    """Examples in memory, each seen once before any is seen again."""

    def __init__(self, examples: Examples, batch: int, seed: int = 0) -> None:
        if not len(examples):
            raise DataError("there are no examples to train on: give at least one")
        self.examples, self.size, self.seed = examples, batch, seed
        self._order = lru_cache(2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Examples:
        first, last = part(self.size, rank, ranks)
        place = step * self.size + np.arange(first, last)
        epoch = place // len(self.examples)
        rows = [self._order(int(e))[place[epoch == e] % len(self.examples)] for e in np.unique(epoch)]
        return self.examples[torch.from_numpy(np.concatenate(rows))]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = lru_cache(2)(self._shuffled)


class ShardSource:
    """Examples of shards, in memory a few shards at a time.

    In each epoch the shards come in another order, and ``mix`` neighbours are shuffled together.

    Args:
        paths: files and folders.
        batch: examples in a batch.
        images: decode the pictures.
        body: hash that the shards' body must have.

    Raises:
        ShardError: a shard is missing, empty, broken, or was made with another body.
    """

    def __init__(
        self, paths: Sequence[str | Path], batch: int, seed: int = 0, images: bool = False, body: str = "", mix: int = 4
    ) -> None:
        from .data.shards import Shard, ShardError, shard_paths

        self.paths, self.size, self.seed, self.images, self.mix = shard_paths(paths), batch, seed, images, mix
        counts = []
        for path in tqdm(self.paths, desc="checking shards", unit="shard", disable=len(self.paths) < 20):
            shard = Shard.load(path)
            if body and shard.body != body:
                raise ShardError(
                    f"{path} was made with the body {shard.body[:12]}, this training has {body[:12]}: give that body's "
                    "file with --body, or make the shards again"
                )
            if images and shard.jpeg is None:
                shard.pictures()  # which says what is missing
            counts.append(len(shard))
        self.counts = np.array(counts)
        self._loaded: dict[int, Any] = {}

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Examples:
        first, last = part(self.size, rank, ranks)
        place, parts, end = step * self.size + first, [], step * self.size + last
        while place < end:
            epoch, within = divmod(place, int(self.counts.sum()))
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.paths))
            ends = np.cumsum(self.counts[order])
            group = int(np.searchsorted(ends, within, side="right")) // self.mix
            chosen = order[group * self.mix : (group + 1) * self.mix]
            start = int(ends[group * self.mix] - self.counts[order[group * self.mix]])
            total = int(self.counts[chosen].sum())
            rows = np.random.default_rng((self.seed, epoch, group)).permutation(total)
            rows = rows[within - start :][: end - place]
            parts.append(self._rows(chosen, rows))
            place += len(rows)
        return parts[0] if len(parts) == 1 else Examples.cat(parts)

    def _rows(self, chosen: np.ndarray, rows: np.ndarray) -> Examples:
        """Rows of the chosen shards laid end to end."""
        from .data.shards import Shard

        wanted = [int(number) for number in chosen]
        self._loaded = {n: self._loaded.get(n) or Shard.load(self.paths[n]) for n in wanted}
        starts = np.cumsum([0, *self.counts[chosen]])
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        parts = []
        for i in np.unique(shard_of):
            parts.append(self._loaded[wanted[i]].examples(rows[shard_of == i] - starts[i], images=self.images))
        back = np.argsort(np.argsort(shard_of, kind="stable"))  # from sorted by shard to the order of the rows
        return Examples.cat(parts)[torch.from_numpy(back)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": {}}


class MixedSource:
    """Batches of two sources in turn, ``share`` of them from the second, spread evenly."""

    def __init__(self, first: Source, second: Source, share: float) -> None:
        self.first, self.second, self.share, self.size = first, second, share, first.size

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Examples:
        before, after = int(step * self.share), int((step + 1) * self.share)
        if after > before:
            return self.second.batch(before, rank, ranks)
        return self.first.batch(step - before, rank, ranks)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """A source's batches from number ``start`` on, without end; several workers of a loader take turns."""

    def __init__(self, source: Source, start: int = 0, rank: int = 0, ranks: int = 1) -> None:
        self.source, self.start, self.rank, self.ranks = source, start, rank, ranks

    def __iter__(self) -> Iterator[Examples]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            torch.set_num_threads(1)
        for step in itertools.count(self.start + number, workers):
            yield self.source.batch(step, self.rank, self.ranks)


_VERSION = 1
# Half precision is a few hundredths of a degree and half the size; boxes and places need more digits.
_HALF = ("keypoints", "pose6d", "betas")
_WHOLE = ("box", "translation", "intrinsics", "size")


def fixed_examples(
    path: str | Path,
    poses: np.ndarray,
    synthesizer: Synthesizer,
    count: int,
    seed: int = 0,
    occlusion: str = "mixed",
    progress: bool = True,
) -> Examples:
    """``count`` synthetic examples, made once and kept in one npz: every method trains on the same, with no worker.

    Joints and keypoints are those of the body posed by what the file holds. ``detected`` are the keypoints that the
    crop holds, in pixels; ``index`` is the row.

    Raises:
        DataError: the file is no such set.
    """
    path, body = Path(path), synthesizer.body
    made_of = f"{_VERSION}/{count}/{seed}/{occlusion}/{synthesizer.config}/{[n.name for n in synthesizer.noises]}/"
    made_of += f"{len(poses)}/{float(np.abs(poses).sum(dtype=np.float64)):.3f}/{body.body_hash}"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as data:
                if str(data["made_of"]) == made_of:
                    return _restore({name: data[name] for name in (*_HALF, *_WHOLE, "state")}, body)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no set of examples ({error}): delete it, it will be made again") from error
    source = MocapSource(poses, synthesizer, min(1024, count), seed, occlusion)
    steps = tqdm(range(-(-count // source.size)), desc="making examples", unit="batch", disable=not progress)
    made = Examples.cat([source.batch(step) for step in steps])[:count]
    arrays = {name: getattr(made, name).numpy().astype(np.float16) for name in _HALF}
    arrays |= {name: getattr(made, name).numpy() for name in _WHOLE}
    arrays["state"] = made.state.numpy().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with open(partial, "wb") as stream:
        np.savez(stream, made_of=np.asarray(made_of), **arrays)
    partial.replace(path)
    return _restore(arrays, body)


def _restore(arrays: dict[str, np.ndarray], body: TorchBody) -> Examples:
    values = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in (*_HALF, *_WHOLE)}
    rotations = rotation6d_to_matrix(values["pose6d"].unflatten(-1, (-1, 6)))
    values["pose6d"] = matrix_to_rotation6d(rotations).flatten(1)
    posed = [body(*few) for few in zip(*(v.split(4096) for v in (rotations, values["betas"], values["translation"])))]
    joints, surface = (torch.cat(column) for column in zip(*posed))
    box, keypoints, intrinsics = values["box"], values["keypoints"], values["intrinsics"]
    rays = box[:, None, :2] + keypoints[..., :2] * (box[:, None, 2:] / 2)
    pixels = rays * intrinsics[:, None, :2] + intrinsics[:, None, 2:]
    return Examples(
        rotations=rotations,
        joints=joints,
        keypoints3d=surface,
        state=torch.from_numpy(arrays["state"].astype(np.int64)),
        detected=torch.cat((pixels, keypoints[..., 2:]), dim=-1),
        index=torch.arange(len(box)),
        **values,
    )
