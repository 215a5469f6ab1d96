"""The client library that users have, against a server on a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .conftest import real_server
from .fake_engine import FakeEngine


@pytest.fixture
async def openai_client(engine: FakeEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    app = build_app(engine, ServerArgs(api_key=["secret"]))
    async with (
        real_server(app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client,
    ):
        yield client


async def test_models(openai_client: openai.AsyncOpenAI) -> None:
    assert [m.id async for m in openai_client.models.list()] == ["demo"]
    assert (await openai_client.models.retrieve("demo")).owned_by == "vllm"


async def test_completions(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.completions.create(
        model="demo", prompt=["The code", " of"], max_tokens=2, n=2, logprobs=1, echo=True
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == "The codeThe code"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["The", " code", "The", " code"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chats(openai_client: openai.AsyncOpenAI) -> None:
    answer = await openai_client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "The code"}],
        max_completion_tokens=3,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 4, "min_p": 0.1},
    )
    assert answer.choices[0].finish_reason == "length"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2


async def test_streams(openai_client: openai.AsyncOpenAI) -> None:
    stream = await openai_client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "The code"}],
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "<|bos|><|user|>The"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_stream_helper_understands_our_streams(
    openai_client: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.ends_after = 3
    async with openai_client.chat.completions.stream(
        model="demo", messages=[{"role": "user", "content": "The code"}]
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "<|bos|><|user|>The"


async def test_errors(openai_client: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await openai_client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as refused:
        await openai_client.completions.create(model="demo", prompt="a", temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        await openai_client.with_options(api_key="wrong").models.list()
    engine.fails, engine.fails_after = RuntimeError("x"), 1
    stream = await openai_client.completions.create(model="demo", prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="Internal server error"):
        async for _ in stream:
            pass
