"""Old door: which chat template a transformers tokenizer would use."""

from __future__ import annotations

from typing import Any


def resolve_chat_template(
    tokenizer: Any,
    chat_template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    *,
    model_config: Any = None,
) -> str | None:
    """The template that is given, or the tokenizer's own; None when it has none.

    tokenizer: a transformers tokenizer. model_config: of no effect; the tokenizer says it all.
    """
    if chat_template is not None:
        return chat_template
    if tokenizer.chat_template is None:
        return None
    template: str = tokenizer.get_chat_template(None, tools=tools)
    return template


__all__ = ["resolve_chat_template"]
