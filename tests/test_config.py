"""Configurations: named ones, files, settings of the command line; what does not fit is named with the mend."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

pytest.importorskip("torch", reason="the training half needs the [train] extra")

from hmr_prob_ros.training.config import (
    FOLDER,
    ConfigError,
    TrainConfig,
    config_names,
    differences,
    load_config,
    read_config,
    write_config,
)
from hmr_prob_ros.training.models import MODELS, FlowConfig, RegressorConfig

NAMES = ["cvae", "flow", "joint", "lifting", "mdn", "multi_head", "prohmr", "regressor"]


def test_every_method_has_a_named_configuration() -> None:
    assert config_names() == NAMES
    assert {load_config(name).method for name in NAMES} == set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_named_configurations(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    assert type(config.model) is MODELS[config.method].config_class
    weights = dataclasses.asdict(config.losses)
    for setting in ("noise", "samples", "sampled"):
        weights.pop(setting)
    assert any(weights.values())
    # Written and read again it is the same, also as --config without a METHOD.
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert load_config("", tmp_path / "config.yaml") == config
    # Files of the package hold only what differs from the defaults, and no key twice.
    text = (FOLDER / f"{name}.yaml").read_text()
    assert yaml.safe_load(text)["name"] == name


def test_published_weights() -> None:
    """A few numbers of the papers, in the units of the losses here."""
    prohmr, flow, heads = (load_config(name) for name in ("prohmr", "flow", "multi_head"))
    assert (prohmr.losses.likelihood, prohmr.losses.mode_joints, prohmr.losses.adversarial) == (1e-3, 0.05, 5e-4)
    assert prohmr.losses.mode_keypoints == 0.01 / 2  # image coordinates from -0.5 to 0.5
    assert flow.losses.likelihood == pytest.approx(0.1 / 132, rel=0.01)
    assert (flow.losses.mmd, flow.losses.mask, flow.model.alpha) == (0.05, 0.1, 2.0)
    assert heads.losses.best_of_m == 25
    assert heads.losses.best_rotations == pytest.approx(1 / 216, rel=0.01)
    assert heads.losses.reprojection == pytest.approx(0.1 / 46, rel=0.01)
    assert load_config().name == "joint"
    joint = load_config("joint")
    assert joint.losses.likelihood == pytest.approx(1 / 144, rel=0.01)
    assert joint.losses.mode_joints == pytest.approx(6 / 72, rel=0.01)


def test_settings_reach_nested_groups() -> None:
    assert load_config("joint", None, ["optimiser.rate=5e-4"]).optimiser.rate == 5e-4  # which YAML takes for a text
    settings = ["model.hidden=64", "data.synthesis.cameras.pitch_sd=3", "data.detectors=[blazepose]"]
    config = load_config("joint", None, settings)
    assert config.model == dataclasses.replace(load_config("joint").model, hidden=64)
    assert (config.data.synthesis.cameras.pitch_sd, config.data.detectors) == (3.0, ("blazepose",))
    assert isinstance(config.data.synthesis.cameras.pitch_sd, float)
    together = load_config("joint", None, ["model.hypotheses=4", "model.nested=[2]"])  # neither fits alone
    assert (together.model.hypotheses, together.model.nested) == (4, (2,))
    height = load_config("joint", None, ["data.synthesis.cameras.height=[1, 1.5]"]).data.synthesis.cameras.height
    assert height == (1.0, 1.5)


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {hidden: 32}\nlosses:\n  mmd: 0.2\n")
    config = load_config("flow", path, ["losses.mask=0"])
    assert differences(load_config("flow"), config) == [
        "model.hidden: 1024 -> 32",
        "losses.mmd: 0.05 -> 0.2",
        "losses.mask: 0.1 -> 0.0",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.width=3", r"--set: unknown setting 'model.width'.*known are .*hidden"),
        ("losses.mdd=3", r"'losses.mdd': did you mean 'mmd'\?"),
        ("speed=3", "unknown setting 'speed'.*data, engine, losses"),
        ("engine", "NAME=VALUE"),
        ("method=magic", "the method is the first argument"),
        ("model.hidden=abc", r"'model.hidden' cannot be 'abc' \(int needed\): try 256"),
        ("engine.steps=2.5", "int needed"),
        ("engine.steps=true", "int needed"),
        ("engine.steps=0", "engine.steps is 0: it must be at least 1"),
        ("engine.precision=[8]", r"'engine.precision' cannot be \[8\] \(str needed\)"),
        ("engine.precision=8", "engine.precision is '8': use one of 32"),
        ("engine.precision=half", "use one of 32, bf16-networks"),
        ("engine.ema=1", "below 1"),
        ("optimiser.rate=.nan", "float needed"),
        ("optimiser.batch=33 ", "cannot be divided among 2 processes"),
        ("losses.mmd=-1", "losses.mmd must not be negative"),
        ("data.detectors=blazepose", "list needed"),
        ("data.synthesis.cameras.height=[1]", "list needed"),
        ("data.occlusion=all", "use one of mixed"),
        ("model=3", "is a group: set model.hidden"),
        ("model.sample_translation=1", "bool needed"),
        ("model.refine_translation=false", "--set: model.sample_translation draws round"),
        ("optimiser.rate=[1", "not YAML"),
    ],
)
def test_settings_that_do_not_fit(setting: str, message: str) -> None:
    more = ["engine.devices=2"] if "33" in setting else []
    with pytest.raises(ConfigError, match=message):
        load_config("joint", None, [*more, setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses: {mmmd: 1}", r"mine.yaml: unknown setting 'losses.mmmd': did you mean 'mmd'"),
        ("losses: 3", r"mine.yaml: setting 'losses' is a group"),
        ("engine: {steps: many}", r"mine.yaml: setting 'engine.steps' cannot be 'many'"),
        ("method: mdn", r"mine.yaml is for another method than joint"),
        ("name: flow", r"mine.yaml is for another name than joint"),
        ("losses: {a", "mine.yaml is not YAML"),
        ("- 3", "mine.yaml holds no settings"),
        ("", "mine.yaml holds no settings"),
    ],
)
def test_files_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config("joint", path)


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'magic': use one of cvae, flow"):
        load_config("magic")
    with pytest.raises(ConfigError, match="there is no configuration"):
        load_config("joint", tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("losses: {mmd: 1}")
    with pytest.raises(ConfigError, match="method is ''"):
        read_config(tmp_path / "x.yaml")


def test_a_configuration_holds_the_right_model() -> None:
    assert TrainConfig(method="flow").model == FlowConfig()
    with pytest.raises(ValueError, match="RegressorConfig, but flow needs a FlowConfig"):
        TrainConfig(method="flow", model=RegressorConfig())
    with pytest.raises(ValueError, match=r"training.method is 'magic'"):
        TrainConfig(method="magic")
