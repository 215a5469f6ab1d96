"""Profile a server over a few fixed prompts, or over a command of your own.

python -m examples.agents.profile                     nine short prompts
python -m examples.agents.profile -- make my-load     whatever the command does

The server must allow it (VLLM_SERVER_DEV_MODE=1, or --admin-api-key) and writes the trace where its
flags say; ui.perfetto.dev shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from examples.agents.chatbot import run
from examples.agents.client import OpenAIModel, connect
from examples.agents.settings import add_flags

PROMPTS = [" ".join([word] * count) for word in ("one", "two", "red") for count in (8, 32, 128)]


async def work(model: OpenAIModel, command: list[str]) -> None:
    status = await model.post("/start_profile")
    if status >= 400:
        raise SystemExit(f"the server does not profile: HTTP {status} for /start_profile")
    try:
        if command:
            process = await asyncio.create_subprocess_exec(*command)
            print(f"{command[0]} ended with {await process.wait()}")
        else:
            for prompt in PROMPTS:
                answer = await model.complete(prompt, max_tokens=2)
                print(f"{answer.prompt_tokens:5} tokens {answer.latency * 1e3:8.1f} ms")
    finally:
        await model.post("/stop_profile")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_flags(parser)
    parser.add_argument("command", nargs="*", help="Run this instead of the prompts.")
    args = parser.parse_args()
    return run(work(connect(args), args.command))


if __name__ == "__main__":
    sys.exit(main())
