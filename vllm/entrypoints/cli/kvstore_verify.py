"""`vllm kvstore verify`: read every file of a store."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.config.flags import FlexibleArgumentParser
from vllm.kvstore.native import library


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(
        prog="vllm kvstore verify",
        description="Read every file and check that it is what its name says, whole. The exit "
        "status is 1 if one is not.",
    )
    parser.add_argument("root", metavar="ROOT", help="The folder, with all models' files.")
    parser.add_argument("--repair", action="store_true", help="Delete what does not verify.")
    return parser


def main(words: Sequence[str]) -> int:
    args = make_parser().parse_args(list(words))
    seen = library().root_verify(args.root, args.repair)
    fate = ", deleted" if args.repair and seen["damaged"] else ""
    print(f"{seen['entries']} files, {seen['bytes']} bytes: {seen['damaged']} damaged{fate}")
    return 1 if seen["damaged"] and not args.repair else 0
