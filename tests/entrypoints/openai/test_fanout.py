from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import pytest

from vllm.entrypoints.openai.fanout import gather, merge


class Streams:
    """Streams of numbers that tell when they are closed."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    async def make(self, which: int, count: int, *, fails: bool = False) -> AsyncGenerator[Any]:
        try:
            for i in range(count):
                await asyncio.sleep(0)
                yield which * 100 + i
            if fails:
                raise LookupError(which)
        finally:
            self.closed.append(which)


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_early_closes_all_before_it_returns(streams: Streams, count: int) -> None:
    """Not when the garbage collector comes by: a request that nobody reads must end at once."""
    made = [streams.make(i, 1000) for i in range(count)]
    merged = merge(made)
    await anext(merged)
    await anext(merged)
    await merged.aclose()
    assert sorted(streams.closed) == list(range(count))


async def test_merged_streams_keep_their_own_order(streams: Streams) -> None:
    got: dict[int, list[int]] = {0: [], 1: [], 2: []}
    async for which, value in merge([streams.make(i, 3 + i) for i in range(3)]):
        got[which].append(value)
    assert got == {i: [i * 100 + k for k in range(3 + i)] for i in range(3)}


async def test_one_that_fails_closes_the_others(streams: Streams) -> None:
    with pytest.raises(LookupError):
        async for _ in merge([streams.make(0, 1000), streams.make(1, 3, fails=True)]):
            pass
    assert sorted(streams.closed) == [0, 1]
    streams.closed.clear()
    with pytest.raises(LookupError):
        await gather([streams.make(0, 1000), streams.make(1, 3, fails=True)])
    assert sorted(streams.closed) == [0, 1]


async def test_gather_gives_each_last_output(streams: Streams) -> None:
    assert await gather([streams.make(0, 4)]) == [3]
    assert await gather([streams.make(0, 4), streams.make(1, 2)]) == [3, 101]
    with pytest.raises(RuntimeError, match="without an output"):
        await gather([streams.make(0, 0)])


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_closes_all(streams: Streams, count: int) -> None:
    task = asyncio.create_task(gather([streams.make(i, 10**9) for i in range(count)]))
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert sorted(streams.closed) == list(range(count))
