"""Motion capture as training poses: read archives, folders or single files, retarget, resample, split, cache.

from hmr_prob_ros.body import Body
from hmr_prob_ros.training.data.mocap import load_mocap

mocap = load_mocap(["path/to/mocap"], Body.load(), cache="mocap.npz")
test = mocap.select("test")          # whole takes, never frames of a take that trains
"""

from __future__ import annotations

__all__ = ["SPLITS", "Mocap", "assign_splits", "load_mocap"]

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .archives import Item, collect
from .limits import mend, plausible
from .retarget import MocapError, Motion, resample, retarget

SPLITS: tuple[str, ...] = ("train", "validation", "test")
_VERSION = 5  # of the cache: raise it whenever reading or retargeting gives other numbers
_SHARES = (0.8, 0.1, 0.1)


@dataclass
class Mocap:
    """Poses of all takes, one after another.

    `pose` (T, 24, 3) float32 axis-angle local to the parent, root = body to world (y up); `trans` (T, 3) float32
    metres; `take` (T,) index to `takes`; `clip` (T,) index to `clips` (a take may have several recordings); `source`
    (T,) index to `sources`; `split` (T,) uint8 index to `SPLITS`; `fps` frames per second. Frames of a clip
    stand in order of time, without those that were left out as glitches.
    """

    pose: np.ndarray
    trans: np.ndarray
    take: np.ndarray
    takes: list[str]
    clip: np.ndarray
    clips: list[str]
    source: np.ndarray
    sources: list[str]
    split: np.ndarray
    fps: float

    def __len__(self) -> int:
        return len(self.pose)

    def select(self, split: str | int) -> Mocap:
        """The frames of one split, by name or index; the lists of names stay whole. Raises `ValueError` if unknown."""
        if isinstance(split, str) and split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        keep = self.split == (SPLITS.index(split) if isinstance(split, str) else split)
        arrays = {k: getattr(self, k)[keep] for k in ("pose", "trans", "take", "clip", "source", "split")}
        return replace(self, **arrays)

    def summary(self) -> str:
        """Frames and takes per source and split, as a table of text."""
        lines = [f"{'source':<24}{'frames':>9}" + "".join(f"{name:>18}" for name in SPLITS)]
        for k, name in [*enumerate(self.sources), (-1, "all")]:
            rows = np.ones(len(self), dtype=bool) if k < 0 else self.source == k
            cells = []
            for s in range(len(SPLITS)):
                part = rows & (self.split == s)
                cells.append(f"{f'{part.sum()} in {len(np.unique(self.take[part]))}':>18}")
            lines.append(f"{name:<24}{rows.sum():>9}" + "".join(cells))
        return "\n".join(lines)

    def save(self, path: str | Path, key: str = "") -> None:
        """Write the npz cache; `key` identifies what it was made from."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        arrays = {k: np.asarray(getattr(self, k)) for k in self.__dataclass_fields__}
        with open(path, "wb") as stream:
            np.savez(stream, key=np.asarray(key), **arrays)

    @staticmethod
    def load(path: str | Path) -> tuple[Mocap, str]:
        """Read a cache and its key. Raises `MocapError` where it is not one."""
        try:
            with np.load(path, allow_pickle=False) as data:
                values: dict[str, Any] = {k: data[k] for k in data.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise MocapError(f"{path} is not a motion cache ({error}): delete it, it will be made again") from error
        missing = [k for k in Mocap.__dataclass_fields__ if k not in values]
        if missing:
            raise MocapError(f"{path} lacks {', '.join(missing)}: delete it, it will be made again")
        key = str(values.pop("key", ""))
        for name in ("takes", "clips", "sources"):
            values[name] = [str(v) for v in values[name]]
        values["fps"] = float(values["fps"])
        return Mocap(**values), key


def assign_splits(
    frames: dict[str, int], strata: dict[str, str], about: dict[str, str], seed: int = 0
) -> dict[str, int]:
    """Split index of each take: about 80 / 10 / 10 by frames within each stratum, kinds of motion spread over all.

    `frames`, `strata` and `about` map takes to their size, source and description. Deterministic: takes are drawn in
    the order of a hash of seed and name, those of a kind not yet in the split first. No split takes more than a
    fifth of a stratum's takes; strata of under 3 takes train.
    """

    def order(take: str) -> str:
        return hashlib.sha256(f"{seed}/{take}".encode()).hexdigest()

    out = dict.fromkeys(frames, 0)
    for stratum in sorted(set(strata.values())):
        takes = sorted((t for t in frames if strata[t] == stratum), key=order)
        total = sum(frames[t] for t in takes)
        if len(takes) < 3:
            continue
        for split in (2, 1):
            target, have, count = _SHARES[split] * total, 0, 0
            kinds: dict[str, int] = {}
            while have < 0.9 * target and count < max(1, len(takes) // 5):
                # A take may overshoot the target, but not by much unless the split is still empty.
                free = [t for t in takes if out[t] == 0]
                fit = [t for t in free if have + frames[t] <= 1.35 * target]
                if not fit and have == 0 and len(free) > 1:
                    fit = sorted(free, key=lambda t: frames[t])[:1]
                if not fit:
                    break
                # Many short takes show more kinds of motion than one long one.
                pick = min(fit, key=lambda t: (kinds.get(_kind(about[t]), 0), frames[t] > 0.4 * target, order(t)))
                out[pick] = split
                have, count = have + frames[pick], count + 1
                kinds[_kind(about[pick])] = kinds.get(_kind(about[pick]), 0) + 1
    return out


def _kind(description: str) -> str:
    return " ".join(description.lower().replace(",", " ").split()[:1])


def _key(items: Sequence[Item], rest: np.ndarray, fps: float, seed: int) -> str:
    digest = hashlib.sha256(f"{_VERSION}/{fps}/{seed}".encode())
    digest.update(np.round(rest, 6).astype("<f4").tobytes())
    for item in items:
        digest.update(item.stamp.encode())
    return digest.hexdigest()


def load_mocap(
    paths: Sequence[str | Path],
    body: Any,
    cache: str | Path | None = None,
    fps: float = 30.0,
    seed: int = 0,
    progress: bool = True,
) -> Mocap:
    """All motions under `paths`, retargeted to `body`, at `fps`, split by take; kept in `cache` (npz) for next time.

    A path is a folder with an `index.json` and its archives (packed or not), one such archive, a folder of files, or a
    single .bvh, .amc (with its .asf) or AMASS .npz. `body` is a `Body` or its rest joints (24, 3).
    Left out: frames at steps the index calls suspect, and frames that no body can take (joints bent backwards).
    A cache made from other files, another body or another rate is made again. Raises `MocapError`.
    """
    rest = np.asarray(body if isinstance(body, np.ndarray) else body.rest_joints(np.zeros(10)), dtype=np.float64)
    items = collect(paths)
    key = _key(items, rest, fps, seed)
    if cache is not None and Path(cache).is_file():
        cached, found = Mocap.load(cache)
        if found == key:
            return cached
    parts: list[tuple[Item, Motion]] = []
    for item in tqdm(items, desc="reading motions", unit="take", disable=not progress):
        got = item.read()
        motion = got if isinstance(got, Motion) else retarget(got, rest)
        keep = np.ones(len(motion.pose), dtype=bool)
        for step in item.glitches:
            keep[max(step - 1, 0) : step + 3] = False
        motion = replace(motion, pose=mend(motion.pose))
        if abs(motion.fps - fps) > 0.02 * fps:
            bad, length = np.flatnonzero(~keep) / motion.fps, 1.0 / motion.fps
            motion = resample(motion, fps)
            # A frame is kept if no bad one lies within a source frame of it.
            gap = np.abs(np.arange(len(motion.pose))[:, None] / fps - bad[None]).min(axis=1, initial=np.inf)
            keep = gap >= (1.0 - 1e-3) * length
        keep &= plausible(motion.pose)
        parts.append((item, replace(motion, pose=motion.pose[keep], trans=motion.trans[keep])))
    takes = sorted({item.take for item, _ in parts})
    sources = sorted({item.source for item, _ in parts})
    sizes = dict.fromkeys(takes, 0)
    strata: dict[str, str] = {}
    about: dict[str, str] = {}
    for item, motion in parts:
        sizes[item.take] += len(motion.pose)
        strata.setdefault(item.take, item.source)
        about.setdefault(item.take, item.about)
    split = assign_splits(sizes, strata, about, seed)
    lengths = [len(motion.pose) for _, motion in parts]

    def column(values: list[int], kind: str) -> np.ndarray:
        return np.repeat(np.asarray(values, dtype=kind), lengths)

    mocap = Mocap(
        pose=np.concatenate([m.pose for _, m in parts]).astype(np.float32),
        trans=np.concatenate([m.trans for _, m in parts]).astype(np.float32),
        take=column([takes.index(i.take) for i, _ in parts], "int32"),
        takes=takes,
        clip=column(list(range(len(parts))), "int32"),
        clips=[i.name for i, _ in parts],
        source=column([sources.index(i.source) for i, _ in parts], "int16"),
        sources=sources,
        split=column([split[i.take] for i, _ in parts], "uint8"),
        fps=float(fps),
    )
    if cache is not None:
        mocap.save(cache, key)
    return mocap
