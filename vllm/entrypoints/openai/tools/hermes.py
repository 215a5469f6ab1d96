"""`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes 2 Pro, Qwen 2.5 and 3."""

from __future__ import annotations

from vllm.entrypoints.openai.tools.pieces import Content, Piece, cut
from vllm.entrypoints.openai.tools.scan import CallScanner

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    special = True  # some vocabularies mark the tags as special

    def __init__(self) -> None:
        self._held = ""  # not decided yet
        self._scanner: CallScanner | None = None
        self._closing = False  # behind a call's object, before its end tag

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        text = self._held + text
        self._held = ""
        while text:
            if self._scanner is not None:
                more, text = self._scanner.feed(text)
                pieces += more
                if self._scanner.broken:
                    pieces += self._give_up()
                elif self._scanner.done:
                    self._scanner, self._closing = None, True
                continue
            before, found, rest = cut(text, END if self._closing else BEGIN)
            if before and not self._closing:
                pieces.append(Content(before))
            if not found:
                self._held = rest
                break
            text = rest
            if self._closing:
                self._closing = False
            else:
                self._scanner = CallScanner()
        return pieces

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._scanner is not None:
            return self._give_up()
        return [Content(held)] if held and not self._closing else []

    def _give_up(self) -> list[Piece]:
        """It was no call: it is content, unless its beginning was told as a call already."""
        scanner, self._scanner = self._scanner, None
        assert scanner is not None
        return [] if scanner.open else [Content(BEGIN + scanner.raw)]
