"""Many questions about one document: each part is read once per question, then all is put together.

python -m examples.agents.map_reduce [--document FILE] [--question Q ...]

The document comes before the question in every prompt, so its KVs are computed once a part.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.agents.chatbot import run
from examples.agents.client import Model, connect
from examples.agents.settings import add_flags
from examples.agents.texts import document, facts

MAP = "{part}\n{question}"
REDUCE = "{question} These answers come from parts of one document: {answers} Which one is right?"


def parts_of(text: str, sentences: int) -> list[str]:
    """The text in parts of so many sentences."""
    said = [s if s.endswith(".") else f"{s}." for s in text.strip().split(". ") if s]
    return [" ".join(said[i : i + sentences]) for i in range(0, len(said), sentences)]


async def answer_all(
    model: Model, parts: Sequence[str], questions: Sequence[str], answer_tokens: int = 24
) -> list[str]:
    """An answer to each question, from all parts."""

    async def read(part: str, question: str) -> str:
        ask = MAP.format(part=part, question=question)
        answer = await model.chat([{"role": "user", "content": ask}], max_tokens=answer_tokens)
        return answer.text.strip()

    async def answer(question: str) -> str:
        said = await asyncio.gather(*(read(part, question) for part in parts))
        ask = REDUCE.format(question=question, answers=" ".join(said))
        reduced = await model.chat([{"role": "user", "content": ask}], max_tokens=answer_tokens)
        return reduced.text.strip()

    return list(await asyncio.gather(*(answer(question) for question in questions)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--document", type=Path, help="Default: one that is made up.")
    parser.add_argument("--question", action="append", help="May be given several times.")
    parser.add_argument("--sentences", type=int, default=40, help="Sentences a part.")
    args = parser.parse_args()
    told = facts(random.Random(0), 3)
    if args.document:
        try:
            text = args.document.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            parser.error(str(error))
    else:
        text = document(random.Random(0), 120, told)
    questions = args.question or [f"What is the code of {name}?" for name in told]

    async def work() -> None:
        answers = await answer_all(connect(args), parts_of(text, args.sentences), questions)
        for question, answer in zip(questions, answers, strict=True):
            print(f"{question} {answer}")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
