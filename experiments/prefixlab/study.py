"""The prefix study again: which workloads share prefixes, and which policy serves their mixture.

python -m experiments.prefixlab.study --out results [--trace conversation_trace.jsonl]

The four workloads are the simulator's made-up ones (100 conversations each; nothing is downloaded).
Words are tokens. `--trace` adds the policies on a Mooncake trace. Writes results.json and plots.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vllm.prefixlab.formats import read
from vllm.prefixlab.formats.text import keys
from vllm.prefixlab.optimal import OPTIMAL
from vllm.prefixlab.plots import capacities, save
from vllm.prefixlab.replay import replay
from vllm.prefixlab.reuse import reuse_of
from vllm.prefixlab.split import quota
from vllm.prefixlab.trace import Trace, TraceBuilder, interleaved, joined
from vllm.prefixlab.view import View, view
from vllm.simulator.clients import events
from vllm.simulator.conversations import WORKLOADS, generate

COUNT = 100  # conversations of each workload
SIZES, CAPACITIES = (16, 32, 64), (64, 128, 256, 512)
MIXED = 256  # blocks of 16 tokens
SWEEP = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SEEDS = range(10)
LISTED = "allow:chat_multi,qa"
POLICIES = ("lru", "fifo", "slru", "s3fifo", LISTED, "workload", "session", "quota", OPTIMAL)
REAL, CLOSURE = (3_000, 10_000, 30_000), 30_000
REAL_POLICIES = (
    "lru fifo lfu clock 2q slru arc lirs s3fifo s3fifo-main sieve w-tinylfu gdsf lhd ttl workload"
).split()


PARTS = ("alone", "mixed", "sweep", "real")


class Words:
    """A token for each word and sign."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        known = self._tokens
        return [known.setdefault(word, len(known)) for word in re.findall(r"\w+|[^\w\s]", text)]


def workload(name: str, block_size: int, encode: Words, *, seed: int, think: float) -> Trace:
    """The workload's requests; think: mean seconds between turns. Conversations come at 2/s."""
    builder = TraceBuilder(block_size, name)
    for event in events(generate(name, COUNT, seed), rate=2.0, think=think, seed=seed):
        tokens = encode(event.prompt)
        builder.add(
            keys(tokens, block_size),
            len(tokens),
            0,
            event.time,
            session=event.conversation,
            turn=event.turn,
            workload=name,
        )
    return builder.build()


def alone(each: Callable[[Sequence[Any]], Any]) -> list[dict[str, Any]]:
    """Each workload by itself: its ceiling, and LRU and FIFO at the study's capacities."""
    encode, rows = Words(), []
    runs = [(n, size, think) for think in (0.01, 5.0) for n in WORKLOADS for size in SIZES]
    for name, size, think in each(runs):
        trace = workload(name, size, encode, seed=0, think=think)
        seen = view(trace, "engine")
        reuse = reuse_of(seen)
        row = {
            "workload": name,
            "turns": "back to back" if think < 1 else "interleaved",
            "block_size": size,
            "semantics": "engine",
            "requests": trace.requests,
            "reuse_mean": float(reuse.reuse_fraction.mean()),
            "ceiling": reuse.ceiling,
        }
        for policy in ("lru", "fifo"):
            for capacity in CAPACITIES:
                rate = replay(seen, policy, capacity).row()["hit_rate"]
                row[f"{policy}_{capacity}"] = rate
        rows.append(row)
    return rows


def by_blocks(traces: Sequence[Trace]) -> Trace:
    """Each access a request of its own, so that streams take turns block by block."""
    cut = []
    for trace in traces:
        count = trace.accesses
        cut.append(
            replace(
                trace,
                starts=np.arange(count + 1, dtype=np.int64),
                arrival=np.arange(count, dtype=np.float64),
                input_len=np.full(count, trace.block_size, np.int32),
                output_len=np.zeros(count, np.int32),
                session=np.full(count, -1, np.int32),
                turn=np.zeros(count, np.int32),
                workload=np.zeros(count, np.int32),
            )
        )
    return interleaved(cut)


def stream(kind: str, seed: int) -> View:
    """The four workloads as one stream of 16-token blocks.

    original: block by block in turn, back to back turns, flat. turns: request by request in turn.
    arrival: by their times, turns 5 s apart.
    """
    encode = Words()
    think = 5.0 if kind == "arrival" else 0.01
    traces = [workload(name, 16, encode, seed=seed, think=think) for name in WORKLOADS]
    if kind == "original":
        return view(by_blocks(traces), "flat")
    return view((joined if kind == "arrival" else interleaved)(traces), "engine")


def rate(seen: View, policy: str, capacity: int) -> float:
    name = quota(seen, capacity) if policy == "quota" else policy
    return float(replay(seen, name, capacity).row()["hit_rate"])


def mixed(each: Callable[[Sequence[Any]], Any]) -> list[dict[str, Any]]:
    """All policies at the study's size, over seeds: means, and the leads over LRU, paired."""
    rows = []
    for kind in each(("original", "turns", "arrival")):
        views = [stream(kind, seed) for seed in SEEDS]
        lru = [rate(seen, "lru", MIXED) for seen in views]
        for policy in POLICIES:
            rates = [rate(seen, policy, MIXED) for seen in views]
            leads = [mine - shared for mine, shared in zip(rates, lru, strict=True)]
            rows.append(
                {
                    "stream": kind,
                    "semantics": views[0].semantics,
                    "policy": policy,
                    "capacity": MIXED,
                    "hit_rate": statistics.mean(rates),
                    "lead": statistics.mean(leads),
                    "lead_low": min(leads),
                    "lead_high": max(leads),
                }
            )
    return rows


def sweep(each: Callable[[Sequence[Any]], Any]) -> list[dict[str, Any]]:
    """Where workload-aware policies stop leading LRU: over capacities, and after a change.

    change: at half time the listed workloads end, and the others repeat their requests over and
    over: what the list says is wrong from there on.
    """
    rows = []
    for kind in ("arrival", "change"):
        views = [changed(seed) if kind == "change" else stream(kind, seed) for seed in SEEDS]
        for capacity in each(SWEEP):
            leads: dict[str, list[float]] = {}
            for seen in views:
                lru = rate(seen, "lru", capacity)
                for policy in (LISTED, "workload", "session", "quota", OPTIMAL):
                    leads.setdefault(policy, []).append(rate(seen, policy, capacity) - lru)
                leads.setdefault("lru", []).append(lru)
            row = {"stream": kind, "semantics": "engine", "capacity": capacity}
            row["lru"] = statistics.mean(leads.pop("lru"))
            for policy, found in leads.items():
                row[policy] = statistics.mean(found)
                row[f"{policy} range"] = [min(found), max(found)]
            rows.append(row)
    return rows


def changed(seed: int) -> View:
    """The mixture by arrival; then, for as long, 12 of its articles again and again."""
    first = stream("arrival", seed).trace
    articles = np.flatnonzero(first.workload == first.workloads.index("summarization"))[:12]
    builder = TraceBuilder(first.block_size, "change")
    order = [*range(first.requests), *np.tile(articles, first.requests // 12).tolist()]
    for place, r in enumerate(order):
        ids = first.ids[first.starts[r] : first.starts[r + 1]].tolist()
        kind = first.workloads[first.workload[r]]
        length = int(first.input_len[r]) // first.block_size * first.block_size
        if ids:
            builder.add(ids, length, 0, float(place), workload=kind, session=f"{kind}{r}")
    return view(builder.build(), "engine")


def real(path: str, each: Callable[[Sequence[Any]], Any]) -> list[dict[str, Any]]:
    """Policies on a real trace, leaf first; and at one size flat, where chains may break."""
    trace = read(path)
    policies = (*REAL_POLICIES, OPTIMAL)
    runs = [("prefix", policy, capacity) for policy in policies for capacity in REAL]
    runs += [("flat", policy, CLOSURE) for policy in policies]
    views = {semantics: view(trace, semantics) for semantics in ("flat", "prefix")}
    return [replay(views[s], policy, capacity).row() for s, policy, capacity in each(runs)]


def draw(results: dict[str, Any], folder: Path) -> None:
    for kind in ("arrival", "change") if "sweep" in results else ():
        rows = [row for row in results["sweep"] if row["stream"] == kind]
        lines = {"lru": [(row["capacity"], row["lru"]) for row in rows]}
        for policy in (LISTED, "workload", "session", "quota", OPTIMAL):
            lines[policy] = [(row["capacity"], row["lru"] + row[policy]) for row in rows]
        best = max(rate for _, rate in lines[OPTIMAL])
        title = f"four workloads in one stream ({kind}), engine semantics"
        save(capacities(lines, best, title), folder / f"mixed_{kind}")
    if "real" in results:
        rows = [row for row in results["real"] if row["semantics"] == "prefix"]
        lines = {}
        for policy in ("lru", "fifo", "s3fifo", "arc", "lirs", "sieve", OPTIMAL):
            mine = [row for row in rows if row["policy"] == policy]
            lines[policy] = [(row["capacity"], row["hit_rate"]) for row in mine]
        best = max(rate for _, rate in lines[OPTIMAL])
        save(capacities(lines, best, "conversation trace, prefix semantics"), folder / "real")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--trace", metavar="FILE", help="A Mooncake trace (FAST25-release/traces).")
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=PARTS,
        help="None: draw what results.json has.",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / "results.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    for part, work in (("alone", alone), ("mixed", mixed), ("sweep", sweep)):
        if part in args.parts:
            results[part] = work(lambda runs, part=part: tqdm(runs, desc=part))
    if args.trace and "real" in args.parts:
        results["real"] = real(args.trace, lambda runs: tqdm(runs, desc="real"))
    target.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out)


if __name__ == "__main__":
    main()
