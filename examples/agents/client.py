"""The model as the programs see it: chats and completions, streamed, timed, and counted."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from openai import AsyncOpenAI, OpenAIError

Message = dict[str, str]


@dataclass(slots=True)
class Answer:
    """One request's text, counts in tokens, and times in seconds of the model's clock.

    `times`: when each chunk of the answer came. `error`: what went wrong; the text is what came
    before that.
    """

    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    start: float = 0.0
    times: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def end(self) -> float:
        return self.times[-1] if self.times else self.start

    @property
    def ttft(self) -> float:
        return (self.times[0] if self.times else self.start) - self.start

    @property
    def latency(self) -> float:
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Seconds an output token after the first; None for a single token."""
        if self.output_tokens < 2 or not self.times:
            return None
        return (self.end - self.times[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class Model(Protocol):
    """A server, or an engine in simulated time; programs must take time from it alone.

    `extra` are fields of the request beyond OpenAI's. Nothing raises for what the server does:
    the answer's `error` tells.
    """

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **extra: Any,
    ) -> Answer: ...

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float = 0.0, **extra: Any
    ) -> Answer: ...

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float: ...


class OpenAIModel:
    """Any OpenAI-compatible server, through the `openai` client."""

    def __init__(self, base_url: str, api_key: str = "EMPTY", model: str | None = None) -> None:
        self._client = AsyncOpenAI(
            base_url=base_url, api_key=api_key, max_retries=0, timeout=3600.0
        )
        self._model = model

    async def close(self) -> None:
        """Its connections, before the event loop ends."""
        await self._client.close()

    async def name(self) -> str:
        """The model that is asked: the one given, else the first that the server lists."""
        if self._model is None:
            self._model = (await self._client.models.list()).data[0].id
        return self._model

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **extra: Any,
    ) -> Answer:
        def open_it(body: dict[str, Any]) -> Any:
            return self._client.chat.completions.create(messages=list(messages), **body)

        return await self._ask(open_it, _chat_piece, max_tokens, temperature, extra)

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float = 0.0, **extra: Any
    ) -> Answer:
        def open_it(body: dict[str, Any]) -> Any:
            return self._client.completions.create(prompt=prompt, **body)

        return await self._ask(open_it, _text_piece, max_tokens, temperature, extra)

    async def _ask(
        self,
        open_it: Callable[[dict[str, Any]], Any],
        piece_of: Callable[[Any], str | None],
        max_tokens: int,
        temperature: float,
        extra: dict[str, Any],
    ) -> Answer:
        answer = Answer()
        pieces: list[str] = []
        try:
            body = {
                "model": await self.name(),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "stream": True,
                "stream_options": {"include_usage": True},
                "extra_body": extra or None,
            }
            answer.start = self.now()
            async for chunk in await open_it(body):
                if chunk.choices and (piece := piece_of(chunk.choices[0])) is not None:
                    answer.times.append(self.now())
                    pieces.append(piece)
                if chunk.usage:
                    answer.prompt_tokens = chunk.usage.prompt_tokens
                    answer.output_tokens = chunk.usage.completion_tokens
                    details = chunk.usage.prompt_tokens_details
                    answer.cached_tokens = (details.cached_tokens if details else None) or 0
        except OpenAIError as error:
            answer.error = " ".join(str(error).split())[:500]
        answer.text = "".join(pieces)
        return answer

    async def pieces(self, messages: Sequence[Message], **body: Any) -> AsyncIterator[str]:
        """A chat's answer as it comes, for people. Raises openai.OpenAIError."""
        stream = await self._client.chat.completions.create(
            model=await self.name(), messages=list(messages), stream=True, **body
        )
        async for chunk in stream:
            if chunk.choices and (piece := _chat_piece(chunk.choices[0])):
                yield piece

    async def more(self, prompt: str, **body: Any) -> AsyncIterator[str]:
        """A completion as it comes. Raises openai.OpenAIError."""
        stream = await self._client.completions.create(
            model=await self.name(), prompt=prompt, stream=True, **body
        )
        async for chunk in stream:
            if chunk.choices:
                yield chunk.choices[0].text

    async def post(self, path: str) -> int:
        """Call one of the server's own verbs, as /start_profile; the HTTP status."""
        url = str(self._client.base_url).removesuffix("/").removesuffix("/v1") + path
        response = await self._client._client.post(url, headers=self._client.auth_headers)
        return response.status_code

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def now(self) -> float:
        return time.perf_counter()


def _chat_piece(choice: Any) -> str | None:
    """None for the chunk that only names the role or the reason to end: it is no token."""
    return choice.delta.content or None


def _text_piece(choice: Any) -> str | None:
    return choice.text or None


def connect(args: argparse.Namespace) -> OpenAIModel:
    return OpenAIModel(args.base_url, args.api_key, args.model)
