"""Several engine iterators as one: gathered to their ends, or merged as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput


async def gather(streams: list[AsyncGenerator[RequestOutput, None]]) -> list[RequestOutput]:
    """Each stream's last output. If one fails, or this is cancelled, all others are closed."""
    if len(streams) == 1:
        return [await _last(streams[0])]
    tasks = [asyncio.create_task(_last(stream)) for stream in streams]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def merge(
    streams: list[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(which, output) in the order of arrival. If one fails, or this is closed, all are closed."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for output in only:
                yield 0, output
        return
    # The engine runs ahead of a slow client by what it holds back anyhow, so no bound is needed.
    arrived: asyncio.Queue[tuple[int, RequestOutput | BaseException | None]] = asyncio.Queue()

    async def forward(which: int, stream: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async for output in stream:
                arrived.put_nowait((which, output))
            arrived.put_nowait((which, None))
        except Exception as error:
            arrived.put_nowait((which, error))

    tasks = [asyncio.create_task(forward(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            which, item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield which, item
    finally:
        await _end(tasks)


async def _last(stream: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    last = None
    async for output in stream:
        last = output
    if last is None:
        raise RuntimeError("the engine ended a request without an output")
    return last


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
