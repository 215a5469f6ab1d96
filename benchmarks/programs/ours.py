"""Programs that stress what is new: branching, pauses, many readers of one document."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from benchmarks.programs.program import SMALL, Program
from benchmarks.programs.words import words
from examples.agents import debate as debates
from examples.agents import map_reduce as reading
from examples.agents import supervisor as supervisors
from examples.agents import tool_sessions as tools
from examples.agents import tree_of_thought as thoughts
from examples.agents.client import Model
from examples.agents.personas import personas
from examples.agents.texts import document, facts


async def debate(
    model: Model,
    rng: random.Random,
    *,
    debates_at_once: int,
    debaters: int,
    rounds: int,
    tokens: int,
) -> None:
    async def one(seed: float) -> None:
        own = random.Random(seed)
        people = personas(debaters, own.randrange(1 << 30))
        await debates.debate(model, words(own, 100), people, rounds, answer_tokens=tokens)

    await asyncio.gather(*(one(rng.random()) for _ in range(debates_at_once)))


async def tree(
    model: Model,
    rng: random.Random,
    *,
    trees: int,
    branches: int,
    depth: int,
    keep: int,
    task: int,
    tokens: int,
) -> None:
    """task: words of the problem."""
    problems = [words(rng, task) for _ in range(trees)]
    await asyncio.gather(
        *(
            thoughts.search(
                model, text, branches=branches, depth=depth, keep=keep, step_tokens=tokens
            )
            for text in problems
        )
    )


async def map_reduce(
    model: Model, rng: random.Random, *, documents: int, sentences: int, questions: int
) -> None:
    """Documents one after the other, all questions on one at once, a second round of them after."""
    texts = [
        (document(rng, sentences, told), told)
        for told in (facts(rng, questions) for _ in range(documents))
    ]
    for _ in range(2):
        for text, told in texts:
            asked = [f"What is the code of {name}?" for name in told]
            await reading.answer_all(model, reading.parts_of(text, 40), asked)


async def tool_sessions(
    model: Model,
    rng: random.Random,
    *,
    sessions: int,
    calls: int,
    pause: float,
    strangers: int,
    **more: Any,
) -> None:
    """Sessions, and strangers that come once each while the sessions' tools work."""

    async def stranger(own: random.Random) -> None:
        await model.sleep(own.uniform(0, pause * calls))
        await model.complete(document(own, 60), max_tokens=8)

    seeds = [rng.random() for _ in range(strangers)]
    await asyncio.gather(
        tools.sessions(model, rng, sessions, calls=calls, pause=pause, **more),
        *(stranger(random.Random(seed)) for seed in seeds),
    )


async def supervisor(
    model: Model, rng: random.Random, *, workers: int, rounds: int, sentences: int, **more: Any
) -> None:
    await supervisors.supervise(
        model, rng, workers=workers, rounds=rounds, sentences=sentences, **more
    )


TOOL_SESSIONS: dict[str, dict[str, Any]] = {
    "full": {"sessions": 8, "calls": 5, "pause": 4.0, "strangers": 80},
    "small": {"sessions": 3, "calls": 3, "pause": 0.2, "strangers": 6, "result_sentences": 10},
}
PROGRAMS = [
    Program(
        "debate",
        "debaters who read one transcript, in rounds",
        debate,
        sizes={
            "full": {"debates_at_once": 8, "debaters": 6, "rounds": 3, "tokens": 64},
            "small": {"debates_at_once": 2, "debaters": 3, "rounds": 2, "tokens": 16},
        },
    ),
    Program(
        "tree_of_thought",
        "searches over thoughts that branch",
        tree,
        sizes={
            "full": {"trees": 8, "branches": 5, "depth": 4, "keep": 3, "task": 400, "tokens": 64},
            "small": {"trees": 2, "branches": 2, "depth": 2, "keep": 2, "task": 100, "tokens": 12},
        },
    ),
    Program(
        "map_reduce",
        "many questions on each part of a document, twice",
        map_reduce,
        sizes={
            "full": {"documents": 6, "sentences": 400, "questions": 8},
            "small": {"documents": 2, "sentences": 80, "questions": 3},
        },
    ),
    Program(
        "tool_sessions",
        "sessions that pause for tools, strangers coming between",
        tool_sessions,
        sizes=TOOL_SESSIONS,
    ),
    Program(
        "tool_sessions_retained",
        "the same, the sessions asking for their blocks to be kept",
        tool_sessions,
        sizes={scale: sizes | {"retain": 60.0} for scale, sizes in TOOL_SESSIONS.items()},
    ),
    Program(
        "supervisor",
        "hundreds of workers with one long instruction",
        supervisor,
        sizes={
            "full": {"workers": 300, "rounds": 3, "sentences": 300},
            "small": {"workers": 12, "rounds": 2, "sentences": 60},
        },
        engine={"full": {"max_model_len": 8192}, "small": SMALL},
    ),
]
