"""What `vllm chat` and `vllm complete` share: their flags, and the client of a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vllm.config.flags import FlexibleArgumentParser
from vllm.entrypoints.cli.command import one_line

if TYPE_CHECKING:
    from openai import OpenAI


def make_parser(prog: str, description: str) -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog=prog, description=description)
    parser.add_argument("--url", default="http://localhost:8000/v1", help="The server's /v1.")
    parser.add_argument("--model-name", help="Default: the first that the server lists.")
    parser.add_argument("--api-key", help="Default: the environment's OPENAI_API_KEY, if any.")
    return parser


def connect(args: argparse.Namespace) -> tuple[OpenAI, str]:
    """A client and the model to ask. Raises openai.OpenAIError."""
    from openai import OpenAI

    key = args.api_key or os.environ.get("OPENAI_API_KEY") or "EMPTY"
    client = OpenAI(base_url=args.url, api_key=key, max_retries=0)
    return client, args.model_name or client.models.list().data[0].id


def show(pieces: Iterable[str]) -> str:
    """Print pieces as they come; the whole."""
    said = []
    for piece in pieces:
        print(piece, end="", flush=True)
        said.append(piece)
    print()
    return "".join(said)


def converse(quick: str | None, answer: Callable[[str], None]) -> None:
    """Answer the quick line, or each line that is typed; Ctrl-C ends an answer, Ctrl-D all."""
    if quick is not None:
        answer(quick)
        return
    import readline  # noqa: F401  gives input() its line editing

    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        if not line.strip():
            continue
        try:
            answer(line)
        except KeyboardInterrupt:
            print()


def guarded(prog: str, work: Callable[[], None]) -> int:
    """Run it; what the server or the line to it does wrong is one line and exit code 1."""
    from openai import OpenAIError

    try:
        work()
    except OpenAIError as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0
