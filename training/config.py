"""What decides a training: typed, nested, read from yaml, changed on the command line, saved with the run.

    config = load_config("prohmr", "mine.yaml", ["losses.mmd=0.05", "engine.steps=1000"])

starts from the named configuration ``configs/prohmr.yaml``, which says how that method differs from the defaults below;
then come a file of the same form, and single settings.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "OptimiserConfig",
    "TrainConfig",
    "config_names",
    "differences",
    "load_config",
    "read_config",
    "write_config",
]

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .data.synthesize import SynthesisConfig
from .loss_config import LossConfig
from .models import MODELS, ModelConfig

FOLDER = Path(__file__).with_name("configs")
DEFAULT = "joint"
PRECISIONS = ("32", "bf16-networks", "16-mixed", "bf16-mixed")
OCCLUSIONS = ("mixed", "none", "biggs", "truncation", "objects")


class ConfigError(ValueError):
    """A setting that does not exist or does not fit; the text names where it stands, the key and the mend."""


def _at_least(low: float, group: str, **values: float) -> None:
    wrong = [f"{group}.{name} is {value}" for name, value in values.items() if value < low]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: it must be at least {low:g}")


def _one_of(choices: Sequence[str], group: str, **values: str) -> None:
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{group}.{name} is {value!r}: use one of {', '.join(choices)}")


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from.

    Attributes:
        mocap: recordings, seen by synthetic cameras through detector noise.
        shards: files and folders of rendered or annotated people. With ``mocap`` too, ``shards_share`` of the batches.
        validation_shards: shards for validation; without, motion capture's validation takes or a piece of the shards.
        pool: poses in the training pool: captured, parts mixed, and invented sitting, reaching, crouching and lying.
        detectors: whose noise the keypoints have; ``occlusion`` and ``synthesis``: of synthetic views.
        validation: examples for validation; ``test``: of the test takes that the bundle's card reports on.
    """

    mocap: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    shards_share: float = 0.5
    validation_shards: tuple[str, ...] = ()
    pool: int = 200_000
    detectors: tuple[str, ...] = ("blazepose", "tinypose")
    occlusion: str = "mixed"
    validation: int = 1024
    test: int = 2000
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)

    def __post_init__(self) -> None:
        _at_least(1, "data", pool=self.pool, validation=self.validation, test=self.test)
        _one_of(OCCLUSIONS, "data", occlusion=self.occlusion)
        if not 0 < self.shards_share < 1:
            raise ValueError(f"data.shards_share is {self.shards_share}: it must lie between 0 and 1")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up.

    Attributes:
        rate: highest learning rate; ``adversary_rate``: of the adversary, where there is one.
        schedule: what follows the warm-up: ``cosine`` to a hundredth of the rate, or ``constant``.
        batch: examples of a step, all processes together.
        clip: largest norm of the gradient, 0 for no limit.
    """

    rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup: int = 500
    schedule: str = "cosine"
    batch: int = 512
    clip: float = 1.0
    adversary_rate: float = 1e-4

    def __post_init__(self) -> None:
        _at_least(1, "optimiser", batch=self.batch)
        _at_least(0, "optimiser", warmup=self.warmup, clip=self.clip, weight_decay=self.weight_decay)
        _one_of(("cosine", "constant"), "optimiser", schedule=self.schedule)
        if self.rate <= 0 or self.adversary_rate <= 0:
            raise ValueError("optimiser.rate and optimiser.adversary_rate must be above 0")


@dataclass(frozen=True)
class EngineConfig:
    """How a training runs.

    Attributes:
        precision: ``bf16-networks`` runs networks in bfloat16 and kinematics in float32; ``16-mixed`` and
            ``bf16-mixed`` are Lightning's, ``32`` is float32 all over.
        ema: decay of the average of the weights that is validated and kept, 0 for the last weights.
        devices, nodes, strategy, accelerator: as Lightning has them; several processes need ``strategy: auto`` or
            ``ddp``, and ``optimiser.batch`` is divided among them.
        validate_every, checkpoint_every: steps; ``patience``: validations without a better ``val/mode_mpjpe`` after
            which a training stops early, 0 for never.
        workers: processes that make batches, 0 for none; ``threads`` of torch, 0 for its own choice.
        progress: show bars.
    """

    steps: int = 40_000
    precision: str = "bf16-networks"
    ema: float = 0.999
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    validate_every: int = 2000
    checkpoint_every: int = 500
    patience: int = 0
    seed: int = 0
    workers: int = 1
    threads: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        once = ("steps", "devices", "nodes", "validate_every", "checkpoint_every")
        _at_least(1, "engine", **{name: getattr(self, name) for name in once})
        _at_least(0, "engine", patience=self.patience, seed=self.seed, workers=self.workers, threads=self.threads)
        _one_of(PRECISIONS, "engine", precision=self.precision)
        if not 0 <= self.ema < 1:
            raise ValueError(f"engine.ema is {self.ema}: it must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training. Saved beside the run as ``config.yaml``."""

    name: str = "flow"
    method: str = "flow"
    model: ModelConfig = None  # type: ignore[assignment]  # default: that of the method
    losses: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _one_of(list(MODELS), "training", method=self.method)
        wanted = MODELS[self.method].config_class
        if self.model is None:
            object.__setattr__(self, "model", wanted())
        elif type(self.model) is not wanted:
            raise ValueError(f"model is a {type(self.model).__name__}, but {self.method} needs a {wanted.__name__}")
        processes = self.engine.devices * self.engine.nodes
        if self.optimiser.batch % processes:
            raise ValueError(f"optimiser.batch {self.optimiser.batch} cannot be divided among {processes} processes")


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_config(name: str = "", file: str | Path | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """A named configuration, changed by a file and by ``group.name=value`` settings, whose values are read as yaml.

    Args:
        name: one of :func:`config_names`; "" for the one that the file names, or the default.
        file: yaml of the form of the named configurations; it may leave out whatever it does not change.
        settings: as on the command line.

    Raises:
        ConfigError: an unknown name or key, or a value that does not fit.
    """
    values = _read(Path(file)) if file is not None else {}
    name = name or str(values.get("name", DEFAULT))
    if name not in config_names():
        raise ConfigError(f"unknown method {name!r}: use one of {', '.join(config_names())}")
    config = read_config(FOLDER / f"{name}.yaml")
    for fixed in ("name", "method"):
        if values.pop(fixed, getattr(config, fixed)) != getattr(config, fixed):
            raise ConfigError(f"{file} is for another {fixed} than {name}: train that one, or take the line out")
    config = _merge(config, values, str(file))
    together: dict[str, Any] = {}  # all at once: some settings only fit together
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text!r} is not NAME=VALUE, for example model.hidden=256")
        if key in ("name", "method"):
            raise ConfigError(f"--set {text!r}: the method is the first argument, one of {', '.join(config_names())}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: {value!r} is not YAML") from error
        *groups, last = key.split(".")
        place = together
        for group in groups:
            if not isinstance(place.setdefault(group, {}), dict):
                raise ConfigError(f"--set {text!r}: {group!r} was set to a value before, now to a group")
            place = place[group]
        place[last] = parsed
    return _merge(config, together, "--set")


def read_config(path: str | Path) -> TrainConfig:
    """A configuration as :func:`write_config` wrote it; what it leaves out has its default.

    Raises:
        ConfigError: no such file, or it does not fit.
    """
    path = Path(path)
    values = _read(path)
    method = values.pop("method", "")
    if method not in MODELS:
        raise ConfigError(f"{path}: method is {method!r}: use one of {', '.join(MODELS)}")
    return _merge(TrainConfig(name=method, method=method), values, str(path))


def write_config(config: TrainConfig, path: str | Path) -> None:
    """Writes all settings, defaults too."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples to lists, which yaml can say
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False))


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Settings that differ, as ``group.name: old -> new``."""

    def flat(value: Any, at: str) -> dict[str, Any]:
        if not dataclasses.is_dataclass(value):
            return {at: value}
        parts = (flat(getattr(value, f.name), f"{at}.{f.name}") for f in dataclasses.fields(value))
        return {key.lstrip("."): entry for part in parts for key, entry in part.items()}

    before, after = flat(old, ""), flat(new, "")
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"there is no configuration {path}: write one, see {FOLDER} for examples")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: write lines such as 'losses: {{mmd: 0.05}}'")
    return values


def _merge(base: Any, values: Mapping[Any, Any], source: str, at: str = "") -> Any:
    """``base`` with ``values`` put in; ``source`` and ``at`` say where they stand."""
    hints = typing.get_type_hints(type(base))
    known = [f.name for f in dataclasses.fields(base)]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{at}{key}"
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{source}: unknown setting {name!r}: {hint}known are {', '.join(sorted(known))}")
        current = getattr(base, key)
        if not dataclasses.is_dataclass(current):
            changes[key] = _fit(value, hints[key], current, f"{source}: setting {name!r}")
        elif isinstance(value, Mapping):
            changes[key] = _merge(current, value, source, f"{name}.")
        else:
            inner = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(current))
            raise ConfigError(f"{source}: setting {name!r} is a group: set {inner}")
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _fit(value: Any, kind: Any, current: Any, what: str) -> Any:
    """``value`` as yaml has it, as ``kind`` wants it."""
    try:
        return _convert(value, kind)
    except (TypeError, ValueError):
        example = list(current) if isinstance(current, tuple) else current
        wanted = "list" if typing.get_origin(kind) is tuple else getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{what} cannot be {value!r} ({wanted} needed): try {example!r}") from None


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(entry, k) for entry, k in zip(value, kinds, strict=True))
    # YAML reads 5e-4 as a text, and 32 as a number.
    accepted = {bool: bool, int: int, str: (str, int), float: (int, float, str)}.get(kind, ())
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    converted = kind(value)
    if kind is float and not math.isfinite(converted):
        raise ValueError
    return converted
