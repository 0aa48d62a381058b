"""Sources of batches: functions of their number, whole epochs, shares, and what they refuse."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training half needs the [train] extra")
pytest.importorskip("lightning", reason="the training half needs the [train] extra")

from model_helpers import save_shards  # noqa: E402

from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.examples import Examples  # noqa: E402
from hmr_prob_ros.training.data.noise import DetectorNoise  # noqa: E402
from hmr_prob_ros.training.data.shards import ShardError  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.streams import (  # noqa: E402
    DataError,
    FixedSource,
    MixedSource,
    MocapSource,
    ShardSource,
    Stream,
    fixed_examples,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _equal(a: Examples, b: Examples) -> bool:
    return all(
        (x is None and y is None) or torch.equal(x, y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Examples))
    )


def _source(kind: str, examples: Examples, body: TorchBody, folder: Path):
    if kind == "fixed":
        return FixedSource(examples, 48, seed=3)
    if kind == "shards":
        save_shards(examples, body, folder)
        return ShardSource([folder], 48, seed=3, body=body.body_hash, mix=2)
    poses = 0.2 * np.random.default_rng(1).standard_normal((50, 24, 3)).astype(np.float32)
    mocap = MocapSource(poses, Synthesizer(body, [DetectorNoise.load("tinypose")]), 300, seed=3)
    return mocap if kind == "mocap" else MixedSource(mocap, FixedSource(examples, 300, seed=3), 0.4)


@pytest.mark.parametrize("kind", ["fixed", "shards", "mocap", "mixed"])
def test_batches_are_functions_of_their_number(kind: str, examples, torch_body, tmp_path: Path) -> None:
    """Any batch can be had again, alone, and in parts; loaders with workers keep the order."""
    source, again = (_source(kind, examples, torch_body, tmp_path) for _ in range(2))
    batches = [source.batch(step) for step in range(5)]
    assert all(len(batch) == source.size for batch in batches)
    for step in (4, 0, 3):
        assert _equal(again.batch(step), batches[step])
        assert _equal(Examples.cat([again.batch(step, rank, 3) for rank in range(3)]), batches[step])
    assert not _equal(batches[0], batches[1])
    loader = torch.utils.data.DataLoader(Stream(source, start=1), batch_size=None, num_workers=2 * (kind == "mocap"))
    for step, batch in zip((1, 2, 3, 4), loader):
        assert _equal(batch, batches[step])


@pytest.mark.parametrize("kind", ["fixed", "shards"])
def test_an_epoch_shows_every_example_once(
    kind: str, examples: Examples, torch_body: TorchBody, tmp_path: Path
) -> None:
    source = _source(kind, replace(examples, index=torch.arange(len(examples)))[:110], torch_body, tmp_path)
    seen = torch.cat([source.batch(step).index for step in range(5)])
    for epoch in (seen[:110], seen[110:220]):
        assert sorted(epoch.tolist()) == list(range(110))
    assert seen[:110].tolist() != seen[110:220].tolist()
    assert seen[:110].tolist() != list(range(110))


def test_mixture_keeps_its_share(examples: Examples) -> None:
    first, second = FixedSource(examples[:100], 10), FixedSource(examples[100:], 10)
    source = MixedSource(first, second, 0.3)
    from_second = [bool((source.batch(step).box[:1] == examples.box[100:]).all(1).any()) for step in range(20)]
    assert sum(from_second) == 6
    assert max(len(run_) for run_ in "".join("x" if s else " " for s in from_second).split()) == 1


def test_shards_of_another_body_are_refused(examples: Examples, torch_body: TorchBody, tmp_path: Path) -> None:
    save_shards(examples, torch_body, tmp_path)
    with pytest.raises(ShardError, match=r"made with the body .*--body"):
        ShardSource([tmp_path], 8, body="0" * 64)
    with pytest.raises(ShardError, match="no pictures"):
        ShardSource([tmp_path], 8, images=True)


def test_fixed_examples_are_kept(torch_body: TorchBody, examples: Examples, tmp_path: Path) -> None:
    poses = 0.2 * np.random.default_rng(0).standard_normal((30, 24, 3)).astype(np.float32)
    path = tmp_path / "set.npz"
    made = fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False)
    before = path.stat().st_mtime_ns
    assert _equal(made, fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False))
    assert path.stat().st_mtime_ns == before
    assert len(fixed_examples(path, poses, Synthesizer(torch_body), 25, progress=False)) == 25
    joints, surface = torch_body(made.rotations, made.betas, made.translation)
    torch.testing.assert_close(made.joints, joints)
    torch.testing.assert_close(made.keypoints3d, surface)
    # True keypoints are what the body projects to, to half precision.
    seen = (made.keypoints[..., 2] > 0) & (made.keypoints[..., :2].abs() < 1).all(-1)
    rays = made.box[:, None, :2] + made.keypoints[..., :2] * made.box[:, None, 2:] / 2
    assert (surface[..., :2] / surface[..., 2:] - rays)[seen].abs().max() < 2e-3
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="delete it"):
        fixed_examples(path, poses, Synthesizer(torch_body), 20, progress=False)
