"""What a program asked and was told: every request's answer, and what it says in numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from examples.agents.client import Answer, Message, Model
from vllm.entrypoints.cli import bench_result

TIMES = {"ttft": "ttfts", "tpot": "tpots", "itl": "itls", "e2el": "latencies"}


class Recorder:
    """A `Model` that keeps all answers. Outputs are as long as asked for, so that runs compare."""

    def __init__(self, model: Model, progress: Callable[[], object] = lambda: None) -> None:
        self._model = model
        self._progress = progress
        self.answers: list[Answer] = []
        self.texts: dict[str, str] = {}  # digest of a greedy request -> digest of its answer

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **extra: Any,
    ) -> Answer:
        asked = [list(messages), max_tokens, extra] if temperature == 0 else None
        return self._keep(
            asked,
            await self._model.chat(
                messages, max_tokens=max_tokens, temperature=temperature, ignore_eos=True, **extra
            ),
        )

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float = 0.0, **extra: Any
    ) -> Answer:
        asked = [prompt, max_tokens, extra] if temperature == 0 else None
        return self._keep(
            asked,
            await self._model.complete(
                prompt, max_tokens=max_tokens, temperature=temperature, ignore_eos=True, **extra
            ),
        )

    async def sleep(self, seconds: float) -> None:
        await self._model.sleep(seconds)

    def now(self) -> float:
        return self._model.now()

    def _keep(self, asked: object, answer: Answer) -> Answer:
        self.answers.append(answer)
        if asked is not None and answer.error is None:
            self.texts[_digest(json.dumps(asked))] = _digest(answer.text)
        self._progress()
        return answer


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measures(answers: Sequence[Answer], duration: float) -> dict[str, Any]:
    """As `vllm bench serve` tells them, and the raw lists."""
    return bench_result.measures(answers, duration, [99]) | {
        "input_lens": [a.prompt_tokens for a in answers],
        "output_lens": [a.output_tokens for a in answers],
        **{
            TIMES[name]: [round(second, 6) for second in seconds]
            for name, seconds in bench_result.times(answers).items()
        },
    }


def differences(texts: dict[str, dict[str, str]]) -> dict[str, int]:
    """By server: greedy requests that it answered unlike the first server, prompts being equal."""
    first, *others = texts
    return {
        name: sum(
            texts[name][prompt] != told
            for prompt, told in texts[first].items()
            if prompt in texts[name]
        )
        for name in others
    }
