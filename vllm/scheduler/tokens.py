"""A sequence's tokens: the request's prompt as it is, and the output behind it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload


class Tokens(Sequence[int]):
    """One list of tokens to whoever reads it. Prompts are long, so this one is never copied."""

    __slots__ = ("_start", "output", "prompt")

    def __init__(self, prompt: list[int]) -> None:
        """prompt: nobody may change it from now on."""
        self.prompt = prompt
        self.output = array("i")
        self._start = len(prompt)

    def __len__(self) -> int:
        return self._start + len(self.output)

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> list[int]: ...

    def __getitem__(self, at: int | slice) -> int | list[int]:
        start = self._start
        if isinstance(at, slice):
            first, last, step = at.indices(len(self))
            if step != 1:
                return self.whole()[at]
            if last <= start:
                return self.prompt[first:last]
            return [*self.prompt[first:], *self.output[max(0, first - start) : last - start]]
        at = range(len(self))[at]
        return self.prompt[at] if at < start else self.output[at - start]

    def whole(self) -> list[int]:
        """All of them, in a list that the caller must not change."""
        return [*self.prompt, *self.output] if self.output else self.prompt
