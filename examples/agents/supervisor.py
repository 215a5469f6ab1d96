"""A supervisor with many workers that all have the same long instructions.

python -m examples.agents.supervisor --num-workers 100 --num-rounds 2

The instructions are by far the longest part of each prompt. Cached, they are computed once; with
--compress they are also kept compressed (`max_cache_tokens`), so that more of them fit at once: the
server must have been started with --enable-kvc then. Each worker's are compressed for itself, but
with --share (and a server with --share-compressed-prefixes) once: later workers begin with a copy.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import Any

from tqdm import tqdm

from examples.agents.chatbot import run
from examples.agents.client import Model, connect
from examples.agents.settings import add_flags
from examples.agents.texts import document, facts

REPORT = "Workers said: {said} Name the code that was said most often."


async def supervise(
    model: Model,
    rng: random.Random,
    *,
    workers: int,
    rounds: int,
    sentences: int = 120,
    answer_tokens: int = 16,
    compress: int | None = None,
    share: bool = False,
    progress: tqdm[object] | None = None,
) -> list[str]:
    """The supervisor's summary of each round.

    sentences: of the instructions. compress: KVs that a worker keeps of each head. share: compress
    the instructions once for all.
    """
    told = facts(rng, 20)
    instructions = f"You are a worker. Answer from these notes. {document(rng, sentences, told)}"
    extra: dict[str, Any] = {} if compress is None else {"max_cache_tokens": compress}
    if share:
        extra["shared_prefix"] = "system"
    known = list(told)

    async def work(name: str) -> str:
        messages = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": f"What is the code of {name}?"},
        ]
        said = await model.chat(messages, max_tokens=answer_tokens, **extra)
        if progress is not None:
            progress.update()
        return said.text.strip()

    summaries = []
    for _ in range(rounds):
        names = [rng.choice(known) for _ in range(workers)]
        said = await asyncio.gather(*(work(name) for name in names))
        ask = REPORT.format(said=" ".join(said[:20]))
        summary = await model.chat([{"role": "user", "content": ask}], max_tokens=answer_tokens)
        summaries.append(summary.text.strip())
    return summaries


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--num-workers", type=int, default=100)
    parser.add_argument("--num-rounds", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=120, help="Length of the instructions.")
    parser.add_argument("--compress", type=int, metavar="KVS", help="KVs kept of each head.")
    parser.add_argument(
        "--share", action="store_true", help="Share the compressed instructions; with --compress."
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.share and args.compress is None:
        parser.error("--share needs --compress")

    async def work() -> None:
        with tqdm(total=args.num_workers * args.num_rounds, unit="answer") as bar:
            said = await supervise(
                connect(args),
                random.Random(args.seed),
                workers=args.num_workers,
                rounds=args.num_rounds,
                sentences=args.sentences,
                compress=args.compress,
                share=args.share,
                progress=bar,
            )
        for number, summary in enumerate(said, 1):
            print(f"round {number}: {summary}")

    return run(work())


if __name__ == "__main__":
    sys.exit(main())
