"""`vllm kvstore serve`: the daemon that keeps KVs in shared memory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from vllm.config.flags import FlexibleArgumentParser, human_size
from vllm.kvstore.native import library

SLICE = 0.2  # seconds between looks at signals


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(
        prog="vllm kvstore serve",
        description="Keep KVs in shared memory for the processes of this user on this machine.",
    )
    parser.add_argument(
        "--socket",
        required=True,
        metavar="FILE",
        help="Where clients connect; its folder, made if need be, must be closed to other users.",
    )
    parser.add_argument(
        "--size",
        type=human_size,
        default=human_size("4G"),
        metavar="BYTES",
        help="Of the arena, taken at once; 4G means 4 GiB, the default.",
    )
    parser.add_argument(
        "--slot-size",
        type=human_size,
        default=0,
        metavar="BYTES",
        help="Of a token (layers x 2 x tensor); default: what the first client needs, until "
        "nothing is stored and nobody is connected.",
    )
    return parser


def main(words: Sequence[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(list(words))
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        server = library().Server(args.socket, args.size, args.slot_size)
    except (ValueError, RuntimeError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"serving {args.size} bytes at {args.socket}", flush=True)
    while not stopped:
        server.run(SLICE)
    return 0
