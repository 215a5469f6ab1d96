"""`vllm lab curve`: LRU at all capacities in one pass, and the optimum."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.cli.lab_io import (
    add_semantics,
    add_trace,
    lab_parser,
    numbers,
    progress,
    read_trace,
    show,
)


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "curve", "The exact LRU hit rate at all capacities, and the offline optimum beside it."
    )
    add_trace(parser)
    add_semantics(parser)
    parser.add_argument(
        "--capacity", type=numbers, metavar="BLOCKS,...", help="These, not a spread over all."
    )
    parser.add_argument("--points", type=positive, default=24, help="How many capacities to show.")
    parser.add_argument(
        "--all", action="store_true", help="Every capacity; the optimum is left out."
    )
    parser.add_argument(
        "--plot", type=Path, metavar="STEM", help="Draw it too, as STEM.png and STEM.svg."
    )
    return run(parser, words, _curve)


def _curve(args: argparse.Namespace) -> None:
    from vllm.prefixlab.curve import knots, lru_hits
    from vllm.prefixlab.optimal import OPTIMAL
    from vllm.prefixlab.replay import replay
    from vllm.prefixlab.view import view

    trace = read_trace(args, args.trace)
    seen = view(trace, args.semantics)
    hits = lru_hits(seen)
    accesses = max(1, seen.trace.accesses)
    limit = hits.size - 1
    if args.all:
        shown = range(1, limit + 1)
    else:
        shown = args.capacity or knots(limit, args.points)
    rows = []
    for capacity in progress(args, shown, "optimum"):
        at = int(hits[min(capacity, limit)])
        row = {
            "semantics": args.semantics,
            "capacity": capacity,
            "requests": trace.requests,
            "accesses": seen.trace.accesses,
            "lru_hits": at,
            "lru_hit_rate": at / accesses,
        }
        if not args.all:
            best = int(replay(seen, OPTIMAL, capacity).hits.sum(dtype="int64"))
            row |= {"optimal_hits": best, "optimal_hit_rate": best / accesses}
        rows.append(row)
    if args.plot:
        from vllm.prefixlab.plots import capacities, save

        best = [(r["capacity"], r["optimal_hit_rate"]) for r in rows if "optimal_hits" in r]
        lines = {"lru": [(r["capacity"], r["lru_hit_rate"]) for r in rows], "optimal": best}
        title = f"{trace.name}, {args.semantics} semantics"
        drawn = capacities({k: v for k, v in lines.items() if v}, int(hits[-1]) / accesses, title)
        save(drawn, args.plot)
    ceiling = f"ceiling {int(hits[-1]) / accesses:.4f}: {int(hits[-1]):,} hits, nothing evicted"
    show(args, rows, f"{trace.name}: LRU at every capacity, {args.semantics} semantics", ceiling)
