"""POST /v1/messages through Anthropic's own client, and by hand where the client is in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .conftest import THINKS_AND_CALLS, THOUGHT_AND_CALL, Connect, real_server
from .fake_engine import CACHED, FakeEngine

ASK: Any = [{"role": "user", "content": "What is the code?"}]
LOOK: Any = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


@pytest.fixture
async def claude(engine: FakeEngine) -> AsyncIterator[anthropic.AsyncAnthropic]:
    args = ServerArgs(api_key=["sesame"], **THINKS_AND_CALLS)
    async with real_server(build_app(engine, args)) as url:
        yield anthropic.AsyncAnthropic(base_url=url, api_key="sesame", max_retries=0)


async def test_an_answer_whole_and_streamed(
    claude: anthropic.AsyncAnthropic, engine: FakeEngine
) -> None:
    engine.says = ["Hm.</think>", "Yes", ", it is."]
    asked: Any = {"model": "demo", "max_tokens": 9, "messages": ASK, "system": "Be brief."}
    whole = await claude.messages.create(**asked)
    assert [(b.type, getattr(b, "thinking", getattr(b, "text", ""))) for b in whole.content] == [
        ("thinking", "Hm."),
        ("text", "Yes, it is."),
    ]
    assert (whole.role, whole.stop_reason, whole.stop_sequence) == ("assistant", "end_turn", None)
    prompt = len(engine.asked[0].ids)
    assert whole.usage.input_tokens == prompt - CACHED
    assert whole.usage.cache_read_input_tokens == CACHED
    assert whole.usage.output_tokens == 3
    assert engine.prompt().startswith("<|bos|><|system|>Be brief.<|end|><|user|>What is")
    async with claude.messages.stream(**asked) as stream:
        texts = [text async for text in stream.text_stream]
        streamed = await stream.get_final_message()
    assert texts == ["Yes", ", it is."]
    assert [b.type for b in streamed.content] == ["thinking", "text"]
    assert streamed.content[1].text == "Yes, it is."  # type: ignore[union-attr]
    assert streamed.usage.output_tokens == 3 and streamed.stop_reason == "end_turn"


async def test_tools(claude: anthropic.AsyncAnthropic, engine: FakeEngine) -> None:
    engine.says = THOUGHT_AND_CALL
    asked: Any = {"model": "demo", "max_tokens": 9, "messages": ASK, "tools": [LOOK]}
    whole = await claude.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    call: Any = whole.content[-1]
    assert (call.name, call.input, whole.stop_reason) == ("look", {"a": 1}, "tool_use")
    async with claude.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert [b.to_dict() | {"id": ""} for b in streamed.content] == [
        b.to_dict() | {"id": ""} for b in whole.content
    ]
    back: Any = [
        *ASK,
        {"role": "assistant", "content": [b.to_dict() for b in whole.content]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": "The code"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    await claude.messages.create(**asked | {"messages": back})
    assert "<|tool|>The code<|end|><|user|>" in engine.prompt()
    engine.says = ['{"a": 2}']
    forced = await claude.messages.create(
        **asked | {"tool_choice": {"type": "tool", "name": "look"}}
    )
    assert forced.content[0].input == {"a": 2}  # type: ignore[union-attr]
    wish = engine.asked[-1].params.structured_outputs
    assert wish is not None and wish.json == LOOK["input_schema"]


async def test_counting(claude: anthropic.AsyncAnthropic, engine: FakeEngine) -> None:
    counted = await claude.messages.count_tokens(model="demo", messages=ASK, tools=[LOOK])
    await claude.messages.create(model="demo", max_tokens=2, messages=ASK, tools=[LOOK])
    assert counted.input_tokens == len(engine.asked[-1].ids)


async def test_how_it_ends(connect: Connect, engine: FakeEngine) -> None:
    client = connect()
    body = {"messages": ASK, "max_tokens": 3, "stop_sequences": ["."], "temperature": 0}
    answer = (await client.post("/v1/messages", json=body)).json()
    assert answer["stop_reason"] == "max_tokens"
    assert engine.asked[-1].params.stop == ["."] and engine.asked[-1].params.temperature == 0


async def test_errors_have_anthropics_shape(
    claude: anthropic.AsyncAnthropic, engine: FakeEngine
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        await claude.messages.create(model="demo", max_tokens=0, messages=ASK)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="none", max_tokens=1, messages=ASK)
    with pytest.raises(anthropic.AuthenticationError):
        await claude.with_options(api_key="wrong").messages.create(
            model="demo", max_tokens=1, messages=ASK
        )
    engine.fails, engine.fails_after = RuntimeError("broken"), 1
    with pytest.raises(anthropic.APIStatusError) as broken:
        async with claude.messages.stream(model="demo", max_tokens=5, messages=ASK) as stream:
            await stream.get_final_message()
    assert "api_error" in str(broken.value.body)
    engine.fails_after = 0
    with pytest.raises(anthropic.InternalServerError):
        async with claude.messages.stream(model="demo", max_tokens=5, messages=ASK) as stream:
            await stream.get_final_message()


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": ASK, "tools": [{"name": "a b", "input_schema": {}}]},
        {"messages": ASK, "max_tokens": "many"},
        {"messages": ASK, "system": [{"type": "image"}]},
        {"messages": ASK, "tool_choice": {"type": "perhaps"}},
    ],
)
async def test_bad_ones_are_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post("/v1/messages", json={"max_tokens": 2} | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
