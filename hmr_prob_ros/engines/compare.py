"""How far two engines' outputs lie apart, output by output."""

from __future__ import annotations

__all__ = ["differences", "worst"]

from collections.abc import Mapping

import numpy as np


def differences(expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Output -> ``median``, ``p99`` and ``max`` of the absolute difference, in the output's own unit.

    Modes are compared for those people alone for whom both chose the same samples: of two nearly equal distances
    another one may be the smaller, which is no error. ``mode_index`` has the ``same`` share of those people instead.

    Raises:
        ValueError: an output is missing, or has another shape or numbers that are not finite.
    """
    found: dict[str, dict[str, float]] = {}
    same = None
    if "mode_index" in expected and "mode_index" in given:
        same = (expected["mode_index"] == given["mode_index"]).all(axis=1)
        found["mode_index"] = {"same": round(float(same.mean()), 4)}
    for name, value in expected.items():
        if name == "mode_index":
            continue
        if name not in given or given[name].shape != value.shape:
            raise ValueError(f"{name} has shape {getattr(given.get(name), 'shape', None)}, not {value.shape}")
        other = given[name]
        if not np.isfinite(other).all():
            raise ValueError(f"{name} has numbers that are not finite")
        if same is not None and name.startswith("mode_"):
            value, other = value[same], other[same]
        gap = np.abs(other.astype(np.float64) - value)
        figures = (np.median(gap), np.quantile(gap, 0.99), gap.max()) if gap.size else (0.0, 0.0, 0.0)
        found[name] = {key: float(f"{figure:.3g}") for key, figure in zip(("median", "p99", "max"), figures)}
    return found


def worst(errors: Mapping[str, Mapping[str, float]], figure: str = "p99") -> tuple[str, float]:
    """The output with the largest of a figure, and that figure.

    Log-densities aside, which are large numbers, and the modes' weights, which are counts: a draw half-way between two
    modes may be either's.
    """
    aside = ("log_density", "mode_weight")
    rows = {name: row[figure] for name, row in errors.items() if figure in row and not name.endswith(aside)}
    name = max(rows, key=lambda key: rows[key])
    return name, rows[name]
