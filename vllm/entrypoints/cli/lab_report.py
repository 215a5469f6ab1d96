"""`vllm lab report`: one HTML page about a trace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vllm.entrypoints.cli.command import run
from vllm.entrypoints.cli.lab_io import (
    add_semantics,
    add_trace,
    bar_of,
    lab_parser,
    numbers,
    policies,
    read_trace,
)


def main(words: Sequence[str]) -> int:
    parser = lab_parser("report", "One self-contained HTML page about a trace, with its plots.")
    add_trace(parser)
    add_semantics(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html")
    parser.add_argument(
        "--policy", type=policies, default="lru fifo s3fifo arc".split(), metavar="NAME,..."
    )
    parser.add_argument("--capacity", type=numbers, default=[], metavar="BLOCKS,...")
    parser.add_argument("--model", default="llama-3-8b", help="Whose KVs are counted in GiB.")
    return run(parser, words, _report)


def _report(args: argparse.Namespace) -> None:
    from vllm.prefixlab.geometry import geometry
    from vllm.prefixlab.replay import known
    from vllm.prefixlab.report import Asked, page

    known(args.policy)
    asked = Asked(args.semantics, args.policy, geometry(args.model), args.capacity)
    trace = read_trace(args, args.trace)
    with bar_of(args, "report") as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        text = page(trace, asked, step)
    args.output.write_text(text, encoding="utf-8")
    told = {"output": str(args.output), "semantics": args.semantics, "bytes": len(text.encode())}
    print(json.dumps(told) if args.json else f"{args.output}: {told['bytes']:,} bytes")
