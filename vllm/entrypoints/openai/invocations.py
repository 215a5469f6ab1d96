"""POST /invocations: SageMaker's one path; the body tells which endpoint is meant."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.body import JsonRoute
from vllm.entrypoints.openai.chat import create_chat_completion
from vllm.entrypoints.openai.completions import CompletionBody, create_completion
from vllm.entrypoints.openai.turn import ChatBody

router = APIRouter(route_class=JsonRoute)


@router.post("/invocations")
async def invocations(body: dict[str, Any], request: Request) -> Response:
    """A chat if there are messages, a completion if there is a prompt."""
    if "messages" in body:
        return await create_chat_completion(_read(ChatBody, body), request)
    if "prompt" in body:
        return await create_completion(_read(CompletionBody, body), request)
    raise VLLMValidationError("the body has neither messages nor prompt", parameter="prompt")


def _read(model: type[Any], body: dict[str, Any]) -> Any:
    assert issubclass(model, BaseModel)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        told = [item | {"loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(told) from error
