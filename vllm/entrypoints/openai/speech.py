"""One answer of a chat as it comes: thoughts, content and tool calls, from the plain text."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from vllm.entrypoints.openai.reasoning import BEGIN, PARSERS, Reasoning
from vllm.entrypoints.openai.tools.choice import ToolChoice
from vllm.entrypoints.openai.tools.pieces import Arguments, Call, Content, Piece


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Said(msgspec.Struct, omit_defaults=True):
    """What one part of the text came to."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCallDelta] = []

    def joined(self, later: Said) -> Said:
        return Said(
            self.content + later.content,
            self.reasoning + later.reasoning,
            self.calls + later.calls,
        )


class Speech:
    """Feeds the text of one answer through the reasoning parser, then the tool parser.

    Where a grammar holds from the first token on (forced calls, structured outputs) there are no
    thoughts to look for.
    """

    def __init__(self, choice: ToolChoice, reasoning: str | None, prompt: str) -> None:
        self._choice = choice
        self._parser = choice.parser()
        self._reasoning = None
        if reasoning is not None and choice.structure is None:
            self._reasoning = Reasoning(PARSERS[reasoning] or prompt.rstrip().endswith(BEGIN))
        self._space = ""  # that may stand before a call, where it is not told
        self._index = -1  # of the call that is being read
        self._empty = False  # whether that has no arguments yet
        self._dropped = False  # whether that is one too many

    @property
    def called(self) -> bool:
        return self._index >= 0

    def feed(self, text: str) -> Said:
        if self._reasoning is None:
            return self._said("", text)
        thoughts, content = self._reasoning.feed(text)
        return self._said(thoughts, content)

    def end(self) -> Said:
        """The text is over."""
        thoughts, content = self._reasoning.end() if self._reasoning else ("", "")
        said = self._said(thoughts, content)
        if self._parser is not None:
            self._tell(self._parser.end(), said)
            self._close_call(said)
            if not self.called:
                said.content += self._space
        return said

    def finish_reason(self, reason: str | None) -> str | None:
        """A forced call of one named function ends with stop, as OpenAI's does."""
        if reason == "stop" and self.called and self._choice.kind != "named":
            return "tool_calls"
        return reason

    def _said(self, thoughts: str, content: str) -> Said:
        said = Said(reasoning=thoughts)
        if self._parser is None:
            said.content = content
        elif content:
            self._tell(self._parser.feed(content), said)
        return said

    def _tell(self, pieces: list[Piece], said: Said) -> None:
        for piece in pieces:
            if isinstance(piece, Call):
                self._close_call(said)
                self._dropped = not self._choice.parallel and self._index >= 0
                if self._dropped:
                    continue
                self._index += 1
                self._empty, self._space = True, ""
                function = FunctionDelta(name=piece.name, arguments="")
                id = f"chatcmpl-tool-{uuid.uuid4().hex}"
                said.calls.append(ToolCallDelta(self._index, id, "function", function))
            elif isinstance(piece, Arguments):
                if not self._dropped:
                    self._empty = False
                    self._argue(piece.text, said)
            elif isinstance(piece, Content):
                self._say(piece.text, said)

    def _argue(self, text: str, said: Said) -> None:
        said.calls.append(ToolCallDelta(self._index, function=FunctionDelta(arguments=text)))

    def _close_call(self, said: Said) -> None:
        """A call without arguments has an empty object of them."""
        if self._index >= 0 and self._empty:
            self._empty = False
            self._argue("{}", said)

    def _say(self, text: str, said: Said) -> None:
        """Content; the spaces at its end are kept back until more of it comes."""
        text = self._space + text
        told = text.rstrip()
        self._space = text[len(told) :]
        said.content += told


def merged(calls: list[ToolCallDelta]) -> list[dict[str, Any]]:
    """Whole calls, from what was told of them bit by bit."""
    whole: list[dict[str, Any]] = []
    for delta in calls:
        if delta.id is not None:
            whole.append(
                {"id": delta.id, "type": "function", "function": {"name": "", "arguments": ""}}
            )
        function = whole[delta.index]["function"]
        if delta.function is not None:
            function["name"] += delta.function.name or ""
            function["arguments"] += delta.function.arguments or ""
    return whole
