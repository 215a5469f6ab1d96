"""What a program asked and was told: every request's answer, and what it says in numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from examples.agents.client import Answer, Message, Model
from vllm.entrypoints.cli.bench_data import statistics

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
    """Totals, rates and latencies (milliseconds) of a run of so many seconds, and the raw lists."""
    good = [a for a in answers if a.error is None]
    asked, made = sum(a.prompt_tokens for a in good), sum(a.output_tokens for a in good)
    raw: dict[str, list[float]] = {
        "ttfts": [a.ttft for a in good],
        "tpots": [a.tpot for a in good if a.tpot is not None],
        "itls": [gap for a in good for gap in a.gaps],
        "latencies": [a.latency for a in good],
    }
    result: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": asked,
        "total_output_tokens": made,
        "total_cached_tokens": sum(a.cached_tokens for a in good),
        "request_throughput": len(good) / duration if duration else 0.0,
        "output_throughput": made / duration if duration else 0.0,
        "total_token_throughput": (asked + made) / duration if duration else 0.0,
    }
    for name, values in TIMES.items():
        for statistic, value in statistics(raw[values], [99]).items():
            result[f"{statistic}_{name}_ms"] = value * 1000
    result |= {
        "input_lens": [a.prompt_tokens for a in answers],
        "output_lens": [a.output_tokens for a in answers],
        **{name: [round(v, 6) for v in values] for name, values in raw.items()},
        "errors": sorted({a.error for a in answers if a.error is not None})[:10],
    }
    return result


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
