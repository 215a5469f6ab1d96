"""An answer as a row of blocks, one after the other: thoughts, text, calls.

Anthropic's messages and OpenAI's responses tell answers like this, where chat completions tell them
as fields of one message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vllm.entrypoints.openai.speech import Said


@dataclass(slots=True)
class Block:
    kind: Literal["reasoning", "text", "call"]
    index: int
    call_id: str = ""
    name: str = ""  # of the function that is called
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Thoughts, content, or a call's arguments as JSON."""
        return "".join(self.parts)


Change = tuple[Literal["begin", "more", "end"], Block, str]


class Blocks:
    """Turns what was said, part by part, into changes: a block begins, grows, or ends."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    def feed(self, said: Said) -> list[Change]:
        changes: list[Change] = []
        if said.reasoning:
            self._grow(changes, "reasoning", said.reasoning)
        if said.content:
            self._grow(changes, "text", said.content)
        for call in said.calls:
            if call.id is not None:
                self._close(changes)
                name = call.function.name if call.function else ""
                self._begin(changes, Block("call", len(self.all), call.id, name or ""))
            if call.function is not None and call.function.arguments:
                self._grow(changes, "call", call.function.arguments)
        return changes

    def end(self) -> list[Change]:
        changes: list[Change] = []
        self._close(changes)
        return changes

    def _grow(
        self, changes: list[Change], kind: Literal["reasoning", "text", "call"], text: str
    ) -> None:
        if self._open is None or self._open.kind != kind:
            self._close(changes)
            self._begin(changes, Block(kind, len(self.all)))
        assert self._open is not None
        self._open.parts.append(text)
        changes.append(("more", self._open, text))

    def _begin(self, changes: list[Change], block: Block) -> None:
        self.all.append(block)
        self._open = block
        changes.append(("begin", block, ""))

    def _close(self, changes: list[Change]) -> None:
        if self._open is not None:
            changes.append(("end", self._open, ""))
            self._open = None
