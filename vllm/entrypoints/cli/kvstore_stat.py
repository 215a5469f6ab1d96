"""`vllm kvstore stat`: how much a store holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vllm.config.flags import FlexibleArgumentParser
from vllm.kvstore.native import library

FILES = ("bytes", "entries")


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(
        prog="vllm kvstore stat",
        description="Print what a store holds, as a line of JSON.",
    )
    parser.add_argument("root", metavar="ROOT", help="The folder, or the socket of a daemon.")
    return parser


def main(words: Sequence[str]) -> int:
    args = make_parser().parse_args(list(words))
    if Path(args.root).is_socket():
        counts = library().daemon_stat(args.root)
    else:
        known = library().root_stat(args.root)
        counts = {name: known[name] for name in FILES}
    print(json.dumps(counts))
    return 0
