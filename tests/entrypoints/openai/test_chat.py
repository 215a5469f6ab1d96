from __future__ import annotations

from typing import Any

import httpx
import pytest

from ..conftest import MakeEngine
from .conftest import Connect, events
from .fake_engine import FakeEngine

ASK = [{"role": "user", "content": "What is the code of amber-fox?"}]


async def chat(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/chat/completions", json={"messages": ASK} | body)
    assert response.status_code == 200, response.text
    return events(response.text) if body.get("stream") else response.json()


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ends_after = 3
    answer = await chat(client, max_tokens=10)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].endswith("<|user|>What")
    assert choice["finish_reason"] == "stop"
    assert set(choice) == {"index", "message", "logprobs", "finish_reason", "stop_reason"}
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["prompt_tokens"] == len(engine.asked[0].ids)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_the_template_makes_the_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(client)
    prompt = engine.prompt()
    assert prompt.startswith("<|bos|><|user|>What is")
    assert prompt.endswith("<|end|><|assistant|>")
    assert prompt.count("<|bos|>") == 1, "the template writes it, so encoding must not"
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the code?"}]
    await chat(client, messages=[{"role": "user", "content": parts}])
    assert "What is\nthe code?" in engine.prompt()


async def test_who_writes_special_tokens(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template does in a chat; the tokenizer does for a plain prompt; unless told otherwise."""
    asked = []

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        asked.append(add_special_tokens)
        return [7]

    monkeypatch.setattr(engine.tokenizer, "encode", encode)
    await chat(client)
    await chat(client, add_special_tokens=True)
    await client.post("/v1/completions", json={"prompt": "a"})
    await client.post("/v1/completions", json={"prompt": "a", "add_special_tokens": False})
    await client.post("/tokenize", json={"prompt": "a"})
    await client.post("/tokenize", json={"messages": ASK})
    await client.post("/tokenize", json={"messages": ASK, "add_special_tokens": True})
    assert asked == [False, True, True, False, True, False, True]


async def test_how_many_tokens_an_answer_may_have(
    connect: Connect, make_engine: MakeEngine
) -> None:
    engine = make_engine(generation_config="vllm")
    client = connect(engine)
    engine.ends_after = 1
    await chat(client)
    assert engine.asked[-1].params.max_tokens == engine.max_model_len - len(engine.asked[-1].ids)
    await chat(client, max_tokens=5, max_completion_tokens=7)
    assert engine.asked[-1].params.max_tokens == 7
    await chat(client, max_tokens=5)
    assert engine.asked[-1].params.max_tokens == 5
    demo = make_engine(override_generation_config={"max_new_tokens": 32})
    await chat(connect(demo))
    assert demo.asked[-1].params.max_tokens == 32


async def test_a_stream_begins_with_the_role(client: httpx.AsyncClient) -> None:
    chunks = await chat(client, stream=True, max_tokens=2, n=2)
    deltas: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in chunks:
        [choice] = chunk["choices"]
        deltas[choice["index"]].append(choice["delta"])
        assert "usage" not in chunk
    for told in deltas.values():
        assert told[0] == {"role": "assistant", "content": ""}
        assert [set(d) for d in told[1:]] == [{"content"}, {"content"}]
    last = chunks[-1]["choices"][0]
    assert last["finish_reason"] == "length"
    assert last["stop_reason"] is None
    assert "stop_reason" not in chunks[0]["choices"][0]


async def test_a_stream_says_what_the_whole_answer_says(client: httpx.AsyncClient) -> None:
    whole = await chat(client, max_tokens=6)
    chunks = await chat(client, max_tokens=6, stream=True)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]


async def test_usage_in_streams(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True}
    chunks = await chat(client, stream=True, max_tokens=2, stream_options=options)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    options["continuous_usage_stats"] = True
    chunks = await chat(client, stream=True, max_tokens=2, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks] == [0, 1, 2, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_have_the_likeliest_by_rank(client: httpx.AsyncClient, stream: bool) -> None:
    answer = await chat(client, max_tokens=2, logprobs=True, top_logprobs=3, stream=stream)
    chunks = answer if stream else [answer]
    content = [
        token
        for chunk in chunks
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert len(content) == 2
    for token in content:
        assert token["logprob"] == -0.5
        assert bytes(token["bytes"]).decode() == token["token"]
        assert [t["logprob"] for t in token["top_logprobs"]] == [-0.5, -2.0, -3.0]


async def test_logprobs_without_top(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await chat(client, max_tokens=1, logprobs=True)
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert engine.asked[0].params.logprobs == 0


async def test_continuing_the_last_message(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    messages = [*ASK, {"role": "assistant", "content": "The code is"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    answer = await chat(client, **body, echo=True, max_tokens=1)
    assert engine.prompt().endswith("<|assistant|>The code is")
    assert answer["choices"][0]["message"]["content"].startswith("The code is")
    chunks = await chat(client, **body, echo=True, max_tokens=1, stream=True)
    assert chunks[1]["choices"][0]["delta"] == {"content": "The code is"}


async def test_all_roles_are_taken(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "The code", "tool_call_id": "1"},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    await chat(client, messages=messages, tools=tools, tool_choice="none")
    assert engine.prompt() == (
        "<|bos|><|developer|>Be brief.<|end|><|user|>Hello<|end|>"
        "<|assistant|><|end|><|tool|>The code<|end|><|assistant|>"
    )


@pytest.mark.parametrize("role", ["developer", "tool"])
async def test_a_role_that_the_template_refuses(
    connect: Connect, make_engine: MakeEngine, role: str
) -> None:
    template = (
        "{% for message in messages %}{% if message['role'] != 'user' %}"
        "{{ raise_exception('only users may speak') }}{% endif %}{{ message['content'] }}"
        "{% endfor %}"
    )
    engine = make_engine(chat_template=template)
    messages = [*ASK, {"role": role, "content": "Be brief."}]
    for path in ("/v1/chat/completions", "/tokenize"):
        response = await connect(engine).post(path, json={"messages": messages})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "messages"
        assert "only users may speak" in error["message"]
    assert engine.asked == []


async def test_a_developer_is_the_system_where_a_template_knows_no_other(
    connect: Connect, make_engine: MakeEngine
) -> None:
    template = (
        "{% for m in messages %}{% if m.role not in ['system', 'user'] %}"
        "{{ raise_exception('no ' ~ m.role) }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    )
    engine = make_engine(chat_template=template)
    user = {"role": "user", "content": "code"}
    body = {"messages": [{"role": "developer", "content": "Be brief."}, user], "max_tokens": 1}
    answer = await connect(engine).post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert engine.prompt() == "<|system|>Be brief.<|user|>code"
    body["messages"] = [{"role": "tool", "content": "x"}, user]
    answer = await connect(engine).post("/v1/chat/completions", json=body)
    assert "no tool" in answer.json()["error"]["message"]


async def test_template_kwargs_reach_the_template(
    connect: Connect, make_engine: MakeEngine
) -> None:
    template = "{{ messages[0]['content'] }}{% if brief %} 4821{% endif %}"
    engine = make_engine(chat_template=template)
    await chat(connect(engine), chat_template_kwargs={"brief": True})
    assert engine.prompt().endswith("4821")


async def test_documents_reach_the_template(connect: Connect, make_engine: MakeEngine) -> None:
    engine = make_engine(chat_template="{{ documents[0].text }}{{ messages[0].content }}")
    body = {
        "messages": [{"role": "user", "content": " code"}],
        "documents": [{"title": "a", "text": "The"}],
        "max_tokens": 2,
    }
    answer = (await connect(engine).post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"]["content"] == "The code"


async def test_token_ids_and_prompt_logprobs(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await chat(client, max_tokens=1, return_token_ids=True, prompt_logprobs=0)
    assert answer["prompt_token_ids"] == engine.asked[0].ids
    assert answer["choices"][0]["token_ids"] == engine.asked[0].ids[:1]
    assert answer["prompt_logprobs"][0] is None
    chunks = await chat(client, max_tokens=1, return_token_ids=True, stream=True)
    assert chunks[0]["prompt_token_ids"] == engine.asked[0].ids
    assert "prompt_token_ids" not in chunks[1]
    assert chunks[1]["choices"][0]["token_ids"] == engine.asked[0].ids[:1]


async def test_the_response_role_can_be_set(connect: Connect) -> None:
    answer = await chat(connect(response_role="oracle"), max_tokens=1)
    assert answer["choices"][0]["message"]["role"] == "oracle"
