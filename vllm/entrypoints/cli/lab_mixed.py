"""`vllm lab mixed`: several workloads in one stream, and how each of them fares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.entrypoints.cli.command import run
from vllm.entrypoints.cli.lab_io import (
    add_semantics,
    add_trace,
    lab_parser,
    numbers,
    policies,
    progress,
    read_trace,
    show,
)


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "mixed",
        "Several workloads in one stream, request by request, and how each of them fares. Of one "
        "trace by its workloads; of several, a file without workloads is one by its name.",
    )
    add_trace(parser, several=True)
    add_semantics(parser)
    parser.add_argument(
        "--order",
        choices=("arrival", "round-robin"),
        default="arrival",
        help="Of several traces: by their times, or one request of each in turn.",
    )
    parser.add_argument(
        "--policy",
        type=policies,
        default=["lru", "fifo", "allow", "workload", "quota", "optimal"],
        metavar="NAME,...",
        help="`allow` alone lists the workloads whose own ceiling is above half of the highest; "
        "`quota` alone gives each what its own LRU curve asks for.",
    )
    parser.add_argument("--capacity", type=numbers, default=[256], metavar="BLOCKS,...")
    return run(parser, words, _mixed)


def _mixed(args: argparse.Namespace) -> None:
    from vllm.prefixlab.replay import known, replay
    from vllm.prefixlab.split import allow, quota
    from vllm.prefixlab.trace import interleaved, joined
    from vllm.prefixlab.view import groups, view

    known([policy for policy in args.policy if policy != "allow"])
    traces = [_named(read_trace(args, path), path) for path in args.trace]
    if len(traces) > 1:
        stream = (joined if args.order == "arrival" else interleaved)(traces)
    else:
        stream = traces[0]
    seen = view(stream, args.semantics)
    parts = groups(stream, "workload")
    rows: list[dict[str, Any]] = []
    runs = [(policy, capacity) for policy in args.policy for capacity in args.capacity]
    for policy, capacity in progress(args, runs, "mixed"):
        name = policy
        if policy == "quota":
            name = quota(seen, capacity)
        elif policy == "allow":
            name = allow(seen)
        outcome = replay(seen, name, capacity)
        rows.append({**outcome.row(), "workload": "all"})
        rows += [{**outcome.row(mask), "workload": kind} for kind, mask in parts.items()]
    show(
        args, rows, f"{stream.name}: {args.semantics} semantics, {stream.block_size} tokens a block"
    )


def _named(trace: Any, path: str) -> Any:
    """The trace, its requests without a workload being of one that is called as the file is."""
    if trace.workloads != ("unknown",):
        return trace
    return replace(trace, workloads=(Path(path).name.split(".")[0].replace(",", "-"),))
