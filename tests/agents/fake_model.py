"""A model that says what it is told to, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from examples.agents.client import Answer, Message


class FakeModel:
    """`say(prompt)` is the answer; all requests are kept."""

    def __init__(self, say: Callable[[str], str]) -> None:
        self._say = say
        self.asked: list[str] = []
        self.extra: list[dict[str, Any]] = []
        self.slept = 0.0

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **extra: Any,
    ) -> Answer:
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
        return await self.complete(prompt, max_tokens=max_tokens, temperature=temperature, **extra)

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float = 0.0, **extra: Any
    ) -> Answer:
        self.asked.append(prompt)
        self.extra.append(extra)
        return Answer(text=self._say(prompt), output_tokens=1, times=[0.0])

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def now(self) -> float:
        return 0.0
