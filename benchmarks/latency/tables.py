"""Tables in Markdown, for the reports of the benchmarks."""

from __future__ import annotations

__all__ = ["table", "text"]

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table; the first column is text, numbers stand to the right."""
    body = [[text(cell) for cell in row] for row in rows]
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" if i == 0 else "---:" for i in range(len(head))) + " |",
    ]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body)]


def text(value: Any) -> str:
    """A cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)
