"""`vllm lab advise`: how much memory, which policy, and where the misses come from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.cli.lab_io import (
    add_trace,
    lab_parser,
    policies,
    progress,
    read_trace,
    share,
    table,
)


def main(words: Sequence[str]) -> int:
    parser = lab_parser(
        "advise",
        "The least memory for a share of what could be hit at all; the best policy there, with its "
        "confidence interval; where misses come from; which prefixes are shared. Engine semantics.",
    )
    add_trace(parser)
    parser.add_argument("--model", default="llama-3-8b", help="Whose KVs are counted in GiB.")
    parser.add_argument(
        "--share", type=share, default=0.9, help="Of the ceiling, that the cache shall reach."
    )
    parser.add_argument(
        "--capacity", type=positive, metavar="BLOCKS", help="Compare policies there instead."
    )
    parser.add_argument(
        "--policy",
        type=policies,
        default="lru fifo s3fifo arc slru lirs workload session".split(),
        metavar="NAME,...",
        help="Those to be compared.",
    )
    parser.add_argument("--top", type=positive, default=10, help="How many shared prefixes.")
    return run(parser, words, _advise)


def _advise(args: argparse.Namespace) -> None:
    from vllm.prefixlab.advise import SHARES, ranking, shared_prefixes, sizes
    from vllm.prefixlab.geometry import geometry
    from vllm.prefixlab.misses import misses
    from vllm.prefixlab.replay import known, replay
    from vllm.prefixlab.reuse import summary
    from vllm.prefixlab.view import view

    known(args.policy)
    model = geometry(args.model)
    trace = read_trace(args, args.trace)
    seen = view(trace, "engine")
    memory = sizes(seen, model, sorted({*SHARES, args.share}))
    asked = next(row for row in memory if row["share_of_ceiling"] == args.share)
    capacity = args.capacity or asked["lru_capacity"]
    outcomes = [
        replay(seen, policy, capacity) for policy in progress(args, args.policy, "policies")
    ]
    ranked = ranking(outcomes, args.seed)
    best = next(outcome for outcome in outcomes if outcome.policy == ranked[0]["policy"])
    causes, diverged = misses(best)
    causes = [{"policy": best.policy, "capacity": capacity} | row for row in causes]
    prefixes = shared_prefixes(seen, args.top)
    if args.json:
        found: dict[str, Any] = {
            "sizes": memory,
            "policies": ranked,
            "misses": causes,
            "diverged_at_token": summary(diverged),
            "shared_prefixes": prefixes,
        }
        print(json.dumps(found, indent=1))
        return
    where = f"{trace.name}, engine semantics"
    said = (
        f"{args.share:.0%} of the ceiling take {asked['lru_capacity']:,} blocks with LRU: "
        f"{asked['lru_gib']:.1f} GiB of {model.name}'s KVs ({model.kv_bytes:,} bytes a token)"
    )
    if not memory[-1]["hit_rate"]:
        said = "no full block is asked for twice: nothing can be hit"
    table(memory, f"{where}: the least memory for a share of what could be hit", said)
    table(ranked, f"{where}: policies at {capacity:,} blocks, by tokens", _surely(ranked))
    told = summary(diverged)
    note = ""
    if told["count"]:
        note = f"{told['count']:,} requests diverged, at token {told['median']:,.0f} in the middle"
    table(causes, f"{where}: where the tokens of all prompts go", note)
    if prefixes:
        table(prefixes, f"{where}: prefixes that are shared")


def _surely(ranked: list[dict[str, Any]]) -> str:
    best = ranked[0]
    if "lead" not in best:
        return ""
    sure = best["lead_low"] > 0
    lead = f"{100 * best['lead_low']:.2f} to {100 * best['lead_high']:.2f} points"
    word = "best" if sure else "best here, but not surely"
    return f"{best['policy']} is {word}: {lead} before {ranked[1]['policy']} (95%)"
