"""Sessions that stop for their tools: the cache must outlast the pauses, or all is computed again.

python -m examples.agents.tool_sessions --num-sessions 8 --num-calls 4 --pause 2

Each session has a history that grows with every tool's answer. With --retain a request says how
long its blocks are worth keeping (`kv_retention`), which a server of another kind may not know.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import Any

from examples.agents.chatbot import run
from examples.agents.client import Message, Model, connect
from examples.agents.settings import add_flags
from examples.agents.texts import document, facts

SYSTEM = "You answer questions with the help of a tool that looks names up. {manual}"
RESULT = "The tool says: {text} What is the code of {name}?"


async def session(
    model: Model,
    rng: random.Random,
    *,
    calls: int,
    pause: float,
    manual: str,
    result_sentences: int = 24,
    answer_tokens: int = 16,
    retain: float | None = None,
) -> list[str]:
    """What the session's answers were. pause: mean seconds that a tool takes (exponential).

    retain: seconds for which the request asks that its blocks be kept.
    """
    extra: dict[str, Any] = {}
    if retain is not None:
        extra["kv_retention"] = {"priority": 80, "ttl": retain}
    history: list[Message] = [{"role": "system", "content": SYSTEM.format(manual=manual)}]
    answers = []
    for _ in range(calls):
        told = facts(rng, 2)
        text = document(rng, result_sentences, told)
        await model.sleep(rng.expovariate(1 / pause) if pause > 0 else 0.0)
        ask = RESULT.format(text=text, name=next(iter(told)))
        history.append({"role": "user", "content": ask})
        said = await model.chat(history, max_tokens=answer_tokens, **extra)
        history.append({"role": "assistant", "content": said.text})
        answers.append(said.text.strip())
    return answers


async def sessions(model: Model, rng: random.Random, count: int, **given: Any) -> list[list[str]]:
    """So many at once. The manual is the same for all."""
    manual = document(rng, 20)
    seeds = [rng.random() for _ in range(count)]
    return list(
        await asyncio.gather(
            *(session(model, random.Random(seed), manual=manual, **given) for seed in seeds)
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--num-sessions", type=int, default=8)
    parser.add_argument("--num-calls", type=int, default=4)
    parser.add_argument("--pause", type=float, default=2.0, help="Mean seconds of a tool's work.")
    parser.add_argument("--retain", type=float, help="Ask to keep blocks for so many seconds.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    async def work() -> None:
        told = await sessions(
            connect(args),
            random.Random(args.seed),
            args.num_sessions,
            calls=args.num_calls,
            pause=args.pause,
            retain=args.retain,
        )
        for number, answers in enumerate(told, 1):
            print(f"session {number}: {' '.join(answers)}")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
