"""How near the simulated engine is to the real one, and how fast it is.

python -m benchmarks.simulator [--trace FILE] [--json results/simulator.json]

agreement   the demo model, real and simulated, on the same requests: cached tokens with all
            requests there from the start, and hit rates of Poisson arrivals, where what has been
            published when a request comes depends on time, which the simulator models
speed       requests a second of a Mooncake trace (github.com/kvcache-ai/Mooncake,
            FAST25-release/traces) in virtual time, with its outputs and with one token each,
            through the real scheduler and cache and through their twin over arrays, which must
            tell the same; needs --trace
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import write_json
from vllm.config import EngineArgs
from vllm.entrypoints.executor import make_executor
from vllm.simulator import calibrate
from vllm.simulator.arrays import ArrayEngine
from vllm.simulator.prompts import keys_of
from vllm.simulator.run import Ask, Replica, Simulation, Told, drive

RATES, POOLS, SEEDS = (10.0, 30.0, 90.0), (60, 150, 400), (1, 2)  # rates: requests a second
REQUESTS = 60
BLOCK = 512  # tokens; Mooncake's
ENGINES = (Simulation, ArrayEngine)


def hit_rate(done: list[Told]) -> float:
    return sum(t.cached_tokens for t in done) / sum(len(t.ask.prompt) for t in done)


def agreement(model: str | None) -> dict[str, Any]:
    """Real and simulated hit rates of each condition, in points (1/100)."""
    rows = []
    fixed = 0
    for blocks in POOLS:
        args = EngineArgs(
            model=model, num_gpu_blocks_override=blocks, max_model_len=512, max_num_seqs=8
        )
        real = calibrate.Real(args.create_engine_config(), make_executor)
        warmup = calibrate.requests(REQUESTS, 512, real.vocab_size, seed=0)
        steps = [step for clients in (1, 4, 8) for step in real.run(warmup, clients)[1]]
        latency = calibrate.flag(calibrate.fit_linear(steps))
        simulated = replace(
            args,
            simulator="random",
            simulator_clock="virtual",
            simulator_latency=latency,
        )
        for seed in SEEDS:
            asks = calibrate.requests(REQUESTS, 512, real.vocab_size, seed, shared=0.8)
            at_once = real.play(asks)
            by_prompt = {id(t.ask.prompt): t.cached_tokens for t in at_once}
            for told in Simulation(simulated.create_engine_config()).run(asks):
                fixed += by_prompt[id(told.ask.prompt)] != told.cached_tokens
            for rate in RATES:
                draw, at = random.Random(seed), 0.0
                for ask in asks:
                    ask.arrival = at = at + draw.expovariate(rate)
                done = real.play(asks)
                twin = Simulation(simulated.create_engine_config()).run(asks)
                rows.append(
                    {
                        "blocks": blocks,
                        "seed": seed,
                        "rate": rate,
                        "real": 100 * hit_rate(done),
                        "simulated": 100 * hit_rate(twin),
                        "real_ttft": float(np.mean([t.ttft for t in done])),
                        "simulated_ttft": float(np.mean([t.ttft for t in twin])),
                    }
                )
        real.shutdown()
    errors = [abs(row["real"] - row["simulated"]) for row in rows]
    return {
        "fixed_schedule_differences": fixed,
        "fixed_schedule_requests": REQUESTS * len(POOLS) * len(SEEDS),
        "conditions": rows,
        "mean_error_points": float(np.mean(errors)),
        "max_error_points": float(np.max(errors)),
    }


def speed(path: Path, requests: int | None, blocks: int, rounds: int) -> list[dict[str, Any]]:
    """The trace through one engine of Llama-3.1-8B's sizes on a modelled H100, each way in turn."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file][:requests]
    args = EngineArgs(
        simulator="random",
        simulator_model="llama-3.1-8b",
        simulator_clock="virtual",
        simulator_latency="roofline:device=h100",
        block_size=BLOCK,
        num_gpu_blocks_override=blocks,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        skip_tokenizer_init=True,
    )
    config = args.create_engine_config()
    rows = []
    for outputs in (True, False):
        asks = [
            Ask(
                line["timestamp"] / 1000,
                [0] * line["input_length"],
                line["output_length"] if outputs else 1,
                keys=keys_of(line["hash_ids"], line["input_length"], BLOCK),
            )
            for line in lines
        ]
        for make in ENGINES:  # what is compiled, and memory that is touched first, are not counted
            played(make(config), asks[: len(asks) // 10])
        taken: dict[str, list[float]] = {make.__name__: [] for make in ENGINES}
        ends = set()
        for _ in range(rounds):
            for make in ENGINES:
                replica = make(config)
                seconds, done = played(replica, asks)
                taken[make.__name__].append(seconds)
                ends.add(digest(done))
        assert len(ends) == 1, "both engines tell the same of every request"
        slow = taken[Simulation.__name__]
        for name, seconds_taken in taken.items():
            median = statistics.median(seconds_taken)
            rows.append(
                {
                    "engine": name,
                    "outputs": "the trace's" if outputs else "one token",
                    "requests": len(done),
                    "processor_seconds": seconds_taken,
                    "requests_per_second": len(done) / median,
                    "tokens_per_second": sum(t.output_tokens for t in done) / median,
                    "faster": sorted(a / b for a, b in zip(slow, seconds_taken, strict=True)),
                    "virtual_seconds": replica.now,
                    "token_hit_rate": hit_rate(done),
                }
            )
    return rows


def played(replica: Replica, asks: list[Ask]) -> tuple[float, list[Told]]:
    """Seconds of the processor, and what became of the requests."""
    start = time.process_time()
    done = drive([replica], asks, lambda ask: 0)
    return time.process_time() - start, done


def digest(done: list[Told]) -> bytes:
    """Of all that is told of the requests."""
    told = hashlib.sha256()
    for t in done:
        times = t.ask.arrival, t.first_token, t.finished
        told.update(repr((times, t.cached_tokens, t.preemptions, t.finish_reason)).encode())
        told.update(t.tokens.tobytes())
    return told.digest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a folder; default: the demo model")
    parser.add_argument("--trace", type=Path, help="Mooncake's, for the speed")
    parser.add_argument("--requests", type=int, help="only the first of the trace")
    parser.add_argument("--blocks", type=int, default=3000, help="of 512 tokens, on the device")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, both ways in turn")
    parser.add_argument("--json", help="where to write the results")
    args = parser.parse_args()
    results: dict[str, Any] = {"agreement": agreement(args.model)}
    found = results["agreement"]
    print(
        f"fixed schedule: {found['fixed_schedule_differences']} of "
        f"{found['fixed_schedule_requests']} requests differ in cached tokens"
    )
    print(
        f"under load: hit rates differ by {found['mean_error_points']:.3f} points on average, "
        f"{found['max_error_points']:.3f} at most, over {len(found['conditions'])} conditions"
    )
    if args.trace is not None:
        results["speed"] = speed(args.trace, args.requests, args.blocks, args.rounds)
        for row in results["speed"]:
            print(
                f"{row['requests']} requests, outputs: {row['outputs']}, {row['engine']}: "
                f"{row['requests_per_second']:.0f} requests/s of one core, "
                f"{row['faster'][0]:.1f} to {row['faster'][-1]:.1f} x"
            )
    write_json(args.json, "simulator", results)


if __name__ == "__main__":
    main()
