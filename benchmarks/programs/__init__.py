"""The benchmarks' programs. One file a program or a family of them."""

from __future__ import annotations

from benchmarks.programs import (
    generative_agents,
    gptswarm_mmlu,
    guessing_game,
    multiturn,
    ours,
    sharegpt,
)
from benchmarks.programs.program import Program

PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        generative_agents.PROGRAM,
        multiturn.SHORT,
        multiturn.LONG,
        sharegpt.PROGRAM,
        guessing_game.GAME,
        gptswarm_mmlu.PROGRAM,
        guessing_game.DIRECT,
        guessing_game.THINKING,
        *ours.PROGRAMS,
    )
}
