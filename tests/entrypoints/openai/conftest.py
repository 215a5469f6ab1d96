from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.metrics import Metrics

from .fake_engine import FakeEngine

Connect = Callable[..., httpx.AsyncClient]

CALLS: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
THINKS_AND_CALLS = CALLS | {"reasoning_parser": "deepseek_r1"}
THOUGHT_AND_CALL = [
    "Hm.</think>",
    "Well. ",
    '<tool_call>{"name": "look", "arg',
    'uments": {"a": 1}}',
    "</tool_call>",
]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def connect(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """A client of an app in this process, which may be given server arguments, and metrics."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def make(
        engine: FakeEngine = engine, metrics: Metrics | None = None, **args: Any
    ) -> httpx.AsyncClient:
        app = build_app(engine, ServerArgs(**args), metrics)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


@pytest.fixture
def client(connect: Connect) -> httpx.AsyncClient:
    return connect()


@asynccontextmanager
async def real_server(app: Any) -> AsyncIterator[str]:
    """The app behind a real socket, for what only a connection can show."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task


def events(text: str) -> list[Any]:
    """The values of a stream that ends as it must."""
    assert text.endswith("data: [DONE]\n\n")
    parts = text.removesuffix("\n\n").split("\n\n")
    assert all(part.startswith("data: ") for part in parts)
    assert parts.count("data: [DONE]") == 1
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
