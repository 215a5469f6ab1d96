"""GET /tokenizer_info: the tokenizer's configuration, for clients that render chats themselves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from vllm.entrypoints.openai.state import server_of

router = APIRouter()


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template that this server uses."""
    tokenizer = server_of(request).tokenizer()
    return tokenizer.config | {
        "chat_template": tokenizer.chat_template,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
    }
