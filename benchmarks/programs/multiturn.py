"""Chats of random words over several turns, all at once; every turn sends the whole history."""

from __future__ import annotations

import asyncio
import random

from benchmarks.programs.program import Program
from benchmarks.programs.words import words
from examples.agents.client import Message, Model


async def run(
    model: Model,
    rng: random.Random,
    *,
    chats: int,
    turns: int,
    question: tuple[int, int],
    answer: tuple[int, int],
) -> None:
    """question, answer: least and most tokens."""

    async def chat(own: random.Random) -> None:
        history: list[Message] = []
        for _ in range(turns):
            history.append({"role": "user", "content": words(own, *question)})
            said = await model.chat(history, max_tokens=own.randint(*answer))
            history.append({"role": "assistant", "content": said.text})

    await asyncio.gather(*(chat(random.Random(rng.random())) for _ in range(chats)))


SMALL_SIZES = {"chats": 6, "turns": 3, "question": (100, 200)}
SHORT = Program(
    "multiturn_short",
    "20 chats of 4 turns, long questions and short answers",
    run,
    sizes={
        "full": {"chats": 20, "turns": 4, "question": (256, 512), "answer": (4, 8)},
        "small": SMALL_SIZES | {"answer": (4, 8)},
    },
)
LONG = Program(
    "multiturn_long",
    "10 chats of 4 turns, long questions and long answers",
    run,
    sizes={
        "full": {"chats": 10, "turns": 4, "question": (256, 512), "answer": (64, 128)},
        "small": SMALL_SIZES | {"answer": (16, 32)},
    },
)
