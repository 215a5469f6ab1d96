"""POST /v1/responses through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from vllm.entrypoints.openai import responses_store
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .conftest import THINKS_AND_CALLS, THOUGHT_AND_CALL, real_server
from .fake_engine import CACHED, FakeEngine

LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


@pytest.fixture
async def ai(engine: FakeEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    args = ServerArgs(**THINKS_AND_CALLS)
    async with real_server(build_app(engine, args)) as url:
        yield openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_whole_and_streamed(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.says = ["Hm.</think>", "Yes", ", it is."]
    asked: Any = {"model": "demo", "input": "What is the code?", "instructions": "Be brief."}
    whole = await ai.responses.create(**asked)
    assert (whole.status, whole.output_text) == ("completed", "Yes, it is.")
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert engine.prompt().startswith("<|bos|><|system|>Be brief.<|end|><|user|>What is")
    assert whole.usage is not None
    assert whole.usage.input_tokens == len(engine.asked[0].ids)
    assert whole.usage.input_tokens_details.cached_tokens == CACHED
    assert whole.usage.output_tokens == 3
    kinds, text, final = [], "", None
    async for event in await ai.responses.create(stream=True, **asked):
        assert event.sequence_number == len(kinds)
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type == "response.completed":
            final = event.response
    assert text == final.output_text == "Yes, it is."  # type: ignore[union-attr]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_calls_and_what_follows_them(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.says = THOUGHT_AND_CALL
    asked: Any = {"model": "demo", "tools": [LOOK]}
    first = await ai.responses.create(input="What is the code?", **asked)
    call: Any = first.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "look", {"a": 1})
    arguments = ""
    async for event in await ai.responses.create(input="So?", stream=True, **asked):
        if event.type == "response.function_call_arguments.delta":
            arguments += event.delta
    assert arguments == '{"a": 1}'
    engine.says = ["</think>", "Done"]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "The code"}
    second = await ai.responses.create(input=[result], previous_response_id=first.id, **asked)
    assert second.output_text == "Done"
    assert "<|user|>What is the code?" in engine.prompt()
    assert engine.prompt().endswith("Well.<|end|><|tool|>The code<|end|><|assistant|>")
    by_hand: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the code?"}]},
        *(item.model_dump() for item in first.output),
        result,
    ]
    asked_before = engine.asked[-1].ids
    await ai.responses.create(input=by_hand, **asked)
    assert engine.asked[-1].ids == asked_before, "the items of the output are good as input"


async def test_a_schema(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.says = ['{"a": 1}']
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    answer = await ai.responses.create(model="demo", input="x", text=form)
    assert answer.output_text == '{"a": 1}'
    wish = engine.asked[-1].params.structured_outputs
    assert wish is not None and wish.json == schema


async def test_kept_ones(
    ai: openai.AsyncOpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses_store, "MAX_STORED", 3)
    made = [await ai.responses.create(model="demo", input="x", max_output_tokens=2) for _ in "1234"]
    assert made[0].status == "incomplete"
    assert made[0].incomplete_details.reason == "max_output_tokens"  # type: ignore[union-attr]
    assert (await ai.responses.retrieve(made[1].id)).output == made[1].output
    with pytest.raises(openai.NotFoundError):
        await ai.responses.retrieve(made[0].id)
    unkept = await ai.responses.create(model="demo", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        await ai.responses.create(model="demo", input="x", previous_response_id=unkept.id)


async def test_in_the_background(ai: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.delay = 0.02
    slow = await ai.responses.create(
        model="demo", input="x", background=True, max_output_tokens=500
    )
    assert slow.status == "queued"
    with pytest.raises(openai.BadRequestError):
        await ai.responses.create(model="demo", input="x", previous_response_id=slow.id)
    cancelled = await ai.responses.cancel(slow.id)
    assert cancelled.status == "cancelled"
    assert len(engine.aborted) == 1
    assert (await ai.responses.retrieve(slow.id)).status == "cancelled"
    quick = await ai.responses.create(model="demo", input="x", background=True, max_output_tokens=2)
    while (done := await ai.responses.retrieve(quick.id)).status in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
    assert done.status == "incomplete" and done.usage is not None
    engine.fails = RuntimeError("broken")
    broken = await ai.responses.create(model="demo", input="x", background=True)
    while (done := await ai.responses.retrieve(broken.id)).status in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
    assert done.status == "failed" and done.error is not None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "no"}}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 50_000}, "max_completion_tokens"),
        ({"background": True, "store": False}, "background"),
        ({"background": True, "stream": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "x"}}, "prompt"),
    ],
)
async def test_bad_ones_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/responses", json={"input": "x"} | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_what_is_not_there(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/v1/responses/x"), ("POST", "/v1/responses/x/cancel")):
        assert (await client.request(method, path)).status_code == 404
    done = (await client.post("/v1/responses", json={"input": "x"})).json()
    assert (await client.post(f"/v1/responses/{done['id']}/cancel")).status_code == 400
