"""Model bundles: round trip, and every way to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hmr_prob_ros.body import Body
from hmr_prob_ros.bundle import FORMAT, VERSION, Bundle, BundleError, save_bundle, update_card
from hmr_prob_ros.engines import EngineError, make_engine
from hmr_prob_ros.skeleton import JOINT_NAMES, KEYPOINT_NAMES


def _card(**changes: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": "trial",
        "latent_size": 144,
        "samples": 100,
        "num_modes": 10,
        "joint_names": list(JOINT_NAMES),
        "keypoint_names": list(KEYPOINT_NAMES),
        "body": {"name": "a body", "hash": "0123456789abcdef" * 4},
        "licence": "Apache-2.0",
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").write_bytes(b"graph" * 1000)
    (tmp_path / "density").write_bytes(b"density" * 1000)
    save_bundle(tmp_path / "bundle", _card(), tmp_path / "model", tmp_path / "density")
    return tmp_path / "bundle"


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.yaml"
    card = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        card.pop(name) if value is None else card.update({name: value})
    path.write_text(yaml.safe_dump(card))


def test_round_trip(folder: Path) -> None:
    bundle = Bundle.load(str(folder))
    assert bundle.name == "trial"
    assert bundle.path == folder
    assert (bundle.latent_size, bundle.samples, bundle.num_modes) == (144, 100, 10)
    assert bundle.joint_names == JOINT_NAMES
    assert bundle.keypoint_names == KEYPOINT_NAMES
    assert bundle.model_path.read_bytes() == b"graph" * 1000
    assert bundle.density_path is not None
    assert bundle.density_path.read_bytes() == b"density" * 1000
    assert bundle.card["licence"] == "Apache-2.0"
    bundle.check_body("0123456789abcdef" * 4)
    with pytest.raises(BundleError, match=r"made with the body a body .0123456789ab.*load that body"):
        bundle.check_body("f" * 64)


def test_density_is_optional(folder: Path, tmp_path: Path) -> None:
    bundle = save_bundle(folder, _card(name="other"), tmp_path / "model")
    assert bundle.name == "other"
    assert bundle.density_path is None
    assert not (folder / "density.onnx").exists()


def test_shipped_bundle() -> None:
    bundle = Bundle.load()
    bundle.check_body(Body.load().hash)
    assert 1 <= bundle.num_modes <= bundle.samples
    assert bundle.density_path is not None
    assert bundle.model_path.stat().st_size < 40e6


@pytest.mark.parametrize("persons", [1, 3])
def test_shipped_graph_gives_bodies(persons: int) -> None:
    """Joints and keypoints are those of the numpy body, in front of the camera; modes weigh the draws next to them."""
    bundle, body = Bundle.load(), Body.load()
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(persons, 40, bundle.latent_size)).astype(np.float32)
    keypoints = np.concatenate([rng.uniform(-1, 1, (persons, 23, 2)), np.full((persons, 23, 1), 0.5)], axis=-1)
    box = np.tile(np.float32([[0.1, -0.1, 0.5]]), (persons, 1))
    engine = make_engine("onnxruntime", bundle.model_path)
    out = engine.run({"keypoints": keypoints.astype(np.float32), "box": box, "latents": latents})
    for kind in ("sample", "mode"):
        pose = tuple(out[f"{kind}_{name}"] for name in ("rotations", "betas", "translation"))
        np.testing.assert_allclose(out[f"{kind}_joints"], body.joints(*pose), atol=1e-4)
        np.testing.assert_allclose(out[f"{kind}_keypoints"], body.keypoints(*pose), atol=1e-4)
        identity = pose[0] @ pose[0].swapaxes(-1, -2)
        np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=1e-4)
        assert out[f"{kind}_joints"][:, :, 0, 2].min() > 0.19
    assert np.linalg.eigvalsh(out["covariance"].astype(np.float64)).min() > 0
    samples, modes = (out[f"{kind}_joints"] - out[f"{kind}_joints"][:, :, :1] for kind in ("sample", "mode"))
    assert modes.shape[1] == bundle.num_modes
    for b in range(persons):
        gaps = np.linalg.norm(modes[b][:, None] - samples[b][None], axis=(-1, -2))
        assert (gaps[:, 0] < 1e-5).sum() == 1  # the single answer is a mode, and no other is it
        nearest = np.bincount(gaps[:, 1:].argmin(0), minlength=bundle.num_modes)
        np.testing.assert_allclose(out["mode_weight"][b], (1 + nearest) / (bundle.num_modes + 39), atol=1e-5)
        assert gaps[0, 0] < 1e-5  # it comes first
    with pytest.raises(EngineError, match="'latents' must have shape"):
        engine.run({"keypoints": keypoints.astype(np.float32), "box": box, "latents": latents[..., 1:]})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, "'format' is not 'hmr_prob_ros/bundle'"),
        ({"version": VERSION + 1}, f"version {VERSION + 1}, this package reads version {VERSION}: update hmr_prob_ros"),
        ({"version": 0}, "version 0.*hmr-prob export"),
        ({"nested_modes": 5}, "'nested_modes' in .* must be true or false, not 5"),
        ({"version": None}, "version None"),
        ({"latent_size": None}, "lacks 'latent_size'.*hmr-prob export"),
        ({"latent_size": "many"}, "'latent_size' .* must be a int"),
        ({"num_modes": 0}, "'num_modes' .* at least 1"),
        ({"samples": True}, "'samples' .* must be a int"),
        ({"joint_names": ["pelvis"]}, "'joint_names' .* not this package's skeleton"),
        ({"keypoint_names": list(reversed(KEYPOINT_NAMES))}, "'keypoint_names'"),
        ({"body": {"name": "x"}}, "'body' .* lacks 'hash'"),
        ({"sha256": {}}, "'sha256' .* lacks model.onnx"),
        ({"sha256": {"model.onnx": "0", "../x": "0"}}, "outside of the bundle"),
        ({"sha256": {"model.onnx": "0"}}, "truncated or was changed"),
    ],
)
def test_wrong_cards(folder: Path, changes: dict[str, Any], text: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(BundleError, match=text):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("content", "text"),
    [("a: [1, 2", "is no YAML"), ("- 1\n- 2\n", "holds no mapping"), ("", "holds no mapping")],
)
def test_cards_that_are_none(folder: Path, content: str, text: str) -> None:
    (folder / "model.yaml").write_text(content)
    with pytest.raises(BundleError, match=text):
        Bundle.load(folder)


def test_wrong_folders_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*hmr-prob export"):
        Bundle.load(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"no model\.yaml"):
        Bundle.load(tmp_path)
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model.onnx \(4999 bytes\).*truncated"):
        Bundle.load(folder)
    model.unlink()
    with pytest.raises(BundleError, match=r"lacks model\.onnx: copy the whole folder"):
        Bundle.load(folder)


def test_save_refuses_a_poor_card(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"x")
    card = _card()
    del card["num_modes"]
    with pytest.raises(BundleError, match="lacks 'num_modes'"):
        save_bundle(tmp_path / "bundle", card, tmp_path / "model")
    assert not (tmp_path / "bundle" / "model.onnx").exists()


def test_entries_added_to_a_card_stay(folder: Path) -> None:
    """``update_card`` keeps everything else and refuses what does not fit."""
    before = Bundle.load(folder).card
    bundle = update_card(folder, metrics={"none": {"mode": 80.5}})
    assert bundle.card["metrics"] == {"none": {"mode": 80.5}}
    assert {name: value for name, value in bundle.card.items() if name != "metrics"} == {
        name: value for name, value in before.items() if name != "metrics"
    }
    with pytest.raises(BundleError, match="latent_size"):
        update_card(folder, latent_size="many")
    assert Bundle.load(folder).card == bundle.card
