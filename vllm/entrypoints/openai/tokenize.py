"""POST /tokenize and /detokenize: text to token ids and back, as the model sees them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import Field

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.body import JsonRoute
from vllm.entrypoints.openai.messages import Message, Scalar, render
from vllm.entrypoints.openai.protocol import Body, TokenId
from vllm.entrypoints.openai.state import server_of

router = APIRouter(route_class=JsonRoute)


class TokenizeBody(Body):
    """Either `prompt` or `messages`."""

    refused: ClassVar = {"chat_template": (), "mm_processor_kwargs": ()}

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # default: true for a prompt, false for messages
    return_token_strs: bool | None = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Scalar] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeBody(Body):
    tokens: list[TokenId]


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    server = server_of(request)
    server.check_model(body.model)
    body.refuse_unsupported()
    if (body.prompt is None) == (body.messages is None):
        raise VLLMValidationError("give either prompt or messages", parameter="prompt")
    text = body.prompt
    if text is None:
        text = render(
            server,
            body.messages or [],
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            tools=body.tools,
            kwargs=body.chat_template_kwargs,
        )
    special = body.add_special_tokens
    special = body.messages is None if special is None else special
    ids = await server.encode(text, add_special_tokens=special)
    tokenizer = server.tokenizer()
    return {
        "count": len(ids),
        "max_model_len": server.engine.max_model_len,
        "tokens": ids,
        "token_strs": [tokenizer.token(i) for i in ids] if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    server = server_of(request)
    server.check_model(body.model)
    tokenizer = server.tokenizer()
    size = server.engine.config.model.vocab_size
    for i, token in enumerate(body.tokens):
        if token >= size:
            raise VLLMValidationError(
                f"token id {token} is out of vocabulary (size {size})", parameter=f"tokens.{i}"
            )
    return {"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)}
