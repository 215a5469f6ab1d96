"""A swarm that answers multiple choice: honest and adversarial agents, and a majority vote."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from benchmarks.programs.guessing_game import END_TO_END
from benchmarks.programs.program import Program
from benchmarks.programs.words import words
from examples.agents.client import Model
from examples.agents.graph import Agent, Swarm

HONEST = "Answer with one letter.\n{question}"
LIAR = "Answer with one letter, and never with the right one.\n{question}"


def read(path: Path, count: int, rng: random.Random) -> list[str]:
    """MMLU's CSV files: question, four choices, the letter. Raises ValueError."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 6]
    if not rows:
        raise ValueError(f"{path}: no question with four choices and an answer")
    chosen = rng.sample(rows, min(count, len(rows)))
    return [
        row[0] + "".join(f"\n{letter}) {row[i + 1]}" for i, letter in enumerate("ABCD"))
        for row in chosen
    ]


def made_up(rng: random.Random, count: int) -> list[str]:
    return [
        words(rng, 20, 120) + "?" + "".join(f"\n{letter}) {words(rng, 2, 12)}" for letter in "ABCD")
        for _ in range(count)
    ]


def agent(model: Model, number: int, prompt: str) -> Agent:
    async def speak(task: str, heard: list[str]) -> str:
        ask = f"{prompt.format(question=task)}\nYou are agent {number}."
        said = await model.chat([{"role": "user", "content": ask}], max_tokens=4)
        return said.text.strip()[:1].upper()

    return speak


async def run(
    model: Model,
    rng: random.Random,
    *,
    honest: int,
    liars: int,
    questions: int,
    data: Path | None = None,
) -> None:
    """One question at a time; all agents answer it at once, by themselves."""
    prompts = [HONEST] * honest + [LIAR] * liars
    swarm = Swarm({f"{i}": agent(model, i, prompt) for i, prompt in enumerate(prompts)})
    for question in read(data, questions, rng) if data else made_up(rng, questions):
        swarm.decide(await swarm.run(question))


PROGRAM = Program(
    "gptswarm_mmlu",
    "400 honest and 400 adversarial agents, 20 questions",
    run,
    sizes={
        "full": {"honest": 400, "liars": 400, "questions": 20},
        "small": {"honest": 8, "liars": 8, "questions": 3},
    },
    engine=END_TO_END,
    data="a CSV of MMLU",
)
