"""The settings that some policies take behind their name: `quota:chat=0.6,qa=0.4`."""

from __future__ import annotations

import math


def kinds(text: str) -> frozenset[str]:
    """Names with commas between them. Raises ValueError when there are none."""
    found = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise ValueError(f"{text!r} holds no names")
    return found


def shares(text: str) -> dict[str, float]:
    """Names with positive numbers. Raises ValueError, saying which one is none."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, number = part.strip().rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            given = ""
        if not given or not name or not 0 < found[name] < math.inf:
            raise ValueError(f"{part.strip()!r} is not a name with a positive number, as chat=0.6")
    return found
