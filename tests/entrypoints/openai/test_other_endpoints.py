from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from vllm.entrypoints.openai import absent
from vllm.entrypoints.openai.app import build_app, routes
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.metrics import Metrics
from vllm.version import __version__

from .conftest import Connect, events
from .fake_engine import FakeEngine


async def test_models(client: httpx.AsyncClient, connect: Connect, engine: FakeEngine) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    [card] = listed["data"]
    assert card["id"] == "demo"
    assert card["owned_by"] == "vllm"
    assert card["max_model_len"] == engine.max_model_len
    named = connect(served_model_name=["first", "org/second"])
    cards = (await named.get("/v1/models")).json()["data"]
    assert [c["id"] for c in cards] == ["first", "org/second"]
    assert (await named.get("/v1/models/org/second")).json()["id"] == "org/second"
    assert (await named.get("/v1/models/demo")).status_code == 404
    for asked, shown in ((None, "first"), ("", "first"), ("org/second", "org/second")):
        body = {"prompt": "a", "max_tokens": 1, "model": asked}
        assert (await named.post("/v1/completions", json=body)).json()["model"] == shown


async def test_health_follows_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        response = await client.request(method, path)
        assert (response.status_code, response.content) == (200, b"")
    engine.shutdown()
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        assert (await client.request(method, path)).status_code == 503


async def test_version(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_metrics_show_engine_and_process(connect: Connect) -> None:
    response = await connect(metrics=Metrics("demo")).get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'vllm:num_requests_running{engine="0",model_name="demo"} 0.0' in response.text
    assert "process_resident_memory_bytes" in response.text
    assert "python_info" in response.text


async def test_metrics_without_an_engines(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert "vllm:" not in response.text


async def test_tokenize_and_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    text = "The code of amber-fox is 4821."
    told = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert engine.tokenizer is not None
    assert told["tokens"] == engine.tokenizer.encode(text)
    assert told["count"] == len(told["tokens"])
    assert told["max_model_len"] == engine.max_model_len
    assert len(told["token_strs"]) == told["count"]
    back = await client.post("/detokenize", json={"tokens": told["tokens"]})
    assert back.json() == {"prompt": text}
    tokens = [*engine.tokenizer.encode("<|bos|>"), *told["tokens"][:1]]
    special = await client.post("/detokenize", json={"tokens": tokens})
    assert special.json() == {"prompt": "<|bos|>The"}


async def test_tokenize_a_chat(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    messages = [{"role": "user", "content": "The code"}]
    told = (await client.post("/tokenize", json={"messages": messages})).json()
    assert told["token_strs"] is None
    await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert told["tokens"] == engine.asked[0].ids, "it tells what the model would see"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, 10**6]}, "tokens.1"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_bad_requests(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_line_for_each_request_when_asked(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"prompt": "The code of amber-fox", "max_tokens": 1, "request_id": "mine"}
    with caplog.at_level(logging.INFO, logger="vllm.entrypoints.openai"):
        await connect().post("/v1/completions", json=body)
        assert "mine" not in caplog.text
        await connect(enable_log_requests=True, max_log_len=3).post("/v1/completions", json=body)
    assert "cmpl-mine" in caplog.text
    assert "'The'" in caplog.text
    assert "amber-fox" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_for_each_output_when_asked(
    connect: Connect, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    body = {"prompt": "The code of amber-fox", "max_tokens": 3, "n": 2, "stream": stream}
    with caplog.at_level(logging.INFO, logger="vllm.entrypoints.openai"):
        await connect(enable_log_requests=True).post("/v1/completions", json=body)
        assert "Generated" not in caplog.text
        both = connect(enable_log_requests=True, enable_log_outputs=True, max_log_len=8)
        await both.post("/v1/completions", json=body | {"temperature": 1})
    lines = [line for line in caplog.messages if line.startswith("Generated")]
    assert len(lines) == 2
    assert "output 0: text: 'The code'" in lines[0] and "length" in lines[0]
    assert "output 1: text: ' code of'" in lines[1]
    with pytest.raises(ValueError, match="enable_log_requests"):
        ServerArgs(enable_log_outputs=True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_where_a_requests_time_went(connect: Connect, path: str) -> None:
    """The fake engine waits half a second, begins after another, then takes a tenth a token."""
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    client = connect(enable_per_request_metrics=True)
    told = {
        "time_to_first_token_ms": 1000.0,
        "generation_time_ms": pytest.approx(200.0),
        "queue_time_ms": 500.0,
        "mean_itl_ms": pytest.approx(100.0),
        "tokens_per_second": pytest.approx(3 / 0.7),
    }
    assert (await client.post(path, json=body)).json()["metrics"] == told
    one = (await client.post(path, json=body | {"max_tokens": 1})).json()["metrics"]
    assert (one["generation_time_ms"], one["mean_itl_ms"]) == (0.0, None)
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events((await client.post(path, json=streamed)).text)
    assert last["metrics"] == told
    assert not any("metrics" in chunk for chunk in chunks)
    several = body | {"n": 2, "temperature": 1}
    assert "metrics" not in (await client.post(path, json=several)).json()
    assert "metrics" not in (await client.post(path, json=streamed | several)).text
    assert "metrics" not in (await connect().post(path, json=body)).json()


async def test_unknown_fields_are_told_at_debug(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="vllm.entrypoints.openai"):
        await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "mx_tokens": 2})
    assert "mx_tokens" in caplog.text


def test_routes_are_listed(engine: FakeEngine) -> None:
    listed = routes(build_app(engine, ServerArgs()))
    assert "POST /v1/chat/completions" in listed
    assert "GET, POST /ping" in listed


@pytest.mark.parametrize("path", absent.REASONS)
async def test_what_is_absent_says_why(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json={"input": "a"})
    assert response.status_code == 501
    assert response.json()["error"]["type"] == "NotImplementedError"
    assert response.json()["error"]["message"] == absent.REASONS[path]


async def test_invocations_are_chats_or_completions(client: httpx.AsyncClient) -> None:
    async def ask(body: Any) -> httpx.Response:
        return await client.post("/invocations", json=body)

    text = (await ask({"prompt": "The code", "max_tokens": 2})).json()
    assert text["choices"][0]["text"] == "The code"
    chat = (await ask({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})).json()
    assert chat["object"] == "chat.completion"
    for body, param in (
        ({"model": "demo"}, "prompt"),
        ({"prompt": "a", "top_k": "x"}, "top_k"),
        ({"messages": []}, "messages"),
        ([], None),
    ):
        response = await ask(body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
