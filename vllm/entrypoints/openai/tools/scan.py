"""A JSON object that is a call, read character by character."""

from __future__ import annotations

import json

from vllm.entrypoints.openai.tools.pieces import Arguments, Call, Content, Piece

_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"


class CallScanner:
    """Reads `{"name": …, "arguments" or "parameters": …}`, fields in any order.

    The arguments' text is passed on as it comes, once the name is known. Ends `done`, or `broken`
    when the text is no such object; `raw` is then all that was read.

        depth   0 | 1: between the object's fields | 2 and more: inside a field's value
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.done = self.broken = False
        self._raw: list[str] = []
        self._depth = 0
        self._in_string = self._escaped = False
        self._key: str | None = None
        self._value: list[str] = []  # the key or the value that is being read
        self._fresh: list[str] = []  # of the arguments, not passed on yet
        self._told = False

    @property
    def raw(self) -> str:
        return "".join(self._raw)

    @property
    def open(self) -> bool:
        """Whether a call was told of that has not ended."""
        return self._told and not self.done

    @property
    def after_object(self) -> bool:
        """Whether the field that is being read has ended as an object does."""
        return self._depth == 1 and self._value[-1:] == ["}"]

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """The pieces, and what stands behind the object's end."""
        rest = ""
        for i, char in enumerate(text):
            self._raw.append(char)
            self._step(char)
            if self.done or self.broken:
                rest = text[i + 1 :]
                break
        return self._pieces(), rest

    def _pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self.name is None or self.broken:
            return pieces
        if not self._told and (self._fresh or self.done):
            pieces.append(Call(self.name))
            self._told = True
        if self._fresh:
            pieces.append(Arguments("".join(self._fresh)))
            self._fresh = []
        return pieces

    def _step(self, char: str) -> None:
        if self._depth == 0:
            if char == "{":
                self._depth = 1
            elif char not in _SPACE:
                self.broken = True
        elif self._in_string:
            self._take(char)
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif self._depth == 1 and char in ":,}":
            self._end_part(char)
        elif self._depth > 1 or char not in _SPACE:
            if char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            self._take(char)
            self.broken |= self._depth == 0

    def _take(self, char: str) -> None:
        self._value.append(char)
        if self._key in _ARGUMENTS and self._value[0] != '"':
            self._fresh.append(char)

    def _end_part(self, char: str) -> None:
        """A key ends with a colon; a value with a comma or the object's end."""
        text, self._value = "".join(self._value), []
        try:
            if self._key is None:
                if char == "}" and not text and self.name is None:
                    raise ValueError("no name")
                if char == ":":
                    self._key = _string(text)
                elif char == "," or text:
                    raise ValueError("a key alone")
            elif char == ":":
                raise ValueError("two colons")
            else:
                if self._key == "name":
                    self.name = _string(text)
                elif self._key in _ARGUMENTS and text.startswith('"'):
                    self._fresh.append(_string(text))  # arguments as JSON in a string
                self._key = None
        except ValueError:
            self.broken = True
        if char == "}" and not self.broken:
            self.done, self.broken = self.name is not None, self.name is None


class CallList:
    """Reads calls that stand in a JSON array."""

    def __init__(self) -> None:
        self.done = False
        self._scanner: CallScanner | None = None
        self._begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """The pieces, and what stands behind the array's end."""
        pieces: list[Piece] = []
        while text and not self.done:
            if self._scanner is None:
                char, text = text[0], text[1:]
                if char == "[" and not self._begun:
                    self._begun = True
                elif char == "]":
                    self.done = True
                elif char == "{":
                    self._scanner, text = CallScanner(), "{" + text
                elif char not in _SPACE + ",":
                    self.done = True
                    return [*pieces, Content(char)], text
                continue
            more, text = self._scanner.feed(text)
            pieces += more
            if self._scanner.broken:
                self.done = True
                return [*pieces, Content(self._scanner.raw)], text
            if self._scanner.done:
                self._scanner = None
        return pieces, text

    def end(self) -> list[Piece]:
        """What was read of a call that has no name yet is content."""
        scanner = self._scanner
        if scanner is None or scanner.open:
            return []
        return [Content(scanner.raw)]


def _string(text: str) -> str:
    value = json.loads(text)
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value
