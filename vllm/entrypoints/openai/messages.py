"""A conversation as clients send it, and as chat templates want it."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.state import Server

MAX_TEMPLATE_KWARGS, MAX_KWARG_CHARS = 16, 1024

# Names that templates and their renderer give a meaning; a client may not set them this way.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "eos_token",
        "messages",
        "pad_token",
        "raise_exception",
        "return_dict",
        "self",
        "strftime_now",
        "tokenize",
        "tools",
        "unk_token",
    }
)

Scalar = str | bool | int | float | None


class Part(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """Fields that are not declared go to the template as they are."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user", "assistant", "developer", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def plain(self, at: str) -> dict[str, Any]:
        """What a template sees. `at` is where the message stands, for the error."""
        message = self.model_dump(exclude_unset=True, exclude={"content", "tool_calls"})
        message["content"] = self._text(at)
        if self.tool_calls:
            message["tool_calls"] = [_parsed(call) for call in self.tool_calls]
        return message

    def _text(self, at: str) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        texts = []
        for i, part in enumerate(self.content):
            if part.type != "text":
                raise VLLMValidationError(
                    f"content of type {part.type[:64]!r} is not supported, only text",
                    parameter=f"{at}.content.{i}.type",
                )
            if part.text is None:
                raise VLLMValidationError("text is missing", parameter=f"{at}.content.{i}.text")
            texts.append(part.text)
        return "\n".join(texts)


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object, as templates expect; clients send JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}}


def render(
    server: Server,
    messages: list[Message],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    tools: list[dict[str, Any]] | None,
    kwargs: dict[str, Scalar] | None,
    documents: list[dict[str, Any]] | None = None,
) -> str:
    """The prompt's text. Raises VLLMValidationError."""
    check_kwargs(kwargs)
    more: dict[str, Any] = dict(kwargs or {})
    if documents:
        more["documents"] = documents
    plain = [message.plain(f"messages.{i}") for i, message in enumerate(messages)]
    more |= {
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "tools": tools,
    }
    tokenizer = server.tokenizer()
    try:
        return tokenizer.render_chat(plain, **more)
    except VLLMValidationError:
        # A developer is who was called system before; many templates know only that word.
        older = [m | {"role": "system"} if m["role"] == "developer" else m for m in plain]
        if older == plain:
            raise
        return tokenizer.render_chat(older, **more)


def check_kwargs(kwargs: dict[str, Scalar] | None) -> None:
    """A few scalars under names that are the template's own. Raises VLLMValidationError."""
    if len(kwargs or {}) > MAX_TEMPLATE_KWARGS:
        raise VLLMValidationError(
            f"chat_template_kwargs takes at most {MAX_TEMPLATE_KWARGS} entries",
            parameter="chat_template_kwargs",
        )
    for name, value in (kwargs or {}).items():
        if name in _RESERVED or not name.isidentifier() or name.startswith("_"):
            raise VLLMValidationError(
                f"chat_template_kwargs may not set {name[:64]!r}", parameter="chat_template_kwargs"
            )
        if isinstance(value, str) and len(value) > MAX_KWARG_CHARS:
            raise VLLMValidationError(
                f"a value in chat_template_kwargs may have at most {MAX_KWARG_CHARS} characters",
                parameter="chat_template_kwargs",
            )
