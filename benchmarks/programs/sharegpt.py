"""Single questions that come at random times (Poisson): nothing to share but the odd beginning."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.programs.program import Program
from benchmarks.programs.words import words
from examples.agents.client import Model

LONGEST, LONGEST_WHOLE, SHORTEST = 1024, 2048, 4  # tokens of the prompt, and with the answer


def made_up(rng: random.Random, count: int) -> list[tuple[str, int]]:
    """Prompts and lengths of answers: log-normal, as ShareGPT's nearly are."""
    requests = []
    while len(requests) < count:
        asked, told = int(rng.lognormvariate(4.2, 1.3)), int(rng.lognormvariate(4.8, 1.0))
        if SHORTEST <= asked <= LONGEST and told >= SHORTEST and asked + told <= LONGEST_WHOLE:
            requests.append((words(rng, asked), told))
    return requests


def read(path: Path, count: int, rng: random.Random) -> list[tuple[str, int]]:
    """First two turns of ShareGPT_V3's `conversations`, or `input` and `output_length`.

    Lengths are counted in words there: a tokenizer would count about a third more. Raises
    ValueError when nothing in the file can be used.
    """
    items: list[Any] = json.loads(path.read_text(encoding="utf-8"))
    pairs: list[tuple[str, int]] = []
    for item in items:
        turns = item.get("conversations") or []
        if len(turns) >= 2:
            pairs.append((turns[0]["value"], len(turns[1]["value"].split())))
        elif "input" in item:
            pairs.append((item["input"], int(item["output_length"])))
    fitting = [
        (asked, told)
        for asked, told in pairs
        if SHORTEST <= len(asked.split()) <= LONGEST
        and told >= SHORTEST
        and len(asked.split()) + told <= LONGEST_WHOLE
    ]
    if not fitting:
        raise ValueError(f"{path}: no conversation that fits")
    return rng.sample(fitting, min(count, len(fitting)))


async def run(
    model: Model, rng: random.Random, *, requests: int, rate: float, data: Path | None = None
) -> None:
    """rate: requests a second."""
    asked = read(data, requests, rng) if data else made_up(rng, requests)

    async def one(prompt: str, tokens: int, at: float) -> None:
        await model.sleep(at)
        await model.complete(prompt, max_tokens=tokens)

    at, tasks = 0.0, []
    for prompt, tokens in asked:
        tasks.append(one(prompt, tokens, at))
        at += rng.expovariate(rate)
    await asyncio.gather(*tasks)


PROGRAM = Program(
    "sharegpt",
    "200 single questions, 4 a second",
    run,
    sizes={"full": {"requests": 200, "rate": 4.0}, "small": {"requests": 20, "rate": 20.0}},
    data="ShareGPT_V3's JSON, or a JSON list of input and output_length",
)
