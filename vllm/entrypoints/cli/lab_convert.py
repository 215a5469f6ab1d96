"""`vllm lab convert`: a trace into another format."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.cli.lab_io import add_trace, lab_parser, read_trace

FORMATS = ("lab", "mooncake", "oracle-general")


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "convert",
        "A trace into another format. Only `lab` keeps all; `mooncake` has no sessions and "
        "workloads, `oracle-general` (libCacheSim) only single accesses.",
    )
    add_trace(parser)
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".gz: packed.")
    parser.add_argument(
        "--coarser",
        type=positive,
        default=1,
        metavar="TIMES",
        help="Blocks so many times as large.",
    )
    return run(parser, words, _convert)


def _convert(args: argparse.Namespace) -> None:
    from vllm.prefixlab.formats import write

    trace = read_trace(args, args.trace).coarser(args.coarser)
    write(trace, args.output, args.to)
    told = {
        "output": str(args.output),
        "format": args.to,
        "requests": trace.requests,
        "accesses": trace.accesses,
        "block_size": trace.block_size,
        "bad_lines": trace.bad_count,
    }
    if args.json:
        print(json.dumps(told))
    else:
        print(f"{args.output}: {trace.requests:,} requests, {trace.accesses:,} accesses")
