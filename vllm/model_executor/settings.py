"""Reading a config.json by declaration: what a model does not implement is refused by name."""

from __future__ import annotations

from typing import Any, NoReturn

# A null field reads as an absent one, unless `null` is asked.
Hf = dict[str, Any]

LARGEST = 2**24  # of any count in a config: a wild one must not become a wild allocation


class Settings:
    """Typed reads of one config. Every error is a ValueError that names the field and its value."""

    def __init__(self, hf: Hf, name: str = "config.json") -> None:
        if not isinstance(hf, dict):
            raise ValueError(f"{name} must be an object, not {hf!r}")
        self.hf = hf
        self.name = name

    def refuse(self, field: str, why: str) -> NoReturn:
        raise ValueError(f"{self.name}: {field}={self.hf.get(field)!r:.200} {why}")

    def get(self, field: str, default: Any = None) -> Any:
        value = self.hf.get(field)
        return default if value is None else value

    def null(self, field: str) -> bool:
        """Whether the field is there and null, where that differs from being absent."""
        return field in self.hf and self.hf[field] is None

    def count(self, field: str, default: int | None = None, *, low: int = 1) -> int:
        """A whole number from `low` to LARGEST; required when there is no default."""
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= LARGEST:
            self.refuse(field, f"must be a whole number from {low} to {LARGEST}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """A positive finite number; required when there is no default."""
        value = self.get(field, default)
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not 0 < value < float("inf"):
            self.refuse(field, "must be a positive number")
        return float(value)

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.get(field, default)
        if not isinstance(value, bool):
            self.refuse(field, "must be true or false")
        return value

    def only(self, field: str, *allowed: Any) -> Any:
        """The field's value, which must be one of `allowed`; the first of them when absent."""
        value = self.get(field, allowed[0])
        if not any(value is one or value == one for one in allowed):
            self.refuse(field, f"is not implemented; known: {', '.join(map(repr, allowed))}")
        return value

    def part(self, field: str) -> Settings:
        """The object in a field as settings of their own; empty when absent."""
        return Settings(self.get(field, {}), f"{self.name}: {field}")
