"""Trains every method on the same keypoint data for the same budget and writes the table: one command.

    python benchmarks/methods/run.py --mocap DIR --out runs/methods

Motion capture becomes a fixed set of synthetic views that all methods see in the same order; takes that no method saw
give a clean and an ambiguous test set (Biggs' occlusions), and rendered people for the losses on pictures. Each row and
seed is a job of one thread in a folder of its own; ``--jobs`` run side by side, finished ones are not done again, a
killed one goes on. ``table.md``, ``table.csv`` and the plots are written at the end, or by ``report.py`` at any time.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import report
from rows import ROWS, select


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mocap", type=Path, nargs="+", required=True, help="motion capture, as for `hmr-prob train`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bench; call again to go on")
    parser.add_argument("--rows", nargs="*", default=[], metavar="ROW", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of training, of every row (default: 2000)")
    parser.add_argument("--pool", type=int, default=200_000, help="poses that the views are of (default: 200000)")
    parser.add_argument("--examples", type=int, default=300_000, help="synthetic views (default: 300000)")
    parser.add_argument("--test", type=int, default=1000, help="examples of each test set (default: 1000)")
    parser.add_argument("--shards", type=Path, help="rendered people: folder with train/ and test/ (default: made)")
    parser.add_argument("--people", type=int, default=6000, help="rendered people to make (default: 6000)")
    parser.add_argument("--weights", type=Path, help="of the detector that sees rendered people, TinyPose")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (default: 2)")
    parser.add_argument("--gpu", action="store_true", help="wide networks and batches on a GPU, one job at a time")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # ROW:SEED, what a process of the bench does
    return parser


def _job(options: argparse.Namespace, arguments: list[str], name: str) -> float:
    """One job in a process of its own; returns its seconds.

    Raises:
        RuntimeError: it failed; the text holds the end of its log.
    """
    folder = options.out / "jobs" / name.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.time()
    with open(folder / "log.txt", "a") as log:
        command = [sys.executable, __file__, *arguments, "--job", name]
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    if code:
        tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-15:]
        raise RuntimeError("\n".join([f"{name} ended with {code}, see {folder / 'log.txt'}:", *tail]))
    return time.time() - began


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's text."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.job:
        from job import run_job

        run_job(options)
        return 0
    try:
        rows = select(options.rows)
    except ValueError as error:
        parser.error(str(error))
    from job import prepare, time_rows

    try:
        prepare(options, pictures=any(row.shards for row in rows))
    except ValueError as error:
        parser.error(str(error))
    # Rows that evaluate another row's model come after it.
    stages = [[row for row in rows if not row.of], [row for row in rows if row.of]]
    failed = []
    with (
        tqdm(total=options.seeds * len(rows), desc="jobs", unit="job") as bar,
        ThreadPoolExecutor(1 if options.gpu else options.jobs) as pool,
    ):
        for stage in stages:
            # Seed by seed, so that a bench that is stopped has whole tables.
            names = [f"{row.name}:{seed}" for seed in range(options.seeds) for row in stage]
            running = {pool.submit(_job, options, arguments, name): name for name in names}
            for done in as_completed(running):
                bar.update()
                try:
                    bar.set_postfix_str(f"{running[done]} {done.result():.0f} s")
                except RuntimeError as error:
                    failed.append(running[done])
                    tqdm.write(str(error), file=sys.stderr)
    time_rows(options, rows)
    report.write(options.out)
    print((options.out / "table.md").read_text())
    if failed:
        print(f"failed: {', '.join(failed)}; call again to go on with them", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
