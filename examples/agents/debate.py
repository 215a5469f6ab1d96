"""Debaters answer, read each other, and answer again (Du et al., 2023); a judge ends it.

python -m examples.agents.debate --num-debaters 3 --num-rounds 2

All debaters of a round read the same transcript, so all but what they are share one prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from examples.agents.chatbot import run
from examples.agents.client import Model, connect
from examples.agents.personas import personas
from examples.agents.settings import add_flags

QUESTION = "The code of amber-fox is 4821 or 4822. Somebody who knows says it is even. Which is it?"


async def debate(
    model: Model, question: str, debaters: Sequence[str], rounds: int, answer_tokens: int = 48
) -> str:
    """The judge's answer after so many rounds."""
    transcript = [f"Question: {question}"]

    async def speak(number: int, who: str, past: str) -> str:
        ask = f"{past}\nYou are debater {number + 1}. {who} Give your answer and the reason."
        answer = await model.chat([{"role": "user", "content": ask}], max_tokens=answer_tokens)
        return f"Debater {number + 1}: {answer.text.strip()}"

    for _ in range(rounds):
        past = "\n".join(transcript)
        said = await asyncio.gather(*(speak(i, who, past) for i, who in enumerate(debaters)))
        transcript += said
    ask = "\n".join(transcript) + "\nYou are the judge. Say which answer is right, in a few words."
    judged = await model.chat([{"role": "user", "content": ask}], max_tokens=answer_tokens)
    return judged.text.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--num-debaters", type=int, default=3)
    parser.add_argument("--num-rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    async def work() -> None:
        debaters = personas(args.num_debaters, args.seed)
        print(await debate(connect(args), args.question, debaters, args.num_rounds))

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
