"""Calls that a request forces: a grammar makes the model write them, so they need no markers."""

from __future__ import annotations

from vllm.entrypoints.openai.tools.pieces import Arguments, Call, Piece
from vllm.entrypoints.openai.tools.scan import CallList


class ForcedCall:
    """One named function: the whole text is its arguments."""

    special = False

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        if not text:
            return []
        pieces: list[Piece] = [] if self._begun else [Call(self._name)]
        self._begun = True
        return [*pieces, Arguments(text)]

    def end(self) -> list[Piece]:
        return []


class ForcedCalls:
    """`tool_choice: required`: the whole text is a JSON array of calls."""

    special = False

    def __init__(self) -> None:
        self._list = CallList()

    def feed(self, text: str) -> list[Piece]:
        return self._list.feed(text)[0]

    def end(self) -> list[Piece]:
        return self._list.end()
