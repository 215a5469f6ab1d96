"""`protected_messages` and `shared_prefix`: where messages are in a prompt."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Literal

from vllm.core.compression import MAX_SPANS
from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.messages import Message

FIELD = "protected_messages"
Which = Literal["system"] | list[int]


def places(
    messages: list[Message],
    which: Which,
    text: str,
    render: Callable[[list[Message]], str],
    field: str = FIELD,
) -> list[tuple[int, int]]:
    """[start, end) in characters of the contents of `which` messages in the rendered `text`.

    which: indices of messages, or "system" for all system messages. render: messages -> text, as
    `text` was rendered; it is asked once more, with marks around the contents. Raises
    VLLMValidationError, naming the field.
    """
    if which == "system":
        which = [i for i, m in enumerate(messages) if m.role in ("system", "developer")]
    if len(which) > MAX_SPANS:
        raise VLLMValidationError(f"{field} takes at most {MAX_SPANS} messages", parameter=field)
    mark = f"<|{secrets.token_hex(8)}|>"  # which no client can have written
    marked, count = list(messages), 0
    for i in sorted(set(which)):
        if not 0 <= i < len(messages):
            raise VLLMValidationError(
                f"{field}: there is no message {i}, only 0 to {len(messages) - 1}",
                parameter=field,
                value=i,
            )
        content = messages[i].plain(f"messages.{i}").get("content") or ""
        core = content.strip()
        if core:  # inside its blanks, which templates may strip
            around = content.split(core, 1)
            wrapped = f"{around[0]}{mark}{core}{mark}{around[1]}"
            marked[i] = messages[i].model_copy(update={"content": wrapped})
            count += 1
    parts = render(marked).split(mark) if count else [text]
    if len(parts) != 2 * count + 1 or "".join(parts) != text:
        raise VLLMValidationError(
            f"{field}: the chat template does not show these messages once and as they are",
            parameter=field,
        )
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return [(ends[k], ends[k + 1]) for k in range(1, len(parts), 2)]


def leading(messages: list[Message]) -> list[int]:
    """The indices of the system messages that a conversation begins with."""
    roles = [message.role in ("system", "developer") for message in messages]
    return list(range([*roles, False].index(False)))
