"""How fast the laboratory replays, on one core; and whether it has the published figures.

python -m benchmarks.lab [--accesses 5000000] [--rounds 5] [--json results/lab.json]
python -m benchmarks.lab --check conversation_trace.jsonl

Speed is measured on a generated stream of conversations, against libCacheSim on the same accesses
where that is installed. `--check` takes the Mooncake conversation trace (github.com/kvcache-ai/
Mooncake, FAST25-release/traces) and ends with code 1 when a figure is another one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import alternate, write_json
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.prefixlab.curve import lru_hits
from vllm.prefixlab.formats import read, write
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.replay import replay
from vllm.prefixlab.reuse import reuse_of, summary
from vllm.prefixlab.trace import Trace, dense
from vllm.prefixlab.view import View, view

CAPACITY = 10_000
TARGETS = {"lru": 15.0, OPTIMAL: 8.0, "s3fifo": 5.0, "curve": 10.0}  # million accesses a second
FLAT = ("lru", "fifo", "clock", "sieve", "lfu", "s3fifo", "s3fifo-main")
LCS = {"lru": "LRU", "fifo": "FIFO", "sieve": "Sieve", "s3fifo-main": "S3FIFO"}

CAPACITIES = (1_000, 3_000, 10_000, 30_000, 50_000)
HITS = {
    ("flat", "lru"): (12831, 18761, 60921, 93967, 102290),
    ("flat", "fifo"): (12559, 18201, 53812, 87152, 98096),
    ("flat", OPTIMAL): (55019, 84953, 105710, 105710, 105710),
    ("prefix", OPTIMAL): (55019, 84953, 105710, 105710, 105710),
    ("prefix", "lru"): (12847, 18850, 61046, 93978, 102290),
}
RATES = {  # flat, to four digits
    "lfu": (0.0481, 0.0747, 0.1318, 0.2759, 0.3438),
    "sieve": (0.0481, 0.0747, 0.1318, 0.2759, 0.3438),
    "s3fifo-main": (0.0543, 0.0930, 0.1925, 0.2549, 0.2872),
}


def conversations(accesses: int, seed: int = 0) -> Trace:
    """About so many accesses of conversations that grow turn by turn, some of many turns."""
    rng = np.random.default_rng(seed)
    talks = max(1, accesses // 85)
    turns = rng.geometric(0.3, talks)
    first = np.cumsum(turns) - turns
    talk = np.repeat(np.arange(talks), turns)
    turn = np.arange(talk.size) - first[talk]
    grown = rng.integers(2, 14, talk.size)
    end = np.cumsum(grown)
    begin = (end - grown)[first][talk]  # a conversation's blocks have ids one after the other
    lengths = end - begin
    arrival = rng.uniform(0, talks, talks)[talk] + turn * rng.exponential(60.0, talk.size)
    order = np.argsort(arrival, kind="stable")
    lengths, begin = lengths[order], begin[order]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.repeat(begin - starts[:-1], lengths) + np.arange(starts[-1])
    zeros = np.zeros(order.size, np.int32)
    return Trace(
        block_size=16,
        starts=starts,
        ids=dense(ids),
        arrival=arrival[order],
        input_len=(lengths * 16).astype(np.int32),
        output_len=zeros,
        session=talk[order].astype(np.int32),
        turn=turn[order].astype(np.int32),
        workload=zeros,
    )


def speed(accesses: int, rounds: int) -> dict[str, Any]:
    """Million accesses a second of each loop, and of libCacheSim's."""
    trace = conversations(accesses)
    flat, prefix = view(trace, "flat"), view(trace, "prefix")
    count = trace.accesses
    contenders: dict[str, Callable[[], float | None]] = {}
    for policy in (*FLAT, OPTIMAL):
        contenders[policy] = lambda policy=policy: _timed(lambda: replay(flat, policy, CAPACITY))
    contenders["curve"] = lambda: _timed(lambda: lru_hits(prefix))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.oracleGeneral"
        write(trace, path, "oracle-general")
        contenders |= _libcachesim(path)
        measured = alternate("laboratory", contenders, rounds)
    rates = {who: count / measured.median(who) / 1e6 for who in contenders}
    slow = _objects(beginning(trace, 3000))
    for who, rate in rates.items():
        target = f"  (target {TARGETS[who]:.0f})" if who in TARGETS else ""
        print(f"{who:<22} {rate:8.1f} M accesses/s{target}")
    for who, rate in slow.items():
        print(f"{who:<22} {rate:8.3f} M accesses/s, prefix semantics, policy objects")
    return {
        "accesses": count,
        "distinct": trace.universe,
        "capacity": CAPACITY,
        "million_accesses_per_s": rates,
        "objects_million_accesses_per_s": slow,
        "missed": [who for who, target in TARGETS.items() if rates[who] < target],
    }


def beginning(trace: Trace, requests: int) -> Trace:
    """The trace's first requests."""
    count = int(trace.starts[requests])
    columns = "arrival input_len output_len session turn workload".split()
    head = {name: getattr(trace, name)[:requests] for name in columns}
    return replace(trace, starts=trace.starts[: requests + 1], ids=trace.ids[:count], **head)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _libcachesim(path: Path) -> dict[str, Callable[[], float | None]]:
    try:
        import libcachesim as lcs
    except ImportError:
        print("libcachesim is not installed: without it", file=sys.stderr)
        return {}

    def run(name: str) -> float:
        reader = lcs.TraceReader(str(path), lcs.TraceType.ORACLE_GENERAL_TRACE)
        cache = getattr(lcs, name)(CAPACITY)
        return _timed(lambda: cache.process_trace(reader))

    return {f"libcachesim {policy}": lambda n=name: run(n) for policy, name in LCS.items()}


def _objects(trace: Trace) -> dict[str, float]:
    """Policies that have no compiled loop for requests: the engine's objects."""
    seen = view(trace, "prefix")
    policies = "fifo s3fifo arc lirs workload lhd".split()
    capacity = max(1, seen.trace.universe // 10)
    return {
        policy: trace.accesses / _timed(lambda p=policy: replay(seen, p, capacity)) / 1e6
        for policy in policies
    }


def in_the_engine(seen: View, capacity: int, *, more: bool) -> int:
    """Cached blocks of all requests, by the engine's own cache manager with LRU.

    Blocks of two tokens stand for the trace's. more: each request has one token behind its full
    blocks, so that all of them may be hit; else only those have one that end in a partial block.
    The cache has a block more than `capacity`, for that token.
    """
    kv = KVManager(KVSpec(1, 1, 8, 2, "float32"), capacity + 1, b"lab", policy="lru")
    trace, hits = seen.trace, 0
    for r in range(trace.requests):
        tokens = np.repeat(trace.ids[trace.starts[r] : trace.starts[r + 1]], 2).tolist()
        if more or trace.input_len[r] % trace.block_size:
            tokens.append(2**30)
        found = kv.admit(r, tokens)
        assert found is not None
        hits += found // 2
        kv.publish(r, tokens, len(tokens))
        kv.release(r)
    return hits


def check(path: str) -> bool:
    """Whether all figures of the Mooncake conversation trace are what they are known to be."""
    trace = read(path, "mooncake")
    failed = 0

    def same(what: str, found: Any, known: Any) -> None:
        nonlocal failed
        failed += found != known
        print(
            f"{'ok  ' if found == known else 'NOT '} {what}: {found}"
            + f" of {known}" * (found != known)
        )

    reuse = reuse_of(view(trace, "prefix"))
    fraction = summary(reuse.reuse_fraction)
    same("requests", trace.requests, 12_031)
    same("accesses", trace.accesses, 288_500)
    same("distinct blocks", trace.universe, 182_790)
    same("ceiling, blocks", round(reuse.ceiling, 5), 0.36641)
    same("ceiling, tokens", round(reuse.token_ceiling, 5), 0.37362)
    for name, known in (("mean", 0.4094), ("median", 0.3626), ("p90", 0.9481), ("p99", 0.9994)):
        same(f"reuse of a request, {name}", round(fraction[name], 4), known)
    views = {semantics: view(trace, semantics) for semantics in ("flat", "prefix", "engine")}
    for (semantics, policy), known in HITS.items():
        found = tuple(int(replay(views[semantics], policy, c).hits.sum()) for c in CAPACITIES)
        same(f"{semantics} {policy}", found, known)
    for policy, rates in RATES.items():
        hits = (int(replay(views["flat"], policy, c).hits.sum()) for c in CAPACITIES)
        same(f"flat {policy}", tuple(round(h / trace.accesses, 4) for h in hits), rates)
    curve = lru_hits(views["prefix"])
    same(
        "one pass at five capacities",
        tuple(curve[list(CAPACITIES)].tolist()),
        HITS["prefix", "lru"],
    )
    for capacity in CAPACITIES[:3]:
        slow = replay(views["prefix"], "lru", capacity, fast=False).hits
        fast = replay(views["prefix"], "lru", capacity).hits
        same(f"one pass = replay, bit by bit, at {capacity}", bool((slow == fast).all()), True)
    engine = views["engine"]
    open_ended = View(engine.trace, "prefix")
    for capacity in CAPACITIES[1:4]:
        known = int(lru_hits(open_ended)[capacity])
        found = in_the_engine(open_ended, capacity, more=True)
        same(f"all full blocks, by the engine's cache manager at {capacity}", found, known)
        known = round(int(lru_hits(engine)[capacity]) / engine.trace.accesses, 4)
        found = in_the_engine(engine, capacity, more=False) / engine.trace.accesses
        same(f"engine lru, by the engine's cache manager at {capacity}", round(found, 4), known)
    print("all figures are right" if not failed else f"{failed} figures are not right")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accesses", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", metavar="FILE", help="The Mooncake conversation trace.")
    args = parser.parse_args()
    if args.check:
        return 0 if check(args.check) else 1
    results = speed(args.accesses, args.rounds)
    write_json(args.json, "lab", results)
    return 1 if results["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
