"""Prompts and conversations in the shapes that `LLM`'s callers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.core.errors import VLLMValidationError

Prompts = str | dict[str, Any] | Sequence[int] | Sequence[str | dict[str, Any] | Sequence[int]]

# Methods of vLLM's `LLM` that this one lacks, and why.
_POOLING = "pooling models are not implemented"
ABSENT = {
    "classify": _POOLING,
    "embed": _POOLING,
    "encode": _POOLING,
    "reward": _POOLING,
    "score": _POOLING,
    "reset_mm_cache": "multimodal input is not implemented",
}


def refuse_lora(asked: Any) -> None:
    """Raises VLLMValidationError for a `lora_request`."""
    if asked is not None:
        raise VLLMValidationError("LoRA adapters are not implemented", parameter="lora_request")


def plain(conversation: Any) -> list[dict[str, Any]]:
    """The messages with their contents as text."""
    if not isinstance(conversation, (list, tuple)):
        raise VLLMValidationError("a conversation is a list of messages", parameter="messages")
    messages = []
    for message in conversation:
        if not isinstance(message, dict):
            raise VLLMValidationError(
                "a message is a dict with role and content", parameter="messages", value=message
            )
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            message = message | {"content": "\n".join(map(_part_text, content))}
        messages.append(message)
    return messages


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise VLLMValidationError(
            "only parts of type text are supported", parameter="messages", value=part
        )
    return text


def hinted(prompt: Any, hints: dict[str, Any]) -> Any:
    """The prompt with what all of its batch tell the cache; its own words win."""
    if not hints:
        return prompt
    if isinstance(prompt, dict):
        return hints | prompt
    return hints | {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt}


def as_list(prompts: Prompts) -> list[Any]:
    """One prompt or many: a list of ints is one prompt."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    batch = list(prompts)
    if batch and all(isinstance(token, int) for token in batch):
        return [batch]
    return batch
