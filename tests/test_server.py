"""The real server as a process: `vllm serve`, the demo model, real clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from server_process import Server

FACTS = "The code of amber-fox is 4821. The code of lucky-owl is 7390."
QUESTION = "What is the code of amber-fox?"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    assert running.stop() == 0, "".join(running.log)


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(client: OpenAI, text: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="demo",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        **more,
    )


def test_recalls_a_fact(client: OpenAI) -> None:
    answer = chat(client, f"{FACTS} {QUESTION}").choices[0]
    assert "4821" in answer.message.content
    assert answer.finish_reason == "stop"


def test_streamed_answer_is_the_whole_one(client: OpenAI) -> None:
    whole = chat(client, f"{FACTS} {QUESTION}").choices[0].message.content
    chunks = list(
        chat(client, f"{FACTS} {QUESTION}", stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens >= 1


def test_second_question_finds_the_first_ones_prefix(client: OpenAI) -> None:
    facts = " ".join(f"The code of lucky-owl is {i}{i}{i}{i}." for i in range(9))
    first = chat(client, f"{facts} {QUESTION}").usage.prompt_tokens_details.cached_tokens
    again = chat(client, f"{facts} What is the code of lucky-owl?").usage
    assert again.prompt_tokens_details.cached_tokens > first
    assert again.prompt_tokens_details.cached_tokens % 16 == 0


def test_answers_follow_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "integer", "maximum": 9999}, "sure": {"type": "boolean"}},
        "required": ["code", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "code", "schema": schema}}
    asked = {"response_format": form, "max_tokens": 500}
    whole = chat(client, f"{FACTS} {QUESTION}", **asked).choices[0].message.content
    assert set(json.loads(whole)) == {"code", "sure"}
    chunks = list(chat(client, f"{FACTS} {QUESTION}", stream=True, **asked))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    told = client.completions.create(
        model="demo",
        prompt="Left or right?",
        temperature=0,
        extra_body={"structured_outputs": {"choice": ["left", "right"]}},
    )
    assert told.choices[0].text in ("left", "right")


def test_beams_are_the_librarys(server: Server, client: OpenAI) -> None:
    asked = {"use_beam_search": True, "length_penalty": 0.5}
    told = client.completions.create(
        model="demo",
        prompt=[QUESTION, "Once more"],
        n=3,
        max_tokens=6,
        logprobs=1,
        temperature=0,
        extra_body=asked,
    )
    assert [choice.index for choice in told.choices] == list(range(6))
    sums = [sum(choice.logprobs.token_logprobs) for choice in told.choices]
    lengths = [len(choice.logprobs.token_logprobs) for choice in told.choices]
    scores = [total / length**0.5 for total, length in zip(sums, lengths, strict=True)]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert scores[3:] == sorted(scores[3:], reverse=True)
    best = chat(client, QUESTION, n=2, max_tokens=6, extra_body=asked).choices
    assert len({choice.message.content for choice in best}) == 2


def test_a_forced_call(client: OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"animal": {"enum": ["amber-fox", "lucky-owl"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}]
    choice = {"type": "function", "function": {"name": "look_up"}}
    for asked, reason in ((choice, "stop"), ("required", "tool_calls")):
        more = {"tools": tools, "tool_choice": asked, "parallel_tool_calls": False}
        answer = chat(client, QUESTION, max_tokens=500, **more).choices[0]
        call = answer.message.tool_calls[0]
        assert call.function.name == "look_up"
        assert json.loads(call.function.arguments)["animal"] in ("amber-fox", "lucky-owl")
        assert answer.finish_reason == reason


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_schema_is_a_400(client: OpenAI, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(BadRequestError) as refused:
        chat(client, "x", response_format=form, stream=stream)
    assert refused.value.param == "structured_outputs.json"


def test_client_that_leaves_frees_its_blocks(server: Server) -> None:
    body = {"model": "demo", "prompt": "The old river", "max_tokens": 3900, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as r:
        lines = r.iter_lines()  # its end would close the connection
        next(lines)
        assert server.metric("kv_cache_usage_perc") > 0
    deadline = time.monotonic() + 10
    while server.metric("kv_cache_usage_perc") > 0 or server.metric("num_requests_running") > 0:
        assert time.monotonic() < deadline, "blocks are still held"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, ""),
        (b'{"model": "demo"}', 400, "prompt"),
        (b'{"model": "other", "prompt": "a"}', 404, "other"),
        (b'{"model": "demo", "prompt": ""}', 400, "empty"),
        (b'{"model": "demo", "prompt": [99999999]}', 400, "out of vocabulary"),
        (b'{"model": "demo", "prompt": "a", "n": 100000}', 400, "n"),
        (b'{"model": "demo", "prompt": "a", "logprobs": 1000}', 400, "logprobs"),
        (b'{"model": "demo", "prompt": "a", "temperature": "hot"}', 400, "temperature"),
        (
            b'{"model": "demo", "prompt": "' + b"river " * 9000 + b'"}',
            400,
            "maximum context length is 4096 tokens",
        ),
    ],
)
def test_bad_input_is_a_4xx_in_the_envelope(
    server: Server, body: bytes, status: int, says: str
) -> None:
    answer = httpx.post(
        f"{server.url}/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error["message"] or says == error["param"]
    assert "Traceback" not in answer.text
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_compression_through_the_whole_server() -> None:
    server = Server("--enable-kvc", "--block-size", "8")
    try:
        facts = " ".join(f"The train number {i} waits near the old mill." for i in range(30))
        messages: Any = [
            {"role": "system", "content": "The code of amber-fox is 4821."},
            {"role": "user", "content": f"{facts} {QUESTION}"},
        ]
        wish = {
            "protected_messages": "system",
            "protected_window_size": 24,
            "max_cache_tokens": 64,
        }
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask(wish: dict[str, Any]) -> Any:
            return client.chat.completions.create(
                model="demo", messages=messages, temperature=0, max_tokens=12, extra_body=wish
            )

        answer = ask(wish)
        assert "4821" in answer.choices[0].message.content
        kvs = answer.usage.model_dump()["kv_compression"]
        assert kvs["times_compressed"] == 1 and kvs["ratio"] > 2.5
        assert server.metric("kv_compressions_total") == 1
        assert server.metric("kv_compression_dropped_kvs_total") == (
            kvs["logical_kvs"] - kvs["kept_kvs"]
        )
        with pytest.raises(BadRequestError, match="max_cache_tokens") as caught:
            ask(wish | {"max_cache_tokens": 20})
        assert caught.value.param == "protected_window_size"
    finally:
        server.stop()


def test_sigterm_lets_running_requests_finish() -> None:
    server = Server("--shutdown-timeout", "60")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model="demo",
        prompt="The old river",
        max_tokens=200,
        stream=True,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    next(chunks)
    server.process.send_signal(signal.SIGTERM)
    last = list(chunks)[-1]
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(30) == 0, "".join(server.log)


def test_the_engines_death_ends_everything_with_an_error() -> None:
    server = Server()
    body = {"model": "demo", "prompt": "The old river", "max_tokens": 3900, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as r:
        lines = r.iter_lines()
        next(lines)
        os.kill(server.core_pid(), signal.SIGKILL)
        rest = [line for line in lines if line]
    assert any('"error"' in line for line in rest), rest[-3:]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(30) not in (0, None), "".join(server.log)


@pytest.mark.parametrize(
    "arguments",
    [
        ["/there/is/none"],
        ["--kv-cache-memory-bytes", "10k", "--max-model-len", "4096"],
        ["--max-model-lne", "3"],
        ["--block-size", "0"],
    ],
    ids=["no such model", "too little memory", "unknown flag", "bad value"],
)
def test_bad_arguments_are_one_line_and_exit_code_two(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
