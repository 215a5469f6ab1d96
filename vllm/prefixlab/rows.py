"""How rows of figures are told to people, on a terminal as in a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
FOLDED = "semantics source policy capacity requests accesses".split()


def folded(rows: Sequence[Row]) -> tuple[list[str], str]:
    """(columns, what is the same in all rows, in words): of FOLDED, that is said once."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    same = [
        name
        for name in names
        if name in FOLDED and len(rows) > 1 and len({str(row.get(name)) for row in rows}) == 1
    ]
    said = ", ".join(f"{heading(name)} {text(rows[0].get(name))}" for name in same)
    return [name for name in names if name not in same], said


def heading(name: str) -> str:
    return name.replace("_", " ")


def text(value: Any) -> str:
    """Rates to four digits, other fractions to one, thousands apart; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) <= 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
