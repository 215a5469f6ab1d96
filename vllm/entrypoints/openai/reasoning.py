"""What a model thinks before it answers, told apart from the answer: `<think>…</think>`."""

from __future__ import annotations

from vllm.entrypoints.openai.tools.pieces import cut

BEGIN, END = "<think>", "</think>"
# Whether a text that shows no begin tag is thought: models whose template writes the tag, or that
# always think, leave it out.
PARSERS = {"deepseek_r1": True, "qwen3": False, "deepseek_v3": False, "think": False}


class Reasoning:
    """Splits a text that comes in parts.

    thinking: whether it begins inside of the thoughts already, as when the prompt ends with the
    begin tag.
    """

    def __init__(self, thinking: bool) -> None:
        self._thinking = thinking
        self._settled = False  # whether the text's first characters are a begin tag
        self._ended = False
        self._held = ""
        self._fresh = False  # at the beginning of thoughts or of what follows them

    def feed(self, text: str) -> tuple[str, str]:
        """(thoughts, content) of this part."""
        if self._ended:
            return "", self._trimmed(text)
        text = self._held + text
        self._held = ""
        if not self._settled:
            bare = text.lstrip()
            if len(bare) < len(BEGIN) and BEGIN.startswith(bare):
                self._held = text
                return "", ""
            self._settled = True
            if bare.startswith(BEGIN):
                self._thinking, text = True, bare.removeprefix(BEGIN)
            self._fresh = self._thinking
        if not self._thinking:
            self._ended = True
            return "", text
        before, self._ended, rest = cut(text, END)
        thoughts = self._trimmed(before)
        if not self._ended:
            self._held = rest
            return thoughts, ""
        self._fresh = True
        return thoughts, self._trimmed(rest)

    def end(self) -> tuple[str, str]:
        """The text is over."""
        held, self._held = self._held, ""
        return (held, "") if self._thinking else ("", held)

    def _trimmed(self, text: str) -> str:
        """Without the line breaks that stand at the beginning of a part."""
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        return text
