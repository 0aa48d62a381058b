"""``hmr-prob make-shards``: training examples that a real 2D detector has looked at, in files of a few hundred.

    hmr-prob make-shards --mocap DIR --weights tinypose_256x192.onnx --count 10000 --out shards/train
    hmr-prob make-shards --annotations FILE --images DIR --detector vitpose --out shards/3dpw

The first renders posed, dressed people; the second takes the labelled people of a data set. A shard depends only on the
settings, the seed and its own number, so that any scheduler may make them side by side (``--shards 0-9`` here,
``--shards 10-19`` there). What is there already is not made again.
"""

from __future__ import annotations

__all__ = ["Settings", "main", "make_shard", "shard_name"]

import argparse
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from hmr_prob_ros.arguments import CommandError, natural, positive
from hmr_prob_ros.body import Body, BodyError

from .data.annotations import AnnotationError
from .data.heatmap_detectors import HEATMAP_DETECTORS, HeatmapDetector, make_heatmap_detector
from .data.heatmaps import HeatmapError
from .data.mocap import SPLITS, load_mocap
from .data.render import Renderer, RenderError
from .data.rendered import OCCLUSIONS, RENDER_SIZE, People, choose_kind, render_person
from .data.retarget import MocapError
from .data.rooms import load_backgrounds
from .data.shard_sheet import shard_sheet
from .data.shards import Shard, ShardError
from .data.sights import observe
from .data.widen import KINDS, load_pool

_TRIES = 300  # pictures of one person before it is given up

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What decides a shard's content; kept in the shard as its note.

    Attributes:
        source: what the people come from, without paths.
        detector: name of the 2D detector.
        seed: of everything.
        images: pictures are stored.
        rows: people in the shard before those that nobody can make out are left out.
    """

    source: str
    detector: str
    seed: int
    images: bool
    rows: int

    @property
    def note(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard_{number:05d}.npz"


def make_shard(
    path: Path, number: int, settings: Settings, body: str, make: Callable[[int, int], Row | None], bar: Any = None
) -> Shard | None:
    """One shard, made where it is not there yet; None if it was.

    Args:
        path: its file.
        number: of the shard.
        settings: see :class:`Settings`.
        body: hash of the body.
        make: gives row ``r`` of shard ``n``, or None.
        bar: progress, one step a row.

    Raises:
        ShardError: the file holds a shard of other settings, or no row can be made.
    """
    if path.is_file():
        try:
            there = Shard.load(path)
        except ShardError:
            there = None  # half written by another program, or of another version
        if there is not None:
            if there.note != settings.note or there.body != body:
                raise ShardError(
                    f"{path} was made with other settings ({there.note}, body {there.body[:12]}) than "
                    f"{settings.note}, body {body[:12]}: give another --out, or delete it"
                )
            if bar is not None:
                bar.update(settings.rows)
            return None
    rows = []
    for r in range(settings.rows):
        row = make(number, r)
        if row is not None:
            rows.append(row)
        if bar is not None:
            bar.update()
    shard = Shard.from_rows(rows, body, settings.note, str(path))
    shard.save(path)
    return shard


def _render(arguments: argparse.Namespace, detector: HeatmapDetector, body: Body) -> tuple[str, int, Any]:
    """Source, number of people, and what opens a maker of rows, for rendered people."""
    pictures = load_backgrounds(arguments.pictures) if arguments.pictures else []
    if arguments.pool:
        pose, kind = load_pool(arguments.pool)
        people = People(pose, kind, KINDS, pictures)
    else:
        mocap = load_mocap(arguments.mocap, body, arguments.cache, progress=not arguments.quiet)
        mocap = mocap.select(arguments.split)
        people = People(mocap.pose, mocap.take, mocap.takes, pictures)
    if not len(people.pose):
        raise MocapError(f"the motion capture has no frames in the split {arguments.split!r}: choose another --split")
    occlusion = arguments.occlusion or "mixed"
    look = sum(int(p.astype(np.int64).sum()) for p in pictures)
    source = (
        f"rendered {'pool' if arguments.pool else arguments.split} {occlusion}, {len(people.pose)} poses "
        f"{float(np.abs(people.pose).sum(dtype=np.float64)):.2f}, {len(pictures)} pictures {look}"
    )

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[int, int], Row | None]]:
        with Renderer(RENDER_SIZE, RENDER_SIZE, body) as renderer:

            def make(number: int, r: int) -> Row:
                kind = choose_kind(occlusion, np.random.default_rng([arguments.seed, number, r, 0]))
                for attempt in range(1, _TRIES + 1):
                    rng = np.random.default_rng([arguments.seed, number, r, attempt])
                    sight = render_person(rng, people, renderer, kind)
                    row = None if sight is None else observe(sight, detector, rng, not arguments.no_images)
                    if row is not None:
                        return row
                raise ShardError(
                    f"no usable picture of person {r} of shard {number} in {_TRIES} tries: "
                    "is the motion capture in metres with y up, and do the weights fit the detector?"
                )

            yield make

    return source, arguments.count, opened


def _annotated(arguments: argparse.Namespace, detector: HeatmapDetector, body: Body) -> tuple[str, int, Any]:
    """The same for the labelled people of a data set."""
    from .data.annotated import AnnotatedPeople

    if arguments.occlusion not in (None, "none", "biggs"):
        raise CommandError("make-shards: --annotations knows --occlusion none and biggs, the ambiguous protocol")
    hide = arguments.occlusion == "biggs"
    people = AnnotatedPeople(arguments.annotations, arguments.images, body, arguments.masks, hide, arguments.seed)
    count = len(people) if arguments.count is None else min(arguments.count, len(people))
    order = np.random.default_rng(arguments.seed).permutation(len(people))[:count]

    def make(number: int, r: int) -> Row | None:
        rng = np.random.default_rng([arguments.seed, number, r])
        sight = people.sight(int(order[number * arguments.shard_size + r]))
        return None if sight is None else observe(sight, detector, rng, not arguments.no_images)

    @contextlib.contextmanager
    def opened() -> Iterator[Callable[[int, int], Row | None]]:
        yield make

    return f"annotations {people.name}, {len(people)} people", count, opened


def _numbers(text: str) -> range:
    """``3-7`` or ``3`` as an argument."""
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of shards: write 3 or 3-7")
    return range(int(first), int(last or first) + 1)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Keep torch, OpenCV and Mesa's software renderer to ``count`` threads."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    if count == 1:
        os.environ.setdefault("LP_NUM_THREADS", "0")  # draws in the calling thread
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="hmr-prob make-shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--mocap", nargs="+", type=Path, metavar="PATH", help="render people: motion capture files")
    source.add_argument("--pool", type=Path, metavar="POOL.NPZ", help="render people: a pool of poses that train made")
    source.add_argument("--annotations", type=Path, metavar="FILE", help="labelled people of a data set")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    made.add_argument("--count", type=positive, metavar="N", help="people (default with --annotations: all)")
    made.add_argument("--shard-size", type=positive, default=500, metavar="K", help="people a shard (default: 500)")
    made.add_argument("--shards", type=_numbers, metavar="A-B", help="make only these numbers, for parallel work")
    made.add_argument("--seed", type=natural, default=0, metavar="S")
    made.add_argument("--split", choices=SPLITS, default="train", help="takes to render (default: train)")
    made.add_argument("--occlusion", choices=OCCLUSIONS, help="what hides people (default: mixed, or none)")
    made.add_argument("--pictures", type=Path, metavar="DIR", help="backgrounds and textures for the rooms")
    made.add_argument("--cache", type=Path, metavar="FILE.NPZ", help="keeps the motion capture for the next time")
    made.add_argument("--images", type=Path, metavar="DIR", help="pictures of the data set")
    made.add_argument("--masks", type=Path, metavar="DIR", help="its person masks, named as the pictures, .png")
    made.add_argument("--detector", choices=(*HEATMAP_DETECTORS, "mediapipe"), default="tinypose")
    made.add_argument("--weights", metavar="FILE", help="of the detector; for vitpose a folder or a name on the hub")
    made.add_argument("--body", type=Path, metavar="FILE", help="a licensed SMPL file instead of the free body")
    made.add_argument("--no-images", action="store_true", help="keypoints, heatmap samples and masks only")
    made.add_argument("--threads", type=positive, default=1, help="of one process (default: 1)")
    made.add_argument("--sheet", type=Path, metavar="FILE.PNG", help="draw some examples of the first shard")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's text.

    Raises:
        CommandError: what was asked cannot be done; the text names the mend.
    """
    options = parser().parse_args(arguments)
    if options.annotations is None and options.count is None:
        raise CommandError("make-shards: rendering needs --count, the number of people")
    if options.annotations is not None and options.images is None:
        raise CommandError("make-shards: --annotations needs --images, the folder of the data set's pictures")
    try:
        with _threads(options.threads):
            _make(options)
    except (ShardError, HeatmapError, AnnotationError, MocapError, RenderError, BodyError, OSError) as error:
        raise CommandError(f"make-shards: {error}") from error
    return 0


def _make(options: argparse.Namespace) -> None:
    detector = make_heatmap_detector(options.detector, options.weights, threads=options.threads)
    body = Body.load(options.body)
    source, count, opened = (_annotated if options.annotations else _render)(options, detector, body)
    total = -(-count // options.shard_size)
    numbers = options.shards if options.shards is not None else range(total)
    if not numbers or numbers[-1] >= total:
        raise ShardError(f"there are shards 0 to {total - 1} of {count} people, not {numbers[-1]}: lower --shards")
    sizes = {n: min(options.shard_size, count - n * options.shard_size) for n in numbers}
    kept = 0
    with opened() as make, tqdm(total=sum(sizes.values()), desc="make-shards", unit="person",
                                disable=options.quiet, mininterval=2) as bar:  # fmt: skip
        for number, rows in sizes.items():
            settings = Settings(source, options.detector, options.seed, not options.no_images, rows)
            path = options.out / shard_name(number)
            made = make_shard(path, number, settings, body.hash, make, bar)
            kept += rows if made is None else len(made)
    if options.sheet:
        sheet = shard_sheet(Shard.load(options.out / shard_name(numbers[0])))
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(options.sheet), sheet[..., ::-1]):
            raise ShardError(f"cannot write {options.sheet}: give a .png file")
    print(f"{options.out}: {len(sizes)} shards, {kept} people")


if __name__ == "__main__":
    raise SystemExit(main())
