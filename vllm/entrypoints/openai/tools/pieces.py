"""What parsers give back, and what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call begins; `Arguments` up to the next piece of another kind are its own."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    text: str  # a part of the arguments' JSON


Piece = Content | Call | Arguments


class ToolParser(Protocol):
    # Whether the format is told by special tokens, which the text must then show.
    special: bool

    def __init__(self) -> None: ...

    def feed(self, text: str) -> list[Piece]:
        """The text goes on with `text`."""
        ...

    def end(self) -> list[Piece]:
        """The text is over."""
        ...


def cut(text: str, marker: str) -> tuple[str, bool, str]:
    """(before the marker, whether it is there, behind it).

    When it is not there, what may be its beginning is kept back as the last part.
    """
    before, found, after = text.partition(marker)
    if found:
        return before, True, after
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return text[:-size], False, text[-size:]
    return text, False, ""
