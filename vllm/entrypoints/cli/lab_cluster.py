"""`vllm lab cluster`: a trace through N simulated engines behind a router."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from vllm.config import EngineArgs
from vllm.config.flags import add_flags
from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.cli.lab_io import add_trace, bar_of, lab_parser, read_trace, show

SET_HERE = ("simulator_clock", "simulator_trace", "prefix_metrics", "seed", "tokenizer")


def main(words: Sequence[str]) -> int:
    from vllm.simulator.cluster import HASHED_TOKENS, ROUTES

    parser = lab_parser(
        "cluster",
        "Hit rate, latency, fairness and store traffic of several simulated engines, by routing, "
        "without and with a store that they share.",
    )
    add_trace(parser)
    parser.add_argument("--replicas", type=positive, default=4, metavar="N")
    parser.add_argument(
        "--routing", nargs="+", choices=ROUTES, default=list(ROUTES), metavar="NAME"
    )
    parser.add_argument(
        "--store-blocks",
        type=positive,
        metavar="N",
        help="Run also with a store of so many blocks.",
    )
    parser.add_argument(
        "--store-bandwidth",
        type=float,
        default=10e9,
        metavar="N",
        help="Bytes a second between an engine and the store. Default: 1e10.",
    )
    parser.add_argument(
        "--hashed-tokens",
        type=positive,
        default=HASHED_TOKENS,
        metavar="N",
        help=f"Of a prompt's beginning, for prefix routing. Default: {HASHED_TOKENS}.",
    )
    parser.add_argument("--requests", type=positive, metavar="N", help="Only the first N.")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="N", help="Arrivals so many times as fast."
    )
    add_flags(parser, EngineArgs, skip=(*SET_HERE, "block_size"))
    parser.set_defaults(simulator="random", simulator_model="llama-3.1-8b")
    parser.set_defaults(simulator_latency="roofline:device=h100", kv_cache_memory_bytes=40 << 30)
    return run(parser, words, _cluster)


def _cluster(args: argparse.Namespace) -> None:
    from vllm.simulator.cluster import Cluster
    from vllm.simulator.prompts import keys_of
    from vllm.simulator.run import Ask
    from vllm.simulator.store import SharedStore

    if not 0 < args.speed < float("inf"):
        raise ValueError("--speed must be above 0")
    trace = read_trace(args, args.trace)
    given = EngineArgs.from_mapping(
        vars(args)
        | {"simulator_clock": "virtual", "block_size": trace.block_size, "tokenizer": None}
    )
    config = given.create_engine_config()
    count = min(trace.requests, args.requests or trace.requests)
    asks, too_long = [], 0
    for r in range(count):
        size = int(trace.input_len[r])
        if size >= config.model.max_model_len:
            too_long += 1
            continue
        ids = trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist()
        asks.append(
            Ask(
                float(trace.arrival[r]) / args.speed,
                [0] * size,
                max(1, int(trace.output_len[r])),
                keys=keys_of(ids, size, trace.block_size),
                workload=trace.workloads[trace.workload[r]],
            )
        )
    if too_long:
        print(f"{too_long} prompts are longer than the context and left out", file=sys.stderr)
    if not asks:
        raise ValueError(f"{args.trace} has no request that fits")
    rows = []
    for blocks in (None, args.store_blocks) if args.store_blocks else (None,):
        for routing in args.routing:
            store = SharedStore(blocks, args.store_bandwidth) if blocks else None
            cluster = Cluster(
                config, args.replicas, routing, store, hashed_tokens=args.hashed_tokens
            )
            with bar_of(args, routing, total=len(asks)) as bar:
                rows.append(cluster.run(asks, progress=bar.update).row())
    title = f"{trace.name}: {len(asks)} requests, {args.replicas} replicas; TTFT in seconds"
    show(args, rows if args.json else [_narrow(row) for row in rows], title)


def _narrow(row: dict[str, Any]) -> dict[str, Any]:
    """What fits on a screen, by shorter names."""
    return {
        "routing": row["routing"],
        "store": "shared" if row["shared_store"] else "none",
        "hit rate": row["token_hit_rate"],
        "from store": row["store_hit_rate"],
        "mean": row["mean_ttft"],
        "p50": row["p50_ttft"],
        "p90": row["p90_ttft"],
        "p99": row["p99_ttft"],
        "fair load": row["fairness_load"],
        "fair TTFT": row["fairness_ttft"],
        "GiB out": row["store_gib_loaded"],
        "GiB in": row["store_gib_stored"],
    }
