"""What is refused, with which status, naming which field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from vllm.core.errors import EngineDeadError, QueueFullError

from .conftest import events
from .fake_engine import FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "Hello"}
FUNCTION = {"type": "function", "function": {"name": "f"}}

BAD_COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**40]}, "prompt"),
    ({"prompt": ["a"] * 3000}, "prompt"),
    ({"prompt": "\ud800"}, None),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": "hot", "top_p": "x"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 65, "temperature": 1}, "n"),
    ({"seed": 2**70}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
    ({"stop_token_ids": [100000]}, "stop_token_ids"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": "all"}, "logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"),
    ({"stream": "perhaps"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
    ({"priority": 1}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "a/b"}, "cache_salt"),
    ({"cache_salt": "a" * 129}, "cache_salt"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"nobody": 1}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "response_format",
    ),
    # not implemented
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"vllm_xargs": {"a": {"b": 1}}}, "vllm_xargs.a"),
    ({"vllm_xargs": dict.fromkeys(map(str, range(65)), 1)}, "vllm_xargs"),
    ({"vllm_xargs": {"a": "x" * 70_000}}, "extra_args"),
    ({"use_beam_search": True, "n": 11}, "beam_width"),
    ({"use_beam_search": True, "stream": True}, "stream"),
    ({"use_beam_search": True, "stop": "a"}, "stop"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
]

BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": [USER, {"role": "user", "content": 5}]}, "messages.1.content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0.type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": ["not", "scalar"]}}, "chat_template_kwargs.a"),
    ({"chat_template_kwargs": {f"a{i}": 1 for i in range(17)}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": "x" * 2000}}, "chat_template_kwargs"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"tools": [FUNCTION]}, "tools"),
    ({"tools": [FUNCTION], "tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.schema",
    ),
    ({"modalities": ["text", "audio"]}, "modalities"),
]


def _shown(value: Any) -> str:
    return ascii(value)[:60]


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETIONS, ids=_shown)
async def test_bad_completions(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    await _refused(client, COMPLETIONS, {"prompt": "The code"} | fields, param)


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=_shown)
async def test_bad_chats(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    await _refused(client, CHAT, {"messages": [USER]} | fields, param)


async def _refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str | None
) -> None:
    # httpx cannot send a lone surrogate, but JSON's escapes can.
    headers = {"content-type": "application/json"}
    response = await client.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400
    assert len(error["message"]) <= 1000
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {"content-type": "application/json"}),
        (b"", {"content-type": "application/json"}),
        (b'{"prompt": "a", "temperature": NaN}', {"content-type": "application/json"}),
        (b"[]", {"content-type": "application/json"}),
        (b'{"prompt": "\xff"}', {"content-type": "application/json"}),
        (b"[" * 100_000, {"content-type": "application/json"}),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}),
        (b"prompt=a", {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
async def test_bodies_that_are_no_json(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str]
) -> None:
    response = await client.post(COMPLETIONS, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] in ("BadRequestError", "Bad Request")


async def test_fields_that_openais_clients_send_are_accepted(client: httpx.AsyncClient) -> None:
    body = {"prompt": "The code", "max_tokens": 1, "best_of": 1, "suffix": "", "metadata": {}}
    body |= {"response_format": {"type": "text"}, "store": False, "no_such_field": [1]}
    assert (await client.post(COMPLETIONS, json=body)).status_code == 200


@pytest.mark.parametrize("length", [0, 1])
async def test_a_prompt_that_is_too_long(
    client: httpx.AsyncClient, engine: FakeEngine, length: int
) -> None:
    prompt = [7] * (engine.max_model_len + length)
    response = await client.post(COMPLETIONS, json={"prompt": prompt})
    assert response.status_code == 400
    assert f"maximum context length is {engine.max_model_len} tokens" in response.text
    chat = await client.post(CHAT, json={"messages": [{"role": "user", "content": "zz " * 5000}]})
    assert chat.status_code == 400
    assert chat.json()["error"]["param"] == "messages"
    assert "maximum context length" in chat.text


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
async def test_a_model_that_is_not_served(client: httpx.AsyncClient, path: str) -> None:
    body = {"model": "gpt-9", "prompt": "a", "tokens": [], "messages": [USER]}
    response = await client.post(path, json=body)
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": "The model `gpt-9` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
    }


async def test_paths_and_methods_that_are_not_there(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "Not Found"
    wrong = await client.get(COMPLETIONS)
    assert wrong.status_code == 405
    assert wrong.json()["error"]["type"] == "Method Not Allowed"


async def test_what_is_echoed_is_bounded(client: httpx.AsyncClient) -> None:
    for body in (
        {"prompt": "a", "model": "m" * 100_000},
        {"prompt": "a", "stop": "s" * 100_000},
        {"prompt": "a", "suffix": "s" * 100_000},
        {"prompt": "a", "truncation_side": "s" * 100_000},
        {"prompt": "a", "logit_bias": {"k" * 100_000: "x"}},
    ):
        response = await client.post(COMPLETIONS, json=body)
        assert response.status_code in (400, 404)
        assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (QueueFullError("too many requests wait"), 503, "ServiceUnavailableError"),
        (EngineDeadError(), 503, "ServiceUnavailableError"),
        (RuntimeError("secret detail"), 500, "InternalServerError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
async def test_errors_of_the_engine(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    error: Exception,
    status: int,
    type: str,
    stream: bool,
    prompt: Any,
) -> None:
    engine.fails = error
    response = await client.post(COMPLETIONS, json={"prompt": prompt, "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["type"] == type
    assert "secret" not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": "The code"}), (CHAT, {"messages": [USER]})]
)
async def test_an_error_in_the_middle_of_a_stream_is_an_event(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    engine.fails, engine.fails_after = EngineDeadError(), 2
    response = await client.post(path, json=body | {"stream": True})
    assert response.status_code == 200
    *chunks, last = events(response.text)
    assert last["error"]["code"] == 503
    tokens = [c for c in chunks if c["choices"][0].get("text") or c["choices"][0].get("delta")]
    assert len(tokens) >= 2


async def test_an_output_that_ends_in_an_error_is_one(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.ends_after, engine.end_reason = 2, "error"
    assert (await client.post(COMPLETIONS, json={"prompt": "a"})).status_code == 500
    stream = await client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
    assert events(stream.text)[-1]["error"]["type"] == "InternalServerError"


async def test_one_prompt_that_fails_ends_the_others(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"prompt": [[7], [10**6], [8]], "max_tokens": 4}
    response = await client.post(COMPLETIONS, json=body)
    assert response.status_code == 400
    assert sorted(a.request_id for a in engine.asked) == sorted(engine.aborted)
