"""POST /v1/responses, GET and POST cancel of one: chats in the shape of OpenAI's responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from vllm.core.errors import VLLMValidationError
from vllm.entrypoints.openai.blocks import Block, Blocks, Change
from vllm.entrypoints.openai.body import HintedRoute, json_response
from vllm.entrypoints.openai.compression import usage_field
from vllm.entrypoints.openai.errors import ApiError, describe
from vllm.entrypoints.openai.responses_body import ResponsesBody, read_input
from vllm.entrypoints.openai.responses_store import Store, Stored, store_of
from vllm.entrypoints.openai.sse import EventStream, named_event
from vllm.entrypoints.openai.state import request_id, server_of
from vllm.entrypoints.openai.turn import Turn

router = APIRouter(route_class=HintedRoute)

MAX_BACKGROUND = 256


@router.post("/v1/responses")
async def create_response(body: ResponsesBody, request: Request) -> Response:
    server = server_of(request)
    model = server.check_model(body.model)
    store = store_of(request)
    history: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        before = store.get(body.previous_response_id, "previous_response_id")
        if before.task is not None:
            raise VLLMValidationError(
                "the previous response is not finished", parameter="previous_response_id"
            )
        history = before.messages
    history = history + read_input(body.input)
    id = f"resp_{request_id(request, None)}"
    turn = await Turn.begin(server, body.chat(history), id)
    answer = _Answer(turn, _shell(body, id, model), history)
    if body.background:
        return json_response(_in_background(store, answer))
    if body.stream:
        return EventStream(_streamed(answer, store, body.store), server.running, done=b"")
    await server.attend(request, answer.run())
    if body.store:
        store.put(answer.stored())
    return json_response(answer.response)


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, request: Request) -> Response:
    return json_response(store_of(request).get(response_id).response)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, request: Request) -> Response:
    stored = store_of(request).get(response_id)
    if not stored.response["background"]:
        raise VLLMValidationError(
            "only background responses can be cancelled", parameter="response_id"
        )
    if stored.task is not None:
        stored.task.cancel()
        await asyncio.wait({stored.task})
    return json_response(stored.response)


def _shell(body: ResponsesBody, id: str, model: str) -> dict[str, Any]:
    """The response before anything is in it."""
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}}
        if body.text is None
        else body.text.model_dump(by_alias=True, exclude_none=True),
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


class _Answer:
    """Generates one response; its events are made on the way."""

    def __init__(
        self, turn: Turn, response: dict[str, Any], messages: list[dict[str, Any]]
    ) -> None:
        self.response = response
        self._turn, self._messages = turn, messages
        self._blocks = Blocks()

    def stored(self) -> Stored:
        said = {"role": "assistant", "content": ""}
        calls = []
        for block in self._blocks.all:
            if block.kind == "text":
                said["content"] += block.text
            elif block.kind == "call":
                function = {"name": block.name, "arguments": block.text}
                calls.append({"id": block.call_id, "type": "function", "function": function})
        more: dict[str, Any] = said | ({"tool_calls": calls} if calls else {})
        return Stored(self.response, [*self._messages, more])

    async def run(self) -> None:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass

    async def events(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Each event's type and fields."""
        turn, speech = self._turn, self._turn.speech()
        prompt, cached, generated, begun = len(turn.job.prompt_token_ids), 0, 0, False
        async with aclosing(turn.server.outputs(turn.job)) as results:
            async for result in results:
                if not begun:
                    begun = True
                    for kind in ("response.created", "response.in_progress"):
                        yield kind, {"response": self.response}
                cached = max(cached, result.num_cached_tokens or 0)
                [output] = result.outputs
                generated += len(output.token_ids)
                for change in self._blocks.feed(speech.feed(output.text)):
                    for told in self._told(change):
                        yield told
                if output.finish_reason is None:
                    continue
                for change in self._blocks.feed(speech.end()) + self._blocks.end():
                    for told in self._told(change):
                        yield told
                whole = output.finish_reason != "length"
                self.response |= {
                    "status": "completed" if whole else "incomplete",
                    "incomplete_details": None if whole else {"reason": "max_output_tokens"},
                    "output": [self._item(block, "completed") for block in self._blocks.all],
                    "usage": {
                        "input_tokens": prompt,
                        "input_tokens_details": {"cached_tokens": cached},
                        "output_tokens": generated,
                        "output_tokens_details": {"reasoning_tokens": 0},
                        "total_tokens": prompt + generated,
                    }
                    | usage_field(output),
                }
        yield f"response.{self.response['status']}", {"response": self.response}

    def _item_id(self, block: Block) -> str:
        prefix = {"reasoning": "rs", "text": "msg", "call": "fc"}[block.kind]
        return f"{prefix}_{self.response['id'].removeprefix('resp_')}_{block.index}"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        done = status == "completed"
        if block.kind == "reasoning":
            part = {"type": "reasoning_text", "text": block.text}
            return item | {"type": "reasoning", "summary": [], "content": [part] if done else []}
        if block.kind == "call":
            return item | {
                "type": "function_call",
                "call_id": block.call_id,
                "name": block.name,
                "arguments": block.text if done else "",
            }
        content = [_output_text(block.text)] if done else []
        return item | {"type": "message", "role": "assistant", "content": content}

    def _told(self, change: Change) -> list[tuple[str, dict[str, Any]]]:
        what, block, text = change
        at = {"output_index": block.index}
        part = {"item_id": self._item_id(block), **at, "content_index": 0}
        if what == "begin":
            item = {"item": self._item(block, "in_progress"), **at}
            told = [("response.output_item.added", item)]
            if block.kind == "text":
                told.append(("response.content_part.added", {**part, "part": _output_text("")}))
            return told
        done = what == "end"
        if block.kind == "call":
            kind, body = "response.function_call_arguments", {"item_id": part["item_id"], **at}
            ended = {"arguments": block.text, "name": block.name}
        else:
            kind = f"response.{'output' if block.kind == 'text' else 'reasoning'}_text"
            body, ended = part, {"text": block.text}
        if block.kind == "text":
            body = {**body, "logprobs": []}
        if not done:
            return [(f"{kind}.delta", {**body, "delta": text})]
        told = [(f"{kind}.done", {**body, **ended})]
        if block.kind == "text":
            told.append(("response.content_part.done", {**part, "part": _output_text(block.text)}))
        item = {"item": self._item(block, "completed"), **at}
        return [*told, ("response.output_item.done", item)]


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _streamed(
    answer: _Answer, store: Store, keep: bool | None
) -> AsyncGenerator[bytes, None]:
    number = 0
    async with aclosing(answer.events()) as events:
        async for kind, told in events:
            yield named_event(kind, {"sequence_number": number} | told)
            number += 1
    if keep:
        store.put(answer.stored())


def _in_background(store: Store, answer: _Answer) -> dict[str, Any]:
    """Start it; what it comes to is asked for by its id. Raises the 503 for one too many."""
    if store.running >= MAX_BACKGROUND:
        raise ApiError(503, f"There are {MAX_BACKGROUND} background responses already.")
    stored = Stored(answer.response | {"status": "queued"}, [])

    async def work() -> None:
        try:
            await answer.run()
        except asyncio.CancelledError:
            answer.response["status"] = "cancelled"
        except Exception as error:
            message = describe(error)[1]["error"]["message"]
            answer.response |= {
                "status": "failed",
                "error": {"code": "server_error", "message": message},
            }
        finished = answer.stored()
        stored.response, stored.messages, stored.task = finished.response, finished.messages, None
        store.put(stored)

    stored.task = asyncio.create_task(work())
    store.put(stored)
    return stored.response
