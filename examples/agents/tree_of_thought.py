"""A search over thoughts (Yao et al., 2023): branch, rate, keep the best, go deeper.

python -m examples.agents.tree_of_thought --branches 3 --depth 3 --keep 2

Every thought continues its parent's prompt, and every rating that thought's: the tree of prompts is
a tree of cached prefixes.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from dataclasses import dataclass

from examples.agents.chatbot import run
from examples.agents.client import Message, Model, connect
from examples.agents.settings import add_flags

TASK = "Make 24 of the numbers 4, 9, 10 and 13, each used once."
NEXT = "Write the next step. It is attempt {number}; take another way than the others."
RATE = "How likely does this lead to the end? Write a whole number from 0 to 10."
NUMBER = re.compile(r"\d+")


@dataclass
class Thought:
    """A path from the task: the conversation so far, and its latest rating."""

    messages: list[Message]
    rating: int = 0

    @property
    def steps(self) -> list[str]:
        return [m["content"] for m in self.messages if m["role"] == "assistant"]


async def search(
    model: Model,
    task: str,
    *,
    branches: int,
    depth: int,
    keep: int,
    step_tokens: int = 48,
    temperature: float = 0.0,
) -> Thought:
    """The best path of so many steps: beam search with the model as its judge."""

    async def grow(parent: Thought, number: int) -> Thought:
        ask = {"role": "user", "content": NEXT.format(number=number + 1)}
        asked = [*parent.messages, ask]
        said = await model.chat(asked, max_tokens=step_tokens, temperature=temperature)
        path = [*asked, {"role": "assistant", "content": said.text}]
        rated = await model.chat([*path, {"role": "user", "content": RATE}], max_tokens=4)
        found = NUMBER.search(rated.text)
        return Thought(path, min(10, int(found[0])) if found else 0)

    kept = [Thought([{"role": "system", "content": task}])]
    for _ in range(depth):
        grown = await asyncio.gather(*(grow(t, i) for t in kept for i in range(branches)))
        kept = sorted(grown, key=lambda t: -t.rating)[:keep]  # stable: the earlier of equals
    return kept[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--branches", type=int, default=3)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()

    async def work() -> None:
        best = await search(
            connect(args),
            args.task,
            branches=args.branches,
            depth=args.depth,
            keep=args.keep,
            temperature=args.temperature,
        )
        print(f"rating {best.rating}")
        for number, step in enumerate(best.steps, 1):
            print(f"{number}. {step.strip()}")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
