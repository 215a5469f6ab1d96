"""`protected_messages`: messages whose tokens compression never takes."""

from __future__ import annotations

from typing import Any, Literal

from vllm.core.compression import MAX_SPANS
from vllm.core.errors import VLLMValidationError
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.openai.messages import Message

FIELD = "protected_messages"
Which = Literal["system"] | list[int]
# Stand around a message's content while it is rendered once more, to see where it went.
_BEGINS, _ENDS = "<|protected from here|>", "<|protected to here|>"


def protected_spans(
    tokenizer: Tokenizer,
    messages: list[Message],
    which: Which,
    text: str,
    render: Any,
    *,
    add_special_tokens: bool,
) -> list[tuple[int, int]]:
    """[start, end) in tokens of the content of each of `which` messages in the rendered `text`.

    which: indices of messages, or "system" for all system messages. render: messages -> text, as
    `text` was rendered. Raises VLLMValidationError, naming protected_messages.
    """
    if which == "system":
        which = [i for i, m in enumerate(messages) if m.role in ("system", "developer")]
    if len(which) > MAX_SPANS:
        raise VLLMValidationError(f"{FIELD} takes at most {MAX_SPANS} messages", parameter=FIELD)
    spans = []
    for i in sorted(set(which)):
        if not 0 <= i < len(messages):
            raise VLLMValidationError(
                f"{FIELD}: there is no message {i}, only 0 to {len(messages) - 1}",
                parameter=FIELD,
                value=i,
            )
        start, end = _place(messages, i, text, render)
        tokens = tokenizer.span(text, start, end, add_special_tokens=add_special_tokens)
        if tokens[0] < tokens[1]:
            spans.append(tokens)
    return spans


def _place(messages: list[Message], i: int, text: str, render: Any) -> tuple[int, int]:
    """Where message i's content stands in `text`, in characters."""
    content = messages[i].plain(f"messages.{i}")["content"].strip()
    marked = messages[i].model_copy(update={"content": f"{_BEGINS}{content}{_ENDS}"})
    shown = render([*messages[:i], marked, *messages[i + 1 :]])
    before, begins, rest = shown.partition(_BEGINS)
    inside, ends, after = rest.partition(_ENDS)
    around = text.startswith(before) and text.endswith(after)
    if not (begins and ends and around and inside in text[len(before) :]):
        raise VLLMValidationError(
            f"{FIELD}: the chat template does not show message {i} as it is",
            parameter=FIELD,
            value=i,
        )
    start = text.index(inside, len(before))
    return start, start + len(inside)
