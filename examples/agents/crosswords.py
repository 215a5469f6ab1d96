"""Mini crosswords with three kinds of agents, whose edges are learnt from how well they do.

python -m examples.agents.crosswords --data mini0505.json

The puzzles are those of Tree of Thoughts (Yao et al., 2023; `mini0505.json`: [10 clues, 25 letters]
each). Without a file a few of ours are played. A proposer answers clue by clue, a checker corrects
a proposal, a filler takes what the others said and writes the grid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from examples.agents.chatbot import run
from examples.agents.client import Model, connect
from examples.agents.graph import Agent, Swarm
from examples.agents.settings import add_flags

SIZE = 5
OWN = [
    (
        [
            "It beats in the chest",
            "A coal that still glows",
            "To treat badly",
            "What amber was once",
            "The way that things go",
            "The middle of the matter",
            "What is left of a fire",
            "Insults",
            "Varnish is made of it",
            "A fashion",
        ],
        "HEARTEMBERABUSERESINTREND",
    )
]
TASK = "A crossword of 5 by 5 letters. Clues: {clues}"
KINDS = {
    "propose": "Answer each clue with a word of 5 letters, one a line.",
    "check": "Here are words for the clues. Write them again, one a line, with corrections.",
    "fill": "Write the 5 words of the rows, one a line, so that the columns are words, too.",
}
WORD = re.compile(r"[A-Za-z]{5}")


@dataclass(frozen=True)
class Puzzle:
    clues: list[str]  # of 5 rows, then of 5 columns
    letters: str  # 25, row by row

    @property
    def task(self) -> str:
        return TASK.format(clues="; ".join(f"{i + 1}. {clue}" for i, clue in enumerate(self.clues)))

    def score(self, text: str) -> float:
        """Share of the letters that the last five words of the text get right."""
        words = WORD.findall(text)[-SIZE:]
        grid = "".join(words).upper().ljust(SIZE * SIZE)
        return sum(a == b for a, b in zip(grid, self.letters, strict=True)) / (SIZE * SIZE)


def read_puzzles(path: Path) -> list[Puzzle]:
    """Raises ValueError that names the first puzzle which is none."""
    puzzles = []
    for number, item in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        clues, letters = item if isinstance(item, list) and len(item) == 2 else ((), ())
        if len(clues) != 2 * SIZE or len(letters) != SIZE * SIZE:
            raise ValueError(f"{path}: puzzle {number} has not 10 clues and 25 letters")
        puzzles.append(Puzzle([str(c) for c in clues], "".join(letters).upper()))
    return puzzles


def agent(model: Model, kind: str) -> Agent:
    async def speak(task: str, heard: list[str]) -> str:
        others = "".join(f" Words so far: {words}" for words in heard)
        ask = f"{task} {KINDS[kind]}{others}"
        return (await model.chat([{"role": "user", "content": ask}], max_tokens=48)).text

    return speak


async def learn(
    model: Model,
    puzzles: list[Puzzle],
    rng: random.Random,
    *,
    iterations: int,
    batch: int,
    rate: float,
    progress: tqdm[object] | None = None,
) -> tuple[Swarm, list[float]]:
    """The swarm after so many steps, and the mean score of each step."""
    swarm = Swarm.complete({kind: agent(model, kind) for kind in KINDS})
    swarm.voters = ["fill"]
    means = []
    for _ in range(iterations):
        drawn = [swarm.draw(rng) for _ in range(batch)]
        chosen = [rng.choice(puzzles) for _ in range(batch)]
        said = await asyncio.gather(
            *(swarm.run(p.task, graph) for p, graph in zip(chosen, drawn, strict=True))
        )
        scores = [p.score(swarm.decide(s)) for p, s in zip(chosen, said, strict=True)]
        swarm.learn(zip(drawn, scores, strict=True), rate)
        means.append(sum(scores) / len(scores))
        if progress is not None:
            progress.update()
            progress.set_postfix(score=f"{means[-1]:.3f}")
    return swarm, means


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--data", type=Path, help="mini0505.json; default: ours.")
    parser.add_argument("--iterations", type=int, default=11)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        puzzles = read_puzzles(args.data) if args.data else [Puzzle(*p) for p in OWN]
    except (OSError, ValueError) as error:
        parser.error(str(error))

    async def work() -> None:
        with tqdm(total=args.iterations, unit="step") as bar:
            swarm, means = await learn(
                connect(args),
                puzzles,
                random.Random(args.seed),
                iterations=args.iterations,
                batch=args.batch,
                rate=args.learning_rate,
                progress=bar,
            )
        print(f"letters right: {means[0]:.3f} at first, {means[-1]:.3f} at the end")
        for (a, b), _ in sorted(swarm.edges.items()):
            print(f"{a:8} -> {b:8} {swarm.probability((a, b)):.3f}")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
