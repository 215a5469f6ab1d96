"""`vllm lab collect`: who reuses what in four workloads at three block sizes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vllm.config import EngineArgs
from vllm.config.flags import add_flags
from vllm.entrypoints.cli.command import run
from vllm.entrypoints.cli.lab_io import lab_parser, numbers, progress, show

SET_HERE = ("block_size", "prefix_metrics", "simulator_clock", "simulator_trace")


def main(words: Sequence[str]) -> int:
    from vllm.simulator import collect
    from vllm.simulator.conversations import WORKLOADS

    parser = lab_parser(
        "collect",
        "Simulated clients ask a simulated engine; prefix metrics of each workload and block size.",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="Where the files go.")
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, metavar="NAME"
    )
    parser.add_argument(
        "--block-sizes", type=numbers, default=list(collect.BLOCK_SIZES), metavar="TOKENS,..."
    )
    parser.add_argument(
        "--sharegpt",
        metavar="FILE",
        help="Chats from ShareGPT: a file, or `hub` to download one. Else they are made up, as the "
        "other workloads are.",
    )
    parser.add_argument("--conversations", type=int, default=collect.CONVERSATIONS, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=collect.MAX_TOKENS, metavar="N")
    parser.add_argument(
        "--rate", type=float, default=2.0, help="Conversations a second; Poisson. Default: 2."
    )
    parser.add_argument(
        "--think", type=float, default=5.0, help="Mean seconds between turns. Default: 5."
    )
    parser.add_argument(
        "--closed-loop",
        action="store_true",
        help="A turn waits for the answer before it and repeats that, not the data's.",
    )
    add_flags(parser, EngineArgs, skip=SET_HERE)
    parser.set_defaults(simulator="echo", simulator_model="llama-3-8b")
    return run(parser, words, _collect)


def _collect(args: argparse.Namespace) -> None:
    from vllm.simulator.collect import Plan, collect
    from vllm.simulator.conversations import hub_file

    chats = hub_file() if args.sharegpt == "hub" else args.sharegpt
    plan = Plan(
        workloads=args.workloads,
        block_sizes=args.block_sizes,
        sharegpt=None if chats is None else Path(chats),
        conversations=args.conversations,
        max_tokens=args.max_tokens,
        rate=args.rate,
        think=args.think,
        closed=args.closed_loop,
    )
    engine = EngineArgs.from_mapping(vars(args) | {"simulator_clock": "virtual"})
    rows = collect(
        Path(args.out), plan, engine, each=lambda runs: progress(args, runs, "collecting")
    )
    show(args, rows, f"Reuse of prompts, files in {args.out}")
