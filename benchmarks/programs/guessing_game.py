"""The guessing game at three sizes. Each participant's history is its own, the rules are shared."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.programs.program import CONTEXT, SMALL, Program
from examples.agents.client import Model
from examples.agents.guessing_game import Game, play
from examples.agents.personas import personas


async def run(
    model: Model,
    rng: random.Random,
    *,
    participants: int,
    steps: int,
    think: bool = False,
    answer_tokens: int = 48,
) -> None:
    game = Game(steps=steps, temperature=0.0, think=think, answer_tokens=answer_tokens)
    await play(model, personas(participants, rng.randrange(1 << 30)), game)


# At these sizes the device's memory sets the number of blocks, and 16 GiB of the host's.
OWN_MEMORY: dict[str, Any] = {
    "num_gpu_blocks_override": None,
    "num_cpu_blocks_override": None,
    "swap_space": 16.0,
}
END_TO_END = {"full": CONTEXT["full"] | OWN_MEMORY, "small": SMALL}

GAME = Program(
    "guessing_game",
    "20 participants, 5 rounds, two calls each",
    run,
    sizes={
        "full": {"participants": 20, "steps": 5},
        "small": {"participants": 6, "steps": 3, "answer_tokens": 16},
    },
)
DIRECT = Program(
    "guessing_game_e2e",
    "800 participants, 5 rounds",
    run,
    sizes={
        "full": {"participants": 800, "steps": 5},
        "small": {"participants": 10, "steps": 2, "answer_tokens": 12},
    },
    engine=END_TO_END,
)
THINKING = Program(
    "guessing_game_e2e_cot",
    "800 participants that think step by step, 5 rounds",
    run,
    sizes={
        "full": {"participants": 800, "steps": 5, "think": True, "answer_tokens": 300},
        "small": {"participants": 8, "steps": 2, "think": True, "answer_tokens": 40},
    },
    engine=END_TO_END,
)
