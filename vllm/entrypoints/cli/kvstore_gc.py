"""`vllm kvstore gc`: delete files of a store that nobody needs."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.config.flags import FlexibleArgumentParser, human_size
from vllm.kvstore.native import library


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(
        prog="vllm kvstore gc",
        description="Delete what nobody used for long, then what was used longest ago, and always "
        "what dead writers left. Stores in use may be collected.",
    )
    parser.add_argument("root", metavar="ROOT", help="The folder, with all models' files.")
    parser.add_argument(
        "--ttl", type=float, default=0, metavar="SECONDS", help="Files not used for so long go."
    )
    parser.add_argument(
        "--quota", type=human_size, default=0, metavar="BYTES", help="Down to so much, like 100G."
    )
    return parser


def main(words: Sequence[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(list(words))
    if not 0 <= args.ttl < float("inf") or args.quota < 0:
        parser.error("--ttl and --quota are not negative")
    removed = library().root_gc(args.root, args.ttl, args.quota)
    left = library().root_stat(args.root)
    print(f"{removed} files deleted; {left['entries']} are left, {left['bytes']} bytes")
    return 0
