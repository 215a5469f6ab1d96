"""Server processes, from their start to each of their ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from vllm.entrypoints.openai.launcher import address, bind
from vllm.entrypoints.server_args import ServerArgs

from .conftest import events

PROGRAM = Path(__file__).with_name("serve_fake.py")
COMPLETE = {"prompt": "The code", "max_tokens": 20, "stream": True}


Started = Callable[..., AbstractAsyncContextManager[tuple[asyncio.subprocess.Process, str]]]


@pytest.fixture
def started(tokenizer_folder: Path) -> Started:
    """Starts a server with the options of serve_fake.py; it is gone afterwards."""
    return partial(_started, tokenizer=str(tokenizer_folder))


@asynccontextmanager
async def _started(**options: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        msgspec.json.encode(options).decode(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    await client.get(f"{url}/health")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def begun(client: httpx.AsyncClient, url: str) -> asyncio.Task[str]:
    """A stream whose first token has come; the task gives its whole text."""
    first = asyncio.Event()

    async def read() -> str:
        text = ""
        async with client.stream("POST", f"{url}/v1/completions", json=COMPLETE, timeout=20) as r:
            assert r.status_code == 200
            async for piece in r.aiter_text():
                text += piece
                first.set()
        return text

    task = asyncio.create_task(read())
    await asyncio.wait_for(first.wait(), 10)
    assert not task.done()
    return task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_server_ends_at_once(started: Started, number: signal.Signals) -> None:
    async with started(shutdown_timeout=30) as (process, _):
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 3) == 0


async def test_running_requests_may_finish(started: Started) -> None:
    async with started(delay=0.05, shutdown_timeout=30) as (process, url):
        async with httpx.AsyncClient() as client:
            stream = await begun(client, url)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                await httpx.AsyncClient().get(f"{url}/health")
            chunks = events(await stream)
        assert len(chunks) == 20
        assert await asyncio.wait_for(process.wait(), 3) == 0


@pytest.mark.parametrize("signals", [1, 2])
async def test_what_runs_too_long_is_cut_off(started: Started, signals: int) -> None:
    """By the timeout, or by a second signal before it."""
    timeout = 0 if signals == 1 else 30
    async with started(delay=0.5, shutdown_timeout=timeout) as (process, url):
        async with httpx.AsyncClient() as client:
            stream = await begun(client, url)
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
            error = events(await stream)[-1]
        assert error["error"]["code"] == 503
        assert "shutting down" in error["error"]["message"]
        assert await asyncio.wait_for(process.wait(), 5) == 0


async def test_a_server_whose_engine_dies_ends_with_an_error(started: Started) -> None:
    async with started(delay=0.2) as (process, url):
        async with httpx.AsyncClient() as client:
            stream = await begun(client, url)
            process.send_signal(signal.SIGUSR1)
            assert events(await stream)[-1]["error"]["code"] == 503
            await asyncio.sleep(0.5)
            assert (await client.get(f"{url}/health")).status_code == 503, "it is told for a while"
        assert await asyncio.wait_for(process.wait(), 5) == 1


async def test_paths_may_be_kept_out_of_the_access_log(started: Started) -> None:
    async with started(disable_access_log_for_endpoints="/health, /metrics") as (process, url):
        async with httpx.AsyncClient() as client:
            for path in ("/health?a=1", "/version", "/metrics"):
                await client.get(url + path)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        told = (await process.stdout.read()).decode()
    assert "GET /version" in told
    assert "/health" not in told and "/metrics" not in told


def test_a_port_that_is_taken_is_an_error_before_anything_loads() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        bind(ServerArgs(port=taken.getsockname()[1]))


def test_addresses(tmp_path: Path) -> None:
    args = ServerArgs(port=0)
    with bind(args) as listener:
        assert address(args, listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    args = ServerArgs(uds=str(tmp_path / "server.sock"))
    with bind(args) as listener:
        assert address(args, listener) == f"unix:{tmp_path}/server.sock"
