"""One timed, streaming request of `vllm bench serve`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from vllm.entrypoints.cli.bench_datasets import Sample


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    model: str
    chat: bool
    extra: dict[str, Any]  # fields of every body

    def body(self, sample: Sample) -> dict[str, Any]:
        body = {
            "model": self.model,
            "max_tokens": sample.output_len,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": sample.prompt}]
        else:
            body["prompt"] = sample.prompt
        return body | self.extra


@dataclass(slots=True)
class Answer:
    """Seconds and counts of one request; `error` when it failed."""

    ttft: float = 0.0
    latency: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def tpot(self) -> float | None:
        """Seconds a token behind the first; None where there is no such token."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


async def ask(
    client: httpx.AsyncClient, target: Target, sample: Sample, request_id: str | None = None
) -> Answer:
    """Never raises for what the server does: the answer tells."""
    headers = {"X-Request-Id": request_id} if request_id else None
    answer = Answer()
    start = last = time.perf_counter()
    try:
        async with client.stream(
            "POST", target.url, json=target.body(sample), headers=headers
        ) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode("utf-8", "replace")
                answer.error = f"HTTP {response.status_code}: {text[:500]}"
                return answer
            async for event in _events(response):
                now = time.perf_counter()
                if "error" in event:
                    answer.error = str(event["error"])[:500]
                    return answer
                if usage := event.get("usage"):
                    answer.prompt_tokens = usage["prompt_tokens"]
                    answer.output_tokens = usage["completion_tokens"]
                    details = usage.get("prompt_tokens_details") or {}
                    answer.cached_tokens = details.get("cached_tokens") or 0
                # A chat's first chunk names the role only, so it is no token.
                if not event["choices"] or (
                    target.chat and event["choices"][0]["delta"].get("role")
                ):
                    continue
                if answer.ttft:
                    answer.gaps.append(now - last)
                else:
                    answer.ttft = now - start
                last = now
    except (httpx.HTTPError, ValueError, KeyError) as error:
        answer.error = repr(error)[:500]
    answer.latency = last - start
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    buffer = b""
    async for piece in response.aiter_raw():
        buffer += piece
        *complete, buffer = buffer.split(b"\n\n")
        for event in complete:
            if not event.startswith(b"data: "):
                continue  # a comment that keeps the connection alive
            data = event.removeprefix(b"data: ")
            if data != b"[DONE]":
                yield json.loads(data)
