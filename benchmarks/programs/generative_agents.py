"""Calls as the Generative Agents make them (Park et al., 2023): five kinds, one after the other.

Each kind has a long prompt of its own that all calls share, then who the agent is, then the moment.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.programs.program import Program
from benchmarks.programs.words import words
from examples.agents.client import Model
from examples.agents.personas import personas

KINDS = {  # instructions in words, tokens of the answer
    "importance": (220, 2),
    "plan": (340, 20),
    "place": (180, 6),
    "action": (260, 10),
    "mood": (150, 5),
}


async def run(
    model: Model, rng: random.Random, *, events: int, agents: int = 25, data: Path | None = None
) -> None:
    """data: JSONL with `prompt` and `max_tokens`, in the order of the calls."""
    if data is not None:
        with data.open(encoding="utf-8") as file:
            calls = [json.loads(line) for line, _ in zip(file, range(events), strict=False)]
        for call in calls:
            await model.complete(call["prompt"], max_tokens=call["max_tokens"])
        return
    instructions = {kind: words(rng, length) for kind, (length, _) in KINDS.items()}
    people = personas(agents, rng.randrange(1 << 30))
    for _ in range(events):
        kind = rng.choice(list(KINDS))
        prompt = f"{instructions[kind]}\n{rng.choice(people)}\n{words(rng, 10, 60)}"
        await model.complete(prompt, max_tokens=KINDS[kind][1])


PROGRAM = Program(
    "generative_agents",
    "five kinds of calls, strictly one after the other",
    run,
    sizes={"full": {"events": 200}, "small": {"events": 30, "agents": 5}},
    data="JSONL: prompt, max_tokens",
)
