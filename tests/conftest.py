"""Shared fixtures: the test data beside the project, and the default body."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from hmr_prob_ros.body import Body

# Before any test imports Lightning, which imports torchvision, which may need mending.
with contextlib.suppress(ImportError):
    import hmr_prob_ros.training  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with motion capture, detector weights and real clips (``HMR_PROB_TEST_DATA``); skips where absent."""
    folder = Path(os.environ.get("HMR_PROB_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set HMR_PROB_TEST_DATA to the folder with mocap/, models/ and real/")
    return folder


@pytest.fixture(scope="session")
def body() -> Body:
    """The default body."""
    return Body.load()


@pytest.fixture(scope="session")
def rest(body: Body) -> np.ndarray:
    """(24, 3) rest joints of its mean shape, metres."""
    return body.rest_joints(np.zeros(10)).astype(np.float64)
