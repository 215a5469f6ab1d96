"""`vllm complete`: let a server complete text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from vllm.entrypoints.cli.remote import connect, converse, guarded, make_parser, show

PROG = "vllm complete"


def main(words: Sequence[str]) -> int:
    parser = make_parser(PROG, "Let a server complete text; each line is a prompt of its own.")
    parser.add_argument("--max-tokens", type=int, help="Tokens to add; default: the server's.")
    parser.add_argument("-q", "--quick", metavar="PROMPT", help="Complete this prompt and end.")
    args = parser.parse_args(list(words))
    return guarded(PROG, lambda: _complete(args))


def _complete(args: argparse.Namespace) -> None:
    client, model = connect(args)

    def pieces(prompt: str) -> Iterator[str]:
        stream = client.completions.create(
            model=model, prompt=prompt, max_tokens=args.max_tokens, stream=True
        )
        with stream:
            for chunk in stream:
                if chunk.choices:
                    yield chunk.choices[0].text

    def answer(line: str) -> None:
        show(pieces(line))

    converse(args.quick, answer)
