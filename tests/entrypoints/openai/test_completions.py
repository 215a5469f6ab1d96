from __future__ import annotations

from typing import Any

import httpx
import pytest

from ..conftest import MakeEngine
from .conftest import Connect, events
from .fake_engine import FakeEngine

PROMPT = "The code of amber-fox is 4821."


def ids_of(engine: FakeEngine, text: str) -> list[int]:
    assert engine.tokenizer is not None
    return engine.tokenizer.encode(text)


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return events(response.text) if body.get("stream") else response.json()


async def test_xargs_are_extra_args(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    given = {"a": 1, "b": "x", "c": [1, 2.5, "y"]}
    body = {"prompt": "The code", "max_tokens": 1, "vllm_xargs": given}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert engine.asked[0].params.extra_args == given


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await complete(client, model="demo", prompt=PROMPT, max_tokens=4)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "demo"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "The code of amber-fox",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    prompt = len(ids_of(engine, PROMPT))
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


@pytest.mark.parametrize("given", [{}, {"max_tokens": None}])
async def test_max_tokens_is_16_by_default(
    client: httpx.AsyncClient, engine: FakeEngine, given: dict[str, Any]
) -> None:
    await complete(client, prompt=PROMPT, **given)
    assert engine.asked[0].params.max_tokens == 16


async def test_the_default_is_cut_to_what_fits(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, prompt=[7] * (engine.max_model_len - 3))
    assert engine.asked[0].params.max_tokens == 3


async def test_sampling_fields_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    fields = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["x"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "stop_token_ids": [9],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 2,
        "skip_special_tokens": False,
        "allowed_token_ids": [5, 6],
        "bad_words": ["fox"],
        "max_tokens": 5,
    }
    await complete(
        client, prompt=PROMPT, logit_bias={"5": 200}, cache_salt="tenant", **fields
    )  # fmt: skip
    asked = engine.asked[0]
    for name, value in fields.items():
        assert getattr(asked.params, name) == value, name
    assert asked.params.logit_bias == {5: 100.0}
    assert asked.cache_salt == "tenant"


async def test_defaults_come_from_the_models_generation_config(
    connect: Connect, make_engine: MakeEngine
) -> None:
    engine = make_engine(override_generation_config={"do_sample": True, "temperature": 0.7})
    await complete(connect(engine), prompt=PROMPT)
    assert engine.asked[0].params.temperature == 0.7
    engine = make_engine(generation_config="vllm")
    await complete(connect(engine), prompt=PROMPT)
    assert engine.asked[0].params.temperature == 1.0


async def test_asking_for_several_outputs_is_asking_for_sampling(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, prompt=PROMPT)
    await complete(client, prompt=PROMPT, n=2)
    assert [a.params.temperature for a in engine.asked] == [0.0, 1.0]
    refused = await client.post("/v1/completions", json={"prompt": "a", "n": 2, "temperature": 0})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_are_numbered_by_prompt_and_output(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    prompts = ["The code", " of amber-fox", " is 4821."]
    answer = await complete(client, prompt=prompts, n=2, max_tokens=2, stream=stream)
    texts: dict[int, str] = {}
    for chunk in answer if stream else [answer]:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    expected = {}
    assert engine.tokenizer is not None
    for p, prompt in enumerate(prompts):
        ids = ids_of(engine, prompt)
        for k in range(2):
            expected[p * 2 + k] = "".join(
                engine.tokenizer.text_of(ids[(k + i) % len(ids)]) for i in range(2)
            )
    assert texts == expected
    if not stream:
        assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3, 4, 5]
        total = sum(len(ids_of(engine, p)) for p in prompts)
        assert answer["usage"]["prompt_tokens"] == total
        assert answer["usage"]["completion_tokens"] == 12


async def test_prompts_may_be_token_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, prompt=[7, 8, 9], max_tokens=1)
    await complete(client, prompt=[[7, 8], [9]], max_tokens=1)
    assert [a.ids for a in engine.asked] == [[7, 8, 9], [7, 8], [9]]


async def test_truncation_keeps_the_last_tokens(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    long = list(range(10, 30))
    await complete(client, prompt=long, truncate_prompt_tokens=5)
    await complete(client, prompt=long, truncate_prompt_tokens=5, truncation_side="right")
    await complete(client, prompt=[9] * 5000, truncate_prompt_tokens=-1, max_tokens=6)
    assert engine.asked[0].ids == long[-5:]
    assert engine.asked[1].ids == long[:5]
    assert len(engine.asked[2].ids) == engine.max_model_len - 6


async def test_echo_repeats_the_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt="The code", echo=True, max_tokens=1)
    assert answer["choices"][0]["text"] == "The codeThe"
    assert answer["usage"]["completion_tokens"] == 1


async def test_echo_alone_generates_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await complete(client, prompt=PROMPT, echo=True, max_tokens=0, logprobs=2)
    [choice] = answer["choices"]
    assert choice["text"] == PROMPT
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == PROMPT
    assert logprobs["token_logprobs"] == [None] + [-0.5] * (len(ids_of(engine, PROMPT)) - 1)
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["top_logprobs"][1]) == 2
    assert answer["usage"]["completion_tokens"] == 0
    assert engine.asked[0].params.prompt_logprobs == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_parallel_lists(client: httpx.AsyncClient, stream: bool) -> None:
    body = {"prompt": "The code", "echo": True, "max_tokens": 2, "logprobs": 1, "stream": stream}
    answer = await complete(client, **body)
    merged: dict[str, list[Any]] = {}
    for chunk in answer if stream else [answer]:
        for name, values in chunk["choices"][0]["logprobs"].items():
            merged.setdefault(name, []).extend(values)
    assert merged["tokens"] == ["The", " code", "The", " code"]
    assert merged["text_offset"] == [0, 3, 8, 11]
    assert merged["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert merged["top_logprobs"][1:] == [{" code": -0.5}, {"The": -0.5}, {" code": -0.5}]


async def test_tokens_may_be_written_as_ids(client: httpx.AsyncClient, connect: Connect) -> None:
    body = {"prompt": [7], "max_tokens": 1, "logprobs": 0}
    answer = await complete(client, **body, return_tokens_as_token_ids=True)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["token_id:7"]
    always = connect(return_tokens_as_token_ids=True)
    answer = await complete(always, **body)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["token_id:7"]


async def test_prompt_logprobs_and_token_ids(client: httpx.AsyncClient) -> None:
    answer = await complete(
        client, prompt=[7, 8], max_tokens=1, prompt_logprobs=1, return_token_ids=True
    )
    [choice] = answer["choices"]
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1]["8"]["logprob"] == -0.5
    assert choice["prompt_logprobs"][1]["8"]["rank"] == 1
    assert choice["prompt_token_ids"] == [7, 8]
    assert choice["token_ids"] == [7]


async def test_a_stream_has_a_chunk_a_token_and_no_usage(client: httpx.AsyncClient) -> None:
    chunks = await complete(client, prompt=PROMPT, max_tokens=3, stream=True)
    assert [c["choices"][0]["text"] for c in chunks] == ["The", " code", " of"]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "length"]
    assert len({c["id"] for c in chunks}) == 1
    assert all("usage" not in c for c in chunks)


async def test_a_stream_ends_with_usage_when_asked(
    client: httpx.AsyncClient, connect: Connect
) -> None:
    body = {"prompt": [7] * 5, "max_tokens": 2, "n": 2, "stream": True}
    chunks = await complete(client, **body, stream_options={"include_usage": True})
    assert all("usage" not in c for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await complete(client, **body, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 1, 2, 2, 4]
    forced = await complete(connect(enable_force_include_usage=True), **body)
    assert forced[-1]["usage"]["completion_tokens"] == 4


async def test_a_request_that_is_refused_has_a_status_in_a_stream_too(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(
        "/v1/completions", json={"prompt": [10**6], "stream": True, "max_tokens": 1}
    )
    assert response.status_code == 400
    assert "out of vocabulary" in response.json()["error"]["message"]


async def test_a_server_without_a_tokenizer_takes_ids_only(
    connect: Connect, make_engine: MakeEngine
) -> None:
    client = connect(make_engine(skip_tokenizer_init=True))
    answer = await complete(client, prompt=[7], max_tokens=2, return_token_ids=True, logprobs=0)
    assert answer["choices"][0]["token_ids"] == [7, 7]
    response = await client.post("/v1/completions", json={"prompt": "text"})
    assert response.status_code == 400
