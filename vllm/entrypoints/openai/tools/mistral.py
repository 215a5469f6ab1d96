"""`[TOOL_CALLS][{"name": …, "arguments": …}, …]`, or `[TOOL_CALLS]name{…}` since version 11.

The later form may write `[ARGS]` between the name and the arguments, and repeats the marker.
"""

from __future__ import annotations

import json

from vllm.entrypoints.openai.tools.pieces import Content, Piece, cut
from vllm.entrypoints.openai.tools.scan import CallList, CallScanner

MARKER, ARGS = "[TOOL_CALLS]", "[ARGS]"
MAX_NAME = 256


class Mistral:
    special = True  # both markers are special tokens

    def __init__(self) -> None:
        self._held = ""
        self._in_call = False  # behind a marker
        self._list: CallList | None = None
        self._scanner: CallScanner | None = None

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        text = self._held + text
        self._held = ""
        while text:
            if self._list is not None:
                more, text = self._list.feed(text)
                pieces += more
                if self._list.done:
                    self._list, self._in_call = None, False
            elif self._scanner is not None:
                text = self._arguments(text, pieces)
            elif self._in_call:
                if text.lstrip().startswith("["):
                    self._list = CallList()
                elif "{" not in text:
                    if len(text) > MAX_NAME:
                        pieces.append(Content(MARKER))
                        self._in_call = False
                        continue
                    self._held = text
                    break
                else:
                    name, _, rest = text.partition("{")
                    self._scanner, text = _named(name), "{" + rest
            else:
                before, self._in_call, text = cut(text, MARKER)
                if before:
                    pieces.append(Content(before))
                if not self._in_call:
                    self._held = text
                    break
        return pieces

    def _arguments(self, text: str, pieces: list[Piece]) -> str:
        """Feed the scanner up to the end of the arguments' object; returns what stands behind."""
        scanner = self._scanner
        assert scanner is not None
        for i, char in enumerate(text):
            more, _ = scanner.feed(char)
            pieces += more
            if scanner.broken or scanner.after_object:
                pieces += scanner.feed("}")[0]
                self._scanner, self._in_call = None, False
                return text[i + 1 :]
        return ""

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._list is not None:
            return self._list.end()
        if self._in_call and self._scanner is None:
            held = MARKER + held
        return [Content(held)] if held else []


def _named(name: str) -> CallScanner:
    """A scanner that has read the name and waits for the arguments."""
    name = name.strip().removesuffix(ARGS).strip()
    scanner = CallScanner()
    scanner.feed(f'{{"name": {json.dumps(name)}, "arguments": ')
    return scanner
