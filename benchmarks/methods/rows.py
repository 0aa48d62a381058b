"""What the bench trains: a row is a named configuration with a few settings of its own."""

from __future__ import annotations

__all__ = ["COMMON", "GPU", "ROWS", "Row", "select"]

from collections.abc import Sequence
from dataclasses import dataclass

COMMON = (
    # One optimiser and one budget for all; the weights of the losses are each method's own.
    "optimiser.rate=0.001",
    "optimiser.weight_decay=0.0001",
    "optimiser.warmup=200",
    "optimiser.schedule=cosine",
    "optimiser.batch=256",
    "optimiser.clip=1.0",
    "engine.precision=bf16-networks",
    "engine.ema=0.998",
    "engine.validate_every=1000000",
    "engine.checkpoint_every=500",
    "engine.threads=1",
    "engine.workers=0",
    "engine.progress=false",
)
GPU = ("engine.accelerator=gpu", "optimiser.batch=2048", "model.hidden=1024")
"""With ``--gpu``: wider networks and batches; ``--steps`` and ``--examples`` scale the rest."""

_FLOW = ("model.hidden=256",)
_PROHMR = ("model.hidden=256", "model.flow_dropout=0", "model.batch_norm=false")
_LIFTING = (*_PROHMR, "model.condition=512", "model.dropout=0.1")
_HEADS = ("model.hidden=512",)
_BIGGS = (*_HEADS, "model.prior_hidden=128", "model.prior_couplings=8")
_PICTURE = ("losses.sampled=64",)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name, title: short and long.
        config: named configuration of ``hmr-prob train``.
        settings: what differs from it, besides ``COMMON``.
        shards: a quarter of the batches are rendered people with heatmaps and masks.
        of: name of the row whose trained model this one evaluates in another way, ``wrap``.
        wrap: ``draws``, ``random`` or ``gaussian``, see ``training/baselines.py``.
        joint_set: that errors are measured on.
        group: ``methods``, or the ordering that the row belongs to.
    """

    name: str
    title: str
    config: str
    settings: tuple[str, ...] = ()
    shards: bool = False
    of: str = ""
    wrap: str = ""
    joint_set: str = "smpl"
    group: str = "methods"


ROWS = (
    Row("regressor", "Regressor, M = 1 (HMR/SPIN row)", "regressor", _HEADS),
    Row("mdn", "SMPL-MDN, M = 25 (Biggs, appendix C)", "mdn", _HEADS),
    Row("cvae", "SMPL-CVAE (Biggs, appendix C)", "cvae", _HEADS),
    Row("multi_head", "n-quantised best-of-M, M = 25 (Biggs)", "multi_head", _BIGGS),
    Row("prohmr", "ProHMR, additive flow (Kolotouros)", "prohmr", _PROHMR),
    Row("flow", "RealNVP with heads (Wehrbein)", "flow", _FLOW),
    Row("joint", "Joint posterior with learned modes (ours)", "joint", _FLOW),
    Row("joint_draws", "the same, random draws only", "joint", of="joint", wrap="draws"),
    # Orderings that the papers state.
    Row(
        "no_reprojection",
        "best-of-M without reprojection",
        "multi_head",
        (*_HEADS, "model.prior=false", "losses.reprojection=0"),
        group="reprojection",
    ),
    Row("additive", "ours with additive couplings", "joint", (*_FLOW, "model.coupling=additive"), group="coupling"),
    Row("no_box", "ours without the box", "joint", (*_FLOW, "model.use_box=false"), group="condition"),
    Row(
        "no_confidence", "ours without confidences", "joint", (*_FLOW, "model.use_confidence=false"), group="condition"
    ),
    Row(
        "rendered",
        "with rendered people",
        "flow",
        (*_FLOW, *_PICTURE, "losses.mmd=0", "losses.mask=0"),
        shards=True,
        group="picture",
    ),
    Row("mmd", "with MMD", "flow", (*_FLOW, *_PICTURE, "losses.mask=0"), shards=True, group="picture"),
    Row("mask", "with the mask loss", "flow", (*_FLOW, *_PICTURE, "losses.mmd=0"), shards=True, group="picture"),
    Row("mmd_mask", "with both", "flow", (*_FLOW, *_PICTURE), shards=True, group="picture"),
    Row(
        "joint_rendered",
        "ours with rendered people",
        "joint",
        _FLOW,
        shards=True,
        group="recipe",
    ),
    Row(
        "joint_mmd",
        "ours with rendered people and MMD",
        "joint",
        (*_FLOW, "losses.mmd=0.05"),
        shards=True,
        group="recipe",
    ),
    Row("random", "random training poses", "joint", of="joint", wrap="random", group="posterior"),
    Row("gaussian", "a Gaussian round the mode", "joint", of="joint", wrap="gaussian", group="posterior"),
    # Seventeen joints of Human3.6M, pelvis left out: no body model.
    Row("lifting", "2D lifting flow (Kolotouros)", "lifting", _LIFTING, joint_set="h36m", group="lifting"),
    Row("joint_h36m", "Joint posterior (ours)", "joint", of="joint", joint_set="h36m", group="lifting"),
)


def select(names: Sequence[str]) -> list[Row]:
    """Rows of these names, in the order of the table, with the rows that they evaluate; all without names.

    Raises:
        ValueError: there is no such row.
    """
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no row {', '.join(unknown)}: choose among {', '.join(known)}")
    wanted = set(names or known) | {known[name].of for name in names or known if known[name].of}
    return [row for row in ROWS if row.name in wanted]
