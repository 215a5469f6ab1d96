"""`vllm chat`: talk with a server."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from vllm.entrypoints.cli.remote import connect, converse, guarded, make_parser, show

PROG = "vllm chat"


def main(words: Sequence[str]) -> int:
    parser = make_parser(PROG, "Talk with a server; each line is a message.")
    parser.add_argument("--system-prompt", help="Instructions that come before the conversation.")
    parser.add_argument("-q", "--quick", metavar="MESSAGE", help="Send this one message and end.")
    args = parser.parse_args(list(words))
    return guarded(PROG, lambda: _chat(args))


def _chat(args: argparse.Namespace) -> None:
    client, model = connect(args)
    messages: list[dict[str, str]] = []
    if args.system_prompt:
        messages.append({"role": "system", "content": args.system_prompt})

    def pieces() -> Iterator[str]:
        conversation: Any = messages
        stream = client.chat.completions.create(model=model, messages=conversation, stream=True)
        with stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    def answer(line: str) -> None:
        before = len(messages)
        messages.append({"role": "user", "content": line})
        try:
            messages.append({"role": "assistant", "content": show(pieces())})
        except BaseException:
            del messages[before:]  # an exchange without an answer would confuse the next one
            raise

    converse(args.quick, answer)
