"""Talk with the model; it remembers what was said.

python -m examples.agents.chatbot
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from openai import OpenAIError

from examples.agents.client import Message, OpenAIModel, connect
from examples.agents.settings import add_flags


async def show(pieces: AsyncIterator[str]) -> str:
    """Print pieces as they come; the whole."""
    said = []
    async for piece in pieces:
        print(piece, end="", flush=True)
        said.append(piece)
    print()
    return "".join(said)


async def talk(model: OpenAIModel, *, max_tokens: int = 300) -> None:
    history: list[Message] = []
    while (line := await read_line()) is not None:
        if not line.strip():
            continue
        asked = [*history, {"role": "user", "content": line}]
        answer = await show(model.pieces(asked, max_tokens=max_tokens, temperature=0.7, top_p=1))
        history = [*asked, {"role": "assistant", "content": answer}]


async def read_line() -> str | None:
    """A line that is typed; None at the end of input."""
    try:
        return await asyncio.to_thread(input, "> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def run(work: Coroutine[Any, Any, object]) -> int:
    """The exit code of a program: what the server does wrong is one line and 1."""
    try:
        asyncio.run(work)
    except OpenAIError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--max-tokens", type=int, default=300)
    args = parser.parse_args()
    return run(talk(connect(args), max_tokens=args.max_tokens))


if __name__ == "__main__":
    sys.exit(main())
