"""Tool calls and thoughts in chats: whole, streamed, and through OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from vllm.entrypoints.server_args import ServerArgs

from .conftest import CALLS, THINKS_AND_CALLS, Connect, events
from .fake_engine import FakeEngine

USER = {"role": "user", "content": "What is the code?"}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
SAYS = [
    "Well. ",
    "\n<tool",
    "_call>",
    '{"name": "look", "arg',
    'uments": {"a"',
    ": 1}}",
    "</tool_call>",
]


async def ask(client: httpx.AsyncClient, status: int = 200, **body: Any) -> Any:
    body = {"messages": [USER], "max_tokens": 20} | body
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == status, response.text
    return events(response.text) if body.get("stream") and status == 200 else response.json()


def together(chunks: list[Any]) -> tuple[dict[str, Any], str | None]:
    """The message that a stream's deltas make, and why it ended."""
    message: dict[str, Any] = {"content": ""}
    reason = None
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            if delta.get("reasoning"):
                message["reasoning"] = message.get("reasoning", "") + delta["reasoning"]
                assert delta["reasoning_content"] == delta["reasoning"]
            for call in delta.get("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if call.get("id"):
                    assert call["index"] == len(calls) and call["type"] == "function"
                    calls.append({"name": call["function"]["name"], "arguments": ""})
                calls[call["index"]]["arguments"] += call["function"].get("arguments", "")
            reason = choice["finish_reason"] or reason
    return message, reason


async def both(client: httpx.AsyncClient, **body: Any) -> tuple[dict[str, Any], str | None]:
    """An answer, which streamed is the same."""
    [choice] = (await ask(client, **body))["choices"]
    message = choice["message"]
    whole = {"content": message["content"] or ""}
    if "reasoning" in message:
        whole["reasoning"] = message["reasoning"]
    if "tool_calls" in message:
        assert all(call["id"] and call["type"] == "function" for call in message["tool_calls"])
        whole["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    assert together(await ask(client, stream=True, **body)) == (whole, choice["finish_reason"])
    return whole, choice["finish_reason"]


@pytest.fixture
def tooled(connect: Connect) -> httpx.AsyncClient:
    return connect(**CALLS)


async def test_the_model_calls(tooled: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = SAYS
    message, reason = await both(tooled, tools=[LOOK])
    assert message["tool_calls"] == [{"name": "look", "arguments": '{"a": 1}'}]
    assert (message["content"], reason) == ("Well.", "tool_calls")
    assert not engine.asked[-1].params.skip_special_tokens
    whole = await ask(tooled, tools=[LOOK])
    assert set(whole["choices"][0]["message"]) == {"role", "content", "tool_calls"}


async def test_the_model_need_not_call(tooled: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = ["No ", "call \n"]
    message, reason = await both(tooled, tools=[LOOK])
    assert message == {"content": "No call \n"} and reason == "stop"
    engine.says = SAYS
    message, _ = await both(tooled, tools=[LOOK], tool_choice="none")
    assert message == {"content": "".join(SAYS)}
    message, _ = await both(tooled)
    assert message == {"content": "".join(SAYS)}


async def test_one_call_where_more_are_not_wanted(
    tooled: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.says = [*SAYS, *SAYS[1:]]
    message, _ = await both(tooled, tools=[LOOK])
    assert len(message["tool_calls"]) == 2
    message, _ = await both(tooled, tools=[LOOK], parallel_tool_calls=False)
    assert message["tool_calls"] == [{"name": "look", "arguments": '{"a": 1}'}]


async def test_forced_calls_have_a_grammar(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = ['{"a"', ": 1}"]
    named = {"type": "function", "function": {"name": "look"}}
    message, reason = await both(client, tools=[LOOK], tool_choice=named)
    assert message["tool_calls"] == [{"name": "look", "arguments": '{"a": 1}'}]
    assert reason == "stop"
    wish = engine.asked[-1].params.structured_outputs
    assert wish is not None and wish.json == LOOK["function"]["parameters"]  # type: ignore[index]
    engine.says = [
        '[{"name": "look", "para',
        'meters": {"a": 1}}, {"name": "look", ',
        '"parameters": {}}]',
    ]
    message, reason = await both(client, tools=[LOOK], tool_choice="required")
    assert [json.loads(call["arguments"]) for call in message["tool_calls"]] == [{"a": 1}, {}]
    assert (message["content"], reason) == ("", "tool_calls")


async def test_thoughts_are_told_apart(connect: Connect, engine: FakeEngine) -> None:
    client = connect(reasoning_parser="qwen3")
    engine.says = ["<th", "ink>\nHm", "m.\n</thi", "nk>\n\n", "Yes", " \n"]
    message, reason = await both(client)
    assert message == {"content": "Yes \n", "reasoning": "Hmm.\n"} and reason == "stop"
    assert "reasoning" not in (await both(client, include_reasoning=False))[0]
    engine.says = ["Yes", " <think>"]
    assert (await both(client))[0] == {"content": "Yes <think>"}
    engine.says = ["Hm", "m.</think>", "Yes"]
    assert (await both(client))[0]["content"] == "Hmm.</think>Yes", "qwen3 shows its begin tag"
    always = connect(reasoning_parser="deepseek_r1")
    assert (await both(always))[0] == {"content": "Yes", "reasoning": "Hmm."}
    engine.says = ["Hm", "m"]
    assert (await both(always))[0] == {"content": "", "reasoning": "Hmm"}
    both_parsers = connect(**THINKS_AND_CALLS)
    engine.says = ["<tool_call> is a tag</think>", *SAYS]
    message, reason = await both(both_parsers, tools=[LOOK])
    assert message["reasoning"] == "<tool_call> is a tag"
    assert len(message["tool_calls"]) == 1 and reason == "tool_calls"


async def test_length_is_told_before_calls(tooled: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = [*SAYS, "x", "x"]
    message, reason = await both(tooled, tools=[LOOK], max_tokens=5)
    assert message["tool_calls"] == [{"name": "look", "arguments": '{"a"'}]
    assert reason == "length"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [LOOK]}, "tools"),
        ({"tools": [LOOK], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web"}], "tool_choice": "none"}, "tools.0.type"),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "tools.0.function"),
        (
            {"tools": [{"function": {"name": "a b"}}], "tool_choice": "none"},
            "tools.0.function.name",
        ),
        (
            {"tools": [{"function": {"name": "a", "parameters": 1}}], "tool_choice": "none"},
            "tools.0.function.parameters",
        ),
        ({"tools": [LOOK] * 129, "tool_choice": "none"}, "tools"),
        (
            {
                "tools": [LOOK],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "tool_choice",
        ),
    ],
)
async def test_bad_ones_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    assert (await ask(client, 400, **body))["error"]["param"] == field


def test_auto_needs_a_parser() -> None:
    with pytest.raises(ValueError, match="tool_call_parser"):
        ServerArgs(enable_auto_tool_choice=True)
