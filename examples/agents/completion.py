"""Let the model go on with each line that is typed.

python -m examples.agents.completion
"""

from __future__ import annotations

import argparse
import sys

from examples.agents.chatbot import read_line, run, show
from examples.agents.client import OpenAIModel, connect
from examples.agents.settings import add_flags


async def go_on(model: OpenAIModel, *, max_tokens: int) -> None:
    while (line := await read_line()) is not None:
        if line.strip():
            print(line, end="")
            await show(
                model.more(
                    line, max_tokens=max_tokens, temperature=0.7, top_p=0.9, frequency_penalty=0.8
                )
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--max-tokens", type=int, default=300)
    args = parser.parse_args()
    return run(go_on(connect(args), max_tokens=args.max_tokens))


if __name__ == "__main__":
    sys.exit(main())
