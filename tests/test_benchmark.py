"""The bench of methods, as a user runs it: a few steps of a few rows end in the tables, the plots and the csv."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("torch", reason="the training half needs the [train] extra")

SCRIPT = ROOT / "benchmarks" / "methods" / "run.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=900
    )


@pytest.mark.slow
def test_rows_become_tables(test_data: Path, tmp_path: Path) -> None:
    small = ["--pool", "2000", "--examples", "2000", "--test", "16", "--steps", "3", "--seeds", "2"]
    arguments = ["--mocap", str(test_data / "mocap"), "--out", str(tmp_path / "bench"), *small]
    rows = ["regressor", "multi_head", "joint", "joint_draws", "gaussian", "random"]
    done = _run(*arguments, "--rows", *rows)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "bench" / "table.md").read_text()
    assert done.stdout.strip() == table.strip()
    assert "| Joint posterior with learned modes (ours) |" in table
    for test in ("clean", "ambiguous"):
        assert (tmp_path / "bench" / f"error_over_n_{test}.png").stat().st_size > 10_000
    with open(tmp_path / "bench" / "table.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {line["row"] for line in lines} == set(rows)
    # The figures of the table are means of the csv's.
    picked = [
        float(line["value"]) for line in lines if (line["row"], line["figure"]) == ("joint", "clean.min_of.10.pa_mpjpe")
    ]
    assert len(picked) == 2
    assert f"{sum(picked) / 2:.1f} ± " in table
    single = json.loads((tmp_path / "bench" / "jobs" / "regressor-0" / "result.json").read_text())
    assert single["clean"]["heads"] == 1
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "bench" / "jobs").glob("*/result.json")}
    assert _run(*arguments, "--rows", *rows).returncode == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}  # nothing was done again


def test_an_unknown_row_is_named() -> None:
    done = _run("--mocap", "nowhere", "--out", "nowhere", "--rows", "magic")
    assert done.returncode == 2
    assert "there is no row magic: choose among regressor" in done.stderr
