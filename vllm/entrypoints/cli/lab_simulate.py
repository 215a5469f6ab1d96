"""`vllm lab simulate`: policies x capacities on one trace."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    parser = lab_parser("simulate", "Hit rates of policies at capacities.")
    add_trace(parser)
    add_semantics(parser)
    parser.add_argument(
        "--policy",
        type=policies,
        default=["lru", "fifo", "optimal"],
        metavar="NAME,...",
        help="As --kv-eviction-policy of the engine, and optimal.",
    )
    parser.add_argument(
        "--capacity", type=numbers, default=[1000, 3000, 10000, 30000], metavar="BLOCKS,..."
    )
    parser.add_argument("--by", choices=("workload", "session", "turn"), help="Rates of each, too.")
    parser.add_argument(
        "--warmup",
        type=float,
        metavar="SHARE",
        help="Rates also of the requests after this share of all.",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="Also the share of this model's prefill FLOPs that is saved.",
    )
    return run(parser, words, _simulate)


def _simulate(args: argparse.Namespace) -> None:
    from vllm.prefixlab.geometry import geometry
    from vllm.prefixlab.replay import known, replay
    from vllm.prefixlab.view import groups, view, warm

    known(args.policy)
    model = geometry(args.model) if args.model else None
    trace = read_trace(args, args.trace)
    late = None if args.warmup is None else warm(trace, args.warmup)
    parts = groups(trace, args.by) if args.by else {}
    seen = view(trace, args.semantics)
    runs = [(policy, capacity) for policy in args.policy for capacity in args.capacity]
    rows: list[dict[str, Any]] = []
    for policy, capacity in progress(args, runs, "simulate"):
        outcome = replay(seen, policy, capacity)
        row = outcome.row(None, model)
        if late is not None:
            warmed = outcome.row(late, model)
            row |= {f"warm_{name}": warmed[name] for name in warmed if name.endswith("hit_rate")}
        rows.append(row)
        rows += [{**outcome.row(mask, model), args.by: name} for name, mask in parts.items()]
    show(args, rows, f"{trace.name}: {args.semantics} semantics, {trace.block_size} tokens a block")
