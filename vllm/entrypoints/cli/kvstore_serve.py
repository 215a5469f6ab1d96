"""`vllm kvstore serve`: the daemon that keeps KVs in shared memory."""

from __future__ import annotations

import signal
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
    others = parser.add_argument_group("other hosts")
    others.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="Let other hosts read and write over TCP; needs --directory and --secret.",
    )
    others.add_argument(
        "--advertise",
        default="",
        metavar="HOST:PORT",
        help="Where other hosts find this one; default: what --listen says.",
    )
    others.add_argument(
        "--directory", metavar="URL", help="The Redis that says who has what: redis://HOST:PORT/0."
    )
    others.add_argument(
        "--secret",
        metavar="FILE",
        help="At least 32 bytes that all hosts share, mode 0600; proven, not sent.",
    )
    return parser


def main(words: Sequence[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(list(words))
    given = [args.listen is not None, args.directory is not None, args.secret is not None]
    if any(given) != all(given):
        parser.error("--listen, --directory and --secret go together")
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server = library().Server(args.socket, args.size, args.slot_size)
    peer = None
    if args.listen is not None:
        from vllm.kvstore.hosts.directory import Directory
        from vllm.kvstore.hosts.peer import Peer
        from vllm.kvstore.hosts.talk import read_secret

        secret = read_secret(args.secret)
        directory = Directory(args.directory)
        peer = Peer(args.socket, args.listen, directory, secret, advertise=args.advertise)
    others = f", other hosts at {peer.address}" if peer else ""
    print(f"serving {args.size} bytes at {args.socket}{others}", flush=True)
    try:
        while not stopped:
            server.run(SLICE)
    finally:
        if peer:
            peer.close()
    return 0
