"""Shared fixtures: the test data beside the project, and the default body."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hmr_prob_ros.body import Body

if TYPE_CHECKING:
    from hmr_prob_ros.training.body import TorchBody
    from hmr_prob_ros.training.data.examples import Examples

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: small tensors gain nothing by more."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def torch_body(body: Body) -> TorchBody:
    """The default body in torch, without its mesh."""
    from hmr_prob_ros.training.body import TorchBody

    return TorchBody(body, mesh=False)


@pytest.fixture(scope="session")
def examples(torch_body: TorchBody, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Two hundred synthetic examples of random poses, seen with BlazePose's noise."""
    from hmr_prob_ros.training.data.noise import DetectorNoise
    from hmr_prob_ros.training.data.synthesize import Synthesizer
    from hmr_prob_ros.training.streams import fixed_examples

    poses = 0.2 * np.random.default_rng(0).standard_normal((300, 24, 3)).astype(np.float32)
    synthesizer = Synthesizer(torch_body, [DetectorNoise.load("blazepose")])
    return fixed_examples(tmp_path_factory.mktemp("data") / "set.npz", poses, synthesizer, 200, progress=False)
