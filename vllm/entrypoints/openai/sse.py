"""Answering while watching the client: disconnects, shutdown, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vllm.entrypoints.openai.errors import ClientGone, describe

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


def event(value: Any) -> bytes:
    """One server-sent event. A few microseconds for a chunk of a stream."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


def named_event(kind: str, fields: dict[str, Any]) -> bytes:
    """One whose type stands before its data, and in it."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encoder.encode({"type": kind} | fields))


class Running:
    """The requests being answered: what a shutdown waits for and, in the end, cuts off."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed: Exception | None = None  # why all were cut off

    def __len__(self) -> int:
        return len(self._tasks)

    def cut(self, why: Exception) -> None:
        """End all requests, and those that still come, with this error."""
        self.closed = why
        for task in self._tasks:
            task.cancel()

    async def attend(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, unless the client hangs up first: then cancel it at once.

        Cancelled work closes its engine iterators, which aborts its requests in the engine.
        Raises ClientGone, or the error that `cut` was given.
        """
        if self.closed is not None:
            work.close()
            raise self.closed
        task = asyncio.create_task(work)
        hung_up = asyncio.create_task(_disconnected(receive))
        self._tasks.add(task)
        try:
            await asyncio.wait({task, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            if task.cancelled() and self.closed is not None:
                raise self.closed
            return task.result()
        finally:
            self._tasks.discard(task)
            task.cancel()
            hung_up.cancel()
            await asyncio.gather(task, hung_up, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A stream of events, closed by `[DONE]` or what else is given.

    The response begins with its first event, so a request that is refused before has a status of
    its own. An error after that is an event, since the status is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], running: Running, *, done: bytes = DONE
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-cache"})
        self._events, self._running, self._done = events, running, done

    @staticmethod
    def failure(error: BaseException) -> bytes:
        """The event that tells of an error."""
        return event(describe(error)[1])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGone):
            await self._running.attend(receive, self._pump(send))

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                end = self._done
            except asyncio.CancelledError:
                if self._running.closed is None:
                    raise
                end = self.failure(self._running.closed) + self._done
            except Exception as error:
                end = self.failure(error) + self._done
            await send({"type": "http.response.body", "body": end, "more_body": False})
