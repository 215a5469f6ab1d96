"""Requests from a file in OpenAI's batch format, answered by the app without a socket."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
from fastapi import FastAPI

from vllm.entrypoints.openai.errors import envelope
from vllm.entrypoints.openai.guard import MAX_BODY

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
MAX_LINE = MAX_BODY + (64 << 10)
MAX_ID = 512


class BatchRequest(msgspec.Struct):
    """One line of the input."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class BatchResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: Any


class BatchOutput(msgspec.Struct):
    """One line of the output. A refusal is in the response's body, and in `error` as in vLLM."""

    id: str
    custom_id: str
    response: BatchResponse
    error: Any = None


def read(path: Path) -> Iterator[BatchRequest]:
    """The requests of a file; empty lines are none. Raises ValueError, naming the line."""
    decode = msgspec.json.Decoder(BatchRequest).decode
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(f"line {number} has more than {MAX_LINE} bytes")
            if not line.strip():
                continue
            try:
                request = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
            if not 1 <= len(request.custom_id) <= MAX_ID:
                raise ValueError(f"line {number}: custom_id must have 1 to {MAX_ID} characters")
            yield request


def check(path: Path) -> int:
    """Look at all lines before any is answered; how many requests there are.

    Raises ValueError for a line that is none, an id that comes twice, OSError.
    """
    seen: set[str] = set()
    for request in read(path):
        if request.custom_id in seen:
            raise ValueError(f"the custom_id {request.custom_id!r} comes twice")
        seen.add(request.custom_id)
    return len(seen)


async def answer_all(
    app: FastAPI,
    requests: Iterable[BatchRequest],
    write: Callable[[BatchOutput], None],
    *,
    max_inflight: int,
    key: str | None = None,
) -> None:
    """Answer them, at most so many at once, and write the answers in the requests' order.

    key: one that opens the app, where it has keys.
    """
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    under_way: deque[asyncio.Task[BatchOutput]] = deque()
    async with httpx.AsyncClient(
        transport=transport, base_url="http://batch", headers=headers, timeout=None
    ) as client:
        try:
            for request in requests:
                if len(under_way) == max_inflight:
                    write(await under_way[0])
                    under_way.popleft()
                under_way.append(asyncio.create_task(_answer(client, request)))
            while under_way:
                write(await under_way[0])
                under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def _answer(client: httpx.AsyncClient, request: BatchRequest) -> BatchOutput:
    refusal = _refusal(request)
    if refusal is None:
        answer = await client.post(request.url, json=request.body)
        status, body = answer.status_code, msgspec.json.decode(answer.content)
    else:
        status, body = 400, refusal
    response = BatchResponse(status, f"vllm-batch-{uuid.uuid4().hex}", body)
    return BatchOutput(
        f"vllm-{uuid.uuid4().hex}", request.custom_id, response, None if status == 200 else body
    )


def _refusal(request: BatchRequest) -> dict[str, Any] | None:
    if request.url not in URLS:
        known = ", ".join(URLS)
        return envelope(400, f"url is {request.url!r}; batches take {known}", param="url")
    if request.body.get("stream"):
        return envelope(400, "answers of a batch cannot be streamed", param="stream")
    return None
