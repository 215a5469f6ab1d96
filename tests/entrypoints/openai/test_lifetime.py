"""Clients that hang up, servers that end: every request ends, and nothing runs on for nobody."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import httpx
import pytest

from vllm.core.errors import EngineDeadError
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.openai.errors import ShuttingDown
from vllm.entrypoints.openai.state import Server
from vllm.entrypoints.server_args import ServerArgs

from .conftest import events, real_server, until
from .fake_engine import FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "The code", "max_tokens": 1000}),
    (COMPLETIONS, {"prompt": ["The code", "of"], "max_tokens": 1000}),
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000}),
]


def running(app: Any) -> int:
    server: Server = app.state.server
    return len(server.running)


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_its_requests(
    engine: FakeEngine,
    path: str,
    body: dict[str, Any],
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.delay = 0.02
    app = build_app(engine, ServerArgs())
    async with real_server(app) as url, httpx.AsyncClient() as client:
        post = asyncio.create_task(client.post(url + path, json=body | {"stream": stream}))
        prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
        await until(lambda: len(engine.asked) == prompts)
        await asyncio.sleep(0.05)
        assert engine.aborted == []
        post.cancel()
        with suppress(asyncio.CancelledError):
            await post
        await until(lambda: sorted(engine.aborted) == sorted(a.request_id for a in engine.asked))
        await until(lambda: running(app) == 0)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_client_that_hangs_up_before_the_first_token(engine: FakeEngine) -> None:
    engine.delay = 30.0
    async with real_server(build_app(engine, ServerArgs())) as url, httpx.AsyncClient() as client:
        body = BODIES[0][1] | {"stream": True}
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url + COMPLETIONS, json=body, timeout=0.2)
        await until(lambda: len(engine.aborted) == 1)


async def test_a_request_that_ends_is_not_aborted(engine: FakeEngine) -> None:
    app = build_app(engine, ServerArgs())
    async with real_server(app) as url, httpx.AsyncClient() as client:
        for stream in (False, True):
            body = {"prompt": "The code", "max_tokens": 3, "stream": stream}
            assert (await client.post(url + COMPLETIONS, json=body)).status_code == 200
    assert engine.aborted == []
    assert running(app) == 0


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("why", [ShuttingDown(), EngineDeadError()])
async def test_requests_that_are_cut_off_end_with_an_error(
    engine: FakeEngine, path: str, body: dict[str, Any], why: Exception
) -> None:
    engine.delay = 0.02
    app = build_app(engine, ServerArgs())
    async with real_server(app) as url, httpx.AsyncClient() as client:
        whole = asyncio.create_task(client.post(url + path, json=body))
        stream = asyncio.create_task(client.post(url + path, json=body | {"stream": True}))
        await until(lambda: running(app) == 2)
        await asyncio.sleep(0.1)
        app.state.server.running.cut(why)
        assert (await whole).status_code == 503
        last = events((await stream).text)[-1]
        assert last["error"]["code"] == 503
        assert last["error"]["message"] == str(why)
        late = await client.post(url + path, json=body)
        assert late.status_code == 503
    assert sorted(engine.aborted) == sorted(a.request_id for a in engine.asked)


async def test_a_stream_comes_token_by_token(engine: FakeEngine) -> None:
    engine.delay = 0.05
    loop = asyncio.get_running_loop()
    async with real_server(build_app(engine, ServerArgs())) as url, httpx.AsyncClient() as client:
        body = {"prompt": "The code", "max_tokens": 4, "stream": True}
        times = []
        async with client.stream("POST", url + COMPLETIONS, json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for _ in response.aiter_raw():
                times.append(loop.time())
        assert times[-1] - times[0] > 0.1, "chunks must not be held back"


async def test_many_at_once(engine: FakeEngine) -> None:
    engine.delay = 0.001
    app = build_app(engine, ServerArgs())
    async with real_server(app) as url, httpx.AsyncClient() as client:

        async def one(i: int) -> str:
            body = {"prompt": [10 + i, 11 + i], "max_tokens": 6, "stream": i % 2 == 0}
            body |= {"return_token_ids": True}
            response = await client.post(url + COMPLETIONS, json=body, timeout=10)
            chunks = events(response.text) if i % 2 == 0 else [response.json()]
            ids = [t for c in chunks for t in c["choices"][0]["token_ids"]]
            return "right" if ids == [10 + i, 11 + i] * 3 else "wrong"

        assert set(await asyncio.gather(*(one(i) for i in range(64)))) == {"right"}
