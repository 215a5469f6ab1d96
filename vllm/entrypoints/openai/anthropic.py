"""POST /v1/messages and /v1/messages/count_tokens: chats in Anthropic's shape."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm.entrypoints.openai.anthropic_body import CountBody, MessagesBody
from vllm.entrypoints.openai.blocks import Block, Blocks, Change
from vllm.entrypoints.openai.body import HintedRoute, json_response
from vllm.entrypoints.openai.compression import usage_field
from vllm.entrypoints.openai.errors import ClientGone, describe
from vllm.entrypoints.openai.fanout import gather
from vllm.entrypoints.openai.sse import EventStream, named_event
from vllm.entrypoints.openai.state import request_id, server_of
from vllm.entrypoints.openai.turn import Turn
from vllm.outputs import CompletionOutput

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
_KINDS |= {413: "request_too_large", 503: "overloaded_error"}


def _envelope(error: BaseException) -> tuple[int, dict[str, Any]]:
    status, said = describe(error)
    kind = _KINDS.get(status, "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": said["error"]["message"]}}


def _refusal(error: BaseException) -> Response:
    status, body = _envelope(error)
    return json_response(body, status)


class _Route(HintedRoute):
    """Errors in Anthropic's envelope."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientGone:
                raise
            except Exception as error:
                return _refusal(error)

        return answer


router = APIRouter(route_class=_Route)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountBody, request: Request) -> dict[str, int]:
    server = server_of(request)
    server.check_model(body.model)
    turn = await Turn.begin(server, body.chat(max_tokens=1, tool_choice="none"), "count")
    return {"input_tokens": len(turn.job.prompt_token_ids)}


@router.post("/v1/messages")
async def create_message(body: MessagesBody, request: Request) -> Response:
    server = server_of(request)
    model = server.check_model(body.model)
    id = f"msg_{request_id(request, None)}"
    turn = await Turn.begin(server, body.whole_chat(), id)
    if body.stream:
        return _Stream(_events(turn, id, model), server.running, done=b"")
    [result] = await server.attend(request, gather([server.outputs(turn.job)]))
    [output] = result.outputs
    speech, blocks = turn.speech(), Blocks()
    blocks.feed(speech.feed(output.text))
    blocks.feed(speech.end())
    message = _opening(id, model, [_whole(block) for block in blocks.all])
    reason = speech.finish_reason(output.finish_reason)
    message |= _ending(output, reason, called=speech.called)
    message["usage"] = _usage(
        len(turn.job.prompt_token_ids), len(output.token_ids), result.num_cached_tokens or 0
    ) | usage_field(output)
    return json_response(message)


class _Stream(EventStream):
    @staticmethod
    def failure(error: BaseException) -> bytes:
        return named_event("error", _envelope(error)[1])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except Exception as error:  # before the stream began
            await _refusal(error)(scope, receive, send)


def _opening(id: str, model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _ending(output: CompletionOutput, reason: str | None, *, called: bool) -> dict[str, Any]:
    if called and reason != "length":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(output.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": output.stop_reason}
    return {
        "stop_reason": "max_tokens" if reason == "length" else "end_turn",
        "stop_sequence": None,
    }


def _usage(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    """Anthropic counts tokens that were read from the cache apart."""
    return {
        "input_tokens": prompt - cached,
        "output_tokens": generated,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "call":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
    return {"type": "text", "text": ""}


def _whole(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    try:
        given = json.loads(block.text)
    except (ValueError, RecursionError):
        given = None  # cut off by max_tokens
    return _empty(block) | {"input": given if isinstance(given, dict) else {}}


def _told(change: Change) -> bytes:
    what, block, text = change
    if what == "begin":
        started = {"index": block.index, "content_block": _empty(block)}
        return named_event("content_block_start", started)
    if what == "end":
        return named_event("content_block_stop", {"index": block.index})
    kind, field = {
        "reasoning": ("thinking_delta", "thinking"),
        "text": ("text_delta", "text"),
        "call": ("input_json_delta", "partial_json"),
    }[block.kind]
    delta = {"type": kind, field: text}
    return named_event("content_block_delta", {"index": block.index, "delta": delta})


async def _events(turn: Turn, id: str, model: str) -> AsyncGenerator[bytes, None]:
    speech, blocks = turn.speech(), Blocks()
    prompt, cached, generated, begun = len(turn.job.prompt_token_ids), 0, 0, False
    async with aclosing(turn.server.outputs(turn.job)) as results:
        async for result in results:
            cached = max(cached, result.num_cached_tokens or 0)
            [output] = result.outputs
            generated += len(output.token_ids)
            if not begun:
                begun = True
                message = _opening(id, model, []) | {"usage": _usage(prompt, 0, cached)}
                yield named_event("message_start", {"message": message})
            for change in blocks.feed(speech.feed(output.text)):
                yield _told(change)
            if output.finish_reason is None:
                continue
            for change in blocks.feed(speech.end()) + blocks.end():
                yield _told(change)
            reason = speech.finish_reason(output.finish_reason)
            ended = {
                "delta": _ending(output, reason, called=speech.called),
                "usage": _usage(prompt, generated, cached) | usage_field(output),
            }
            yield named_event("message_delta", ended)
    yield named_event("message_stop", {})
