"""Compression in request bodies: passed on, refused by name, told of in the usage."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from vllm.core.compression import WISHES

from .conftest import Connect, events
from .fake_engine import FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "  Be brief and kind.  "}
USER = {"role": "user", "content": "What is the code of amber-fox?"}
WISH = {
    "max_cache_tokens": 128,
    "protected_window_size": 20,
    "compress_once": True,
    "metric_collection_buffer_size": 3,
    "compression_metric": "snapkv",
    "sinks": 4,
    "protected_spans": [[0, 2]],
    "shared_prefix_tokens": 3,
}


@pytest.fixture
def squeezer() -> FakeEngine:
    return FakeEngine(enable_kvc=True, share_compressed_prefixes=True)


@pytest.fixture
def squeezing(connect: Connect, squeezer: FakeEngine) -> httpx.AsyncClient:
    return connect(squeezer)


BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "What is the code of amber-fox?"},
    CHAT: {"messages": [SYSTEM, USER]},
    "/v1/responses": {"input": "What is the code?", "instructions": "Be brief."},
    "/v1/messages": {"messages": [USER], "max_tokens": 5},
}


@pytest.mark.parametrize("path", BODIES)
async def test_wishes_reach_the_engine(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine, path: str
) -> None:
    body = BODIES[path] | WISH
    answer = await squeezing.post(path, json=body)
    assert answer.status_code == 200, answer.text
    params = squeezer.asked[0].params
    for name, value in WISH.items():
        want = [(0, 2)] if name == "protected_spans" else value
        assert getattr(params, name) == want, name
    assert answer.json()["usage"]["kv_compression"]["ratio"] == 2.0
    other = BODIES[path] | {"target_compression_rate": 0.25}
    assert (await squeezing.post(path, json=other)).status_code == 200
    assert squeezer.asked[1].params.target_compression_rate == 0.25


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_cache_tokens": 0}, "max_cache_tokens"),
    ({"max_cache_tokens": -2}, "max_cache_tokens"),
    ({"max_cache_tokens": 1.5}, "max_cache_tokens"),
    ({"max_cache_tokens": 32}, "max_cache_tokens"),
    ({"target_compression_rate": 0}, "target_compression_rate"),
    ({"target_compression_rate": 2}, "target_compression_rate"),
    ({"target_compression_rate": "half"}, "target_compression_rate"),
    ({"target_compression_rate": 0.5, "max_cache_tokens": 128}, "target_compression_rate"),
    ({"protected_window_size": -1}, "protected_window_size"),
    ({"protected_window_size": 200, "max_cache_tokens": 128}, "protected_window_size"),
    ({"compress_once": 1}, "compress_once"),
    ({"metric_collection_buffer_size": 65}, "metric_collection_buffer_size"),
    ({"compression_metric": "best"}, "compression_metric"),
    ({"sinks": -1}, "sinks"),
    ({"sinks": 2**40}, "sinks"),
    ({"protected_spans": [[2, 1]]}, "protected_spans"),
    ({"protected_spans": [[1]]}, "protected_spans.0"),
    ({"protected_spans": [[0, 1]] * 65}, "protected_spans"),
    ({"protected_spans": [[0, 4000]], "max_cache_tokens": 128}, "protected_spans"),
    ({"shared_prefix_tokens": 0, "max_cache_tokens": 128}, "shared_prefix_tokens"),
    ({"shared_prefix_tokens": 4000, "max_cache_tokens": 128}, "shared_prefix_tokens"),
    ({"shared_prefix_tokens": 3}, "shared_prefix_tokens"),
    ({"reference_token_ids": []}, "reference_token_ids"),
    ({"reference_token_ids": [-1]}, "reference_token_ids.0"),
    ({"reference_token_ids": [1], "n": 2, "temperature": 1}, "reference_token_ids"),
    ({"sinks": 4, "use_beam_search": True}, "sinks"),
    ({"compress_once": False, "use_beam_search": True}, "compress_once"),
]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda v: ascii(v)[:50])
async def test_bad_wishes(
    squeezing: httpx.AsyncClient, path: str, stream: bool, fields: dict[str, Any], param: str
) -> None:
    if stream and "use_beam_search" in fields:
        return  # streaming is refused first
    answer = await squeezing.post(path, json=BODIES[path] | fields | {"stream": stream})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", WISHES)
async def test_a_server_without_kvc_says_so(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, name: str
) -> None:
    values = WISH | {"target_compression_rate": 0.5}
    for stream in (False, True):
        answer = await client.post(path, json=BODIES[path] | {name: values[name], "stream": stream})
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert f"{name} needs an engine with --enable-kvc" in message
    assert not engine.asked


async def test_protected_messages_need_kvc_by_their_own_name(client: httpx.AsyncClient) -> None:
    for which in ("system", []):
        answer = await client.post(CHAT, json=BODIES[CHAT] | {"protected_messages": which})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "protected_messages"


async def test_minus_one_asks_for_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post(COMPLETIONS, json=BODIES[COMPLETIONS] | {"max_cache_tokens": -1})
    assert answer.status_code == 200
    assert "kv_compression" not in answer.json()["usage"]


async def test_reference_tokens_need_no_compression(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = BODIES[COMPLETIONS] | {"reference_token_ids": [7, 8]}
    assert (await client.post(COMPLETIONS, json=body)).status_code == 200
    assert engine.asked[0].params.reference_token_ids == [7, 8]


async def test_reference_tokens_and_a_forced_format(client: httpx.AsyncClient) -> None:
    body = BODIES[CHAT] | {
        "reference_token_ids": [7, 8],
        "response_format": {"type": "json_object"},
    }
    answer = await client.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reference_token_ids"


# ---- what the usage tells -----------------------------------------------------------------------


async def test_usage_adds_up_choices_and_prompts(squeezing: httpx.AsyncClient) -> None:
    body = {"prompt": [[5] * 21, [5] * 21], "n": 2, "temperature": 1.0, "max_tokens": 4}
    kvs = (await squeezing.post(COMPLETIONS, json=body)).json()["usage"]["kv_compression"]
    assert kvs == {
        "logical_kvs": 4 * 16 * 24,
        "kept_kvs": 4 * 8 * 24,
        "ratio": 2.0,
        "times_compressed": 4,
    }


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_streams_tell_at_the_end(squeezing: httpx.AsyncClient, path: str) -> None:
    body = BODIES[path] | {"stream": True, "max_tokens": 3}
    body |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    told = events((await squeezing.post(path, json=body)).text)
    assert [u["usage"].get("kv_compression") is not None for u in told] == [
        *[False] * (len(told) - 1),
        True,
    ]
    assert told[-1]["usage"]["kv_compression"]["times_compressed"] == 1


# ---- protected messages -------------------------------------------------------------------------


def held(engine: FakeEngine, span: tuple[int, int]) -> str:
    assert engine.tokenizer is not None
    return engine.tokenizer.decode(engine.asked[-1].ids[slice(*span)], skip_special_tokens=False)


@pytest.mark.parametrize(
    ("which", "contents"),
    [
        ("system", ["Be brief and kind."]),
        ([0], ["Be brief and kind."]),
        ([3, 1], ["What is the code of amber-fox?", "And of it?"]),
        ([], []),
    ],
)
async def test_messages_become_spans(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine, which: Any, contents: list[str]
) -> None:
    messages = [SYSTEM, USER, {"role": "assistant", "content": "42."}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "And of it?"}]})
    body = {"messages": messages, "protected_messages": which}
    answer = await squeezing.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    spans = squeezer.asked[0].params.protected_spans
    assert spans is not None
    assert [held(squeezer, span).strip() for span in spans] == contents


async def test_equal_messages_and_words_like_marks_are_told_apart(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine
) -> None:
    same = [{"role": r, "content": "<|x|> It is. "} for r in ("user", "assistant", "user")]
    body = {"messages": same, "protected_messages": [1, 2]}
    assert (await squeezing.post(CHAT, json=body)).status_code == 200
    first, second = squeezer.asked[0].params.protected_spans or []
    assert held(squeezer, first) == held(squeezer, second)
    begins = [i for i, t in enumerate(squeezer.asked[0].ids) if t == squeezer.asked[0].ids[1]]
    assert begins[0] < first[0] < first[1] < second[0], "not the first message's"


async def test_a_message_without_content_protects_nothing(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine
) -> None:
    blank = {"role": "user", "content": "  "}
    body = {"messages": [blank, USER], "protected_messages": [0, 1]}
    assert (await squeezing.post(CHAT, json=body)).status_code == 200
    [span] = squeezer.asked[0].params.protected_spans or []
    assert held(squeezer, span).strip() == USER["content"]


async def test_the_message_that_is_continued_can_be_protected(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine
) -> None:
    body = {
        "messages": [USER, {"role": "assistant", "content": "It is"}],
        "protected_messages": [1],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert (await squeezing.post(CHAT, json=body)).status_code == 200
    [span] = squeezer.asked[0].params.protected_spans or []
    assert held(squeezer, span).strip() == "It is"


async def test_protected_messages_that_cannot_be(connect: Connect, squeezer: FakeEngine) -> None:
    asking = connect(squeezer)
    hiding = connect(FakeEngine(enable_kvc=True, chat_template="{{ messages[-1]['content'] }}"))
    for client, which, more in (
        (asking, [2], {}),
        (asking, [0] * 3 + [5], {}),
        (asking, "user", {}),
        (asking, [-1], {}),
        (asking, [0], {"truncate_prompt_tokens": 5}),
        (hiding, [0], {}),
    ):
        body = BODIES[CHAT] | {"protected_messages": which} | more
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 400, which
        assert answer.json()["error"]["param"].startswith("protected_messages")


# ---- shared prefixes ----------------------------------------------------------------------------


async def test_the_system_message_is_shared(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine
) -> None:
    body = {"max_cache_tokens": 128, "shared_prefix": "system"}
    for question in ("What is it?", "Why?"):
        messages = [SYSTEM, {"role": "user", "content": question}, SYSTEM]
        answer = await squeezing.post(CHAT, json=body | {"messages": messages})
        assert answer.status_code == 200, answer.text
    first, second = squeezer.asked
    count = first.params.shared_prefix_tokens
    assert count == second.params.shared_prefix_tokens
    assert held(squeezer, (0, count or 0)).strip().endswith("Be brief and kind.")
    assert first.ids[:count] == second.ids[:count]
    other = {"input": "What is it?", "instructions": SYSTEM["content"]} | body
    assert (await squeezing.post("/v1/responses", json=other)).status_code == 200
    assert squeezer.asked[-1].params.shared_prefix_tokens == count


async def test_shared_prefixes_that_cannot_be(connect: Connect, squeezer: FakeEngine) -> None:
    ask = {"max_cache_tokens": 128, "shared_prefix": "system"}
    for engine, more in (
        (squeezer, {"messages": [USER, SYSTEM]}),
        (squeezer, {"messages": [{"role": "system", "content": " "}, USER]}),
        (squeezer, {"shared_prefix": "all"}),
        (squeezer, {"shared_prefix_tokens": 3}),
        (squeezer, {"truncate_prompt_tokens": 5}),
        (FakeEngine(enable_kvc=True), {}),
        (FakeEngine(), {"max_cache_tokens": None}),
    ):
        answer = await connect(engine).post(CHAT, json=BODIES[CHAT] | ask | more)
        assert answer.status_code == 400, more
        assert answer.json()["error"]["param"] == "shared_prefix"
    assert not squeezer.asked


async def test_responses_protect_their_instructions(
    squeezing: httpx.AsyncClient, squeezer: FakeEngine
) -> None:
    body = BODIES["/v1/responses"] | {"protected_messages": "system"}
    assert (await squeezing.post("/v1/responses", json=body)).status_code == 200
    [span] = squeezer.asked[0].params.protected_spans or []
    assert held(squeezer, span).strip() == "Be brief."
