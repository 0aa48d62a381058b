"""Image backbones: features, normalisation, weights from files, freezing, and models that train with pictures."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("nflows")
timm = pytest.importorskip("timm")

from hmr_prob_ros.body import Body  # noqa: E402
from hmr_prob_ros.training.body import TorchBody  # noqa: E402
from hmr_prob_ros.training.data.synthesize import Synthesizer  # noqa: E402
from hmr_prob_ros.training.loss_config import LossConfig  # noqa: E402
from hmr_prob_ros.training.models import FlowConfig, FlowPosterior, load_checkpoint, save_checkpoint  # noqa: E402
from hmr_prob_ros.training.models.backbone import Backbone, BackboneError  # noqa: E402

SMALL = "mobilenetv3_small_100"
FLOW = FlowConfig(hidden=16, couplings=2, condition=16, encoder_width=16, encoder_depth=1, head_hidden=8, image=SMALL)
LOSSES = LossConfig(likelihood=0.01, mode_joints=1.0, camera=0.1, betas_nll=0.1, sampled=4)


@pytest.fixture(scope="module")
def body() -> TorchBody:
    torch.set_num_threads(1)
    return TorchBody(Body.load(), mesh=False)


@pytest.fixture(scope="module")
def examples(body: TorchBody):
    poses = 0.3 * np.random.default_rng(0).standard_normal((20, 24, 3))
    examples = Synthesizer(body, seed=3)(poses)[:6]
    return replace(examples, image=torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """A network as ``timm`` publishes it, with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = timm.create_model(SMALL)
    for value in network.buffers():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)
    return network.eval()


def _model(body: TorchBody, examples, **changes) -> FlowPosterior:
    torch.manual_seed(0)
    model = FlowPosterior(replace(FLOW, **changes), body)
    model.fit_statistics(examples.pose6d)
    return model


@pytest.mark.parametrize(("name", "features", "size"), [(SMALL, 1024, (224, 96)), ("resnet50", 2048, (64,))])
def test_features_of_pictures_of_any_size(name: str, features: int, size: tuple[int, int]) -> None:
    backbone = Backbone(name)
    assert backbone.features == features
    for side in size:
        assert backbone(torch.rand(2, 3, side, side)).shape == (2, features)
    assert backbone(torch.rand(1, 3, 64, 96)).shape == (1, features)


def test_hrnet_gives_all_its_resolutions() -> None:
    """Wehrbein's 720 features: those of the four branches of ``timm``'s own network, averaged."""
    torch.manual_seed(0)
    backbone = Backbone("hrnet_w48")
    assert backbone.features == 720
    image = torch.rand(2, 3, 64, 64)
    stage = {}
    network = timm.create_model("hrnet_w48", num_classes=0).eval()
    network.load_state_dict(backbone.network.state_dict(), strict=False)
    network.stage4.register_forward_hook(lambda module, inputs, out: stage.update(out=out))
    with torch.no_grad():
        network((image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / backbone.std)
        expected = torch.cat([branch.mean((2, 3)) for branch in stage["out"]], dim=1)
        torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-5)


def test_a_network_with_a_fixed_grid_gets_its_size() -> None:
    backbone = Backbone("vit_tiny_patch16_224")
    image = torch.rand(1, 3, 96, 96)
    large = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(backbone(image), backbone(large))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_from_a_file(classifier: torch.nn.Module, tmp_path: Path, suffix: str, prefix: str) -> None:
    """The classifier in the file is passed over; the features are those of the network that was saved."""
    path = tmp_path / f"weights{suffix}"
    state = {prefix + key: value.contiguous() for key, value in classifier.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(classifier.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        features = classifier.forward_features((image - mean) / std)
        expected = classifier.forward_head(features, pre_logits=True)
        torch.testing.assert_close(Backbone(SMALL, str(path))(image), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_named(classifier: torch.nn.Module, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "weights.pth"

    def refused(match: str) -> None:
        with pytest.raises(BackboneError, match=match):
            Backbone(SMALL, str(path))

    refused("no file .*weights.pth")
    path.write_bytes(b"not a file of weights")
    refused("cannot be read")
    torch.save({"weights": Path("x")}, path)  # would run code when unpickled
    refused("cannot be read")
    torch.save([1, 2], path)
    refused("no state dict")
    state = classifier.state_dict()
    torch.save({key: value for key, value in state.items() if key != "conv_stem.weight"}, path)
    refused(r"1 missing \(conv_stem.weight\)")
    torch.save({**state, "extra.weight": torch.zeros(1), "conv_head.bias": torch.zeros(3)}, path)
    refused(r"1 unknown \(extra.weight\); 1 of another shape \(conv_head.bias\)")
    torch.save(timm.create_model("resnet18").state_dict(), path)
    refused("do not fit .* missing")
    with pytest.raises(BackboneError, match=r"no model 'resnet_50'.*resnet50"):
        Backbone("resnet_50")
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(BackboneError, match=r"could not download .*mobilenet.*model\.image_weights"):
        Backbone(SMALL, "timm")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackboneError, match="pip install timm"):
        Backbone(SMALL)


def test_wrong_pictures_are_refused() -> None:
    backbone = Backbone(SMALL)
    for image in (torch.rand(3, 64, 64), torch.rand(1, 64, 64, 3), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="floats from 0 to 1"):
            backbone(image)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_means_frozen(body: TorchBody, examples, frozen: bool) -> None:
    """Neither weights nor batch statistics move in a training step, also with weight decay; trained ones all do."""
    model = _model(body, examples, image_frozen=frozen).train()
    backbone = model.encoder.backbone
    assert backbone.network.training == (not frozen)
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        sum(model.losses(examples, LOSSES).values()).backward()
        optimizer.step()
    for key, value in backbone.state_dict().items():
        still = torch.equal(value, before[key])
        assert still == (frozen or key in ("mean", "std")), key
    gradients = [value.grad for value in backbone.parameters()]
    assert all((grad is None) == frozen for grad in gradients)
    assert all(value.requires_grad != frozen for value in backbone.parameters())
    assert model.encoder.picture.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("use_keypoints", [True, False])
@pytest.mark.parametrize("use_box", [True, False])
def test_parts_of_the_condition_switch_off(body: TorchBody, examples, use_keypoints: bool, use_box: bool) -> None:
    model = _model(body, examples, use_keypoints=use_keypoints, use_box=use_box)
    terms = model.losses(examples, LOSSES)
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)
    model.eval()
    with torch.no_grad():
        code = model.condition(examples.keypoints, examples.box, examples.image).code

        def same(keypoints=examples.keypoints, box=examples.box, image=examples.image) -> bool:
            return torch.allclose(model.condition(keypoints, box, image).code, code, atol=1e-6)

        assert not same(image=examples.image.flip(0))
        assert same(keypoints=examples.keypoints.flip(0)) == (not use_keypoints)
        # Where the box is, turns the keypoints too; its size alone enters only as the box.
        assert same(box=examples.box * torch.tensor([1.0, 1.0, 1.3])) == (not use_box)


def test_a_model_without_its_picture_says_so(body: TorchBody, examples) -> None:
    model = _model(body, examples)
    with pytest.raises(ValueError, match="no picture"):
        model.losses(replace(examples, image=None), LOSSES)
    with pytest.raises(ValueError, match="condition would be empty"):
        replace(FLOW, image="", use_keypoints=False)


def test_a_checkpoint_needs_no_file_of_weights(
    classifier: torch.nn.Module, body: TorchBody, examples, tmp_path: Path
) -> None:
    """Frozen weights are in it: the file that they came from may be gone, its name stays known."""
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    model = _model(body, examples, image_weights=str(path)).eval()
    save_checkpoint(tmp_path / "model.ckpt", model)
    path.unlink()
    loaded, _ = load_checkpoint(tmp_path / "model.ckpt", body)
    assert loaded.config == model.config
    assert not loaded.train().encoder.backbone.training
    latents = model.latents(6, 3)
    with torch.no_grad():
        expected = model(examples.keypoints, examples.box, latents, examples.image)
        out = loaded.eval()(examples.keypoints, examples.box, latents, examples.image)
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value, rtol=0, atol=0)
