"""`{"name": …, "parameters": …}` as the whole answer: Llama 3.1 and later.

Several calls are parted by semicolons; `<|python_tag|>` may stand in front.
"""

from __future__ import annotations

from vllm.entrypoints.openai.tools.pieces import Content, Piece
from vllm.entrypoints.openai.tools.scan import CallScanner

TAG = "<|python_tag|>"


class Llama3Json:
    special = True  # the tag is a special token

    def __init__(self) -> None:
        self._held = ""
        self._scanner: CallScanner | None = None
        self._plain = False  # all that comes is content

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        text = self._held + text
        self._held = ""
        while text:
            if self._plain:
                return [*pieces, Content(text)]
            if self._scanner is None:
                bare = text.lstrip(" \t\r\n;")
                if TAG.startswith(bare) and bare != TAG:
                    self._held = text
                    return pieces
                if not bare.removeprefix(TAG).lstrip():
                    self._held = text  # the tag alone
                    return pieces
                bare = bare.removeprefix(TAG).lstrip()
                if bare.startswith("{"):
                    self._scanner, text = CallScanner(), bare
                else:
                    self._plain = True
                continue
            more, text = self._scanner.feed(text)
            pieces += more
            if self._scanner.broken:
                self._plain = True
                if not self._scanner.open:
                    pieces.append(Content(self._scanner.raw))
                self._scanner = None
            elif self._scanner.done:
                self._scanner = None
        return pieces

    def end(self) -> list[Piece]:
        held, self._held = self._held, ""
        scanner, self._scanner = self._scanner, None
        if scanner is not None and not scanner.open:
            held = scanner.raw
        return [Content(held)] if held.strip() else []
