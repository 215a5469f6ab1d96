"""`vllm bench latency`: one batch, again and again, in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.entrypoints.cli.bench_data import random_prompts, usable_ids, write_json
from vllm.entrypoints.cli.command import positive, run

PERCENTILES = (10, 25, 50, 75, 90, 99)


def main(words: Sequence[str]) -> int:
    parser = FlexibleArgumentParser(
        prog="vllm bench latency", description="Seconds that one batch takes."
    )
    parser.add_argument("--input-len", type=positive, default=32, metavar="N")
    parser.add_argument("--output-len", type=positive, default=128, metavar="N")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N")
    parser.add_argument("--n", type=positive, default=1, help="Outputs a prompt.")
    parser.add_argument("--num-iters-warmup", type=int, default=10, metavar="N")
    parser.add_argument("--num-iters", type=positive, default=30, metavar="N")
    parser.add_argument("--disable-tqdm", action="store_true", help="No progress bar.")
    parser.add_argument("--output-json", metavar="FILE", help="Write the result there.")
    add_flags(parser, EngineArgs)
    # The same batch again would be found in the cache, which is not what is measured.
    parser.set_defaults(enable_prefix_caching=False)
    return run(parser, words, _run)


def _run(args: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM.from_engine_args(EngineArgs.from_mapping(args))
    prompts = random_prompts(
        usable_ids(llm.llm_engine.tokenizer),
        count=args.batch_size,
        input_len=args.input_len,
        seed=args.seed,
    )
    params = SamplingParams(n=args.n, temperature=1.0, ignore_eos=True, max_tokens=args.output_len)

    def once() -> float:
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    for _ in tqdm(range(args.num_iters_warmup), desc="Warmup", disable=args.disable_tqdm):
        once()
    rounds = tqdm(range(args.num_iters), desc="Measuring", disable=args.disable_tqdm)
    latencies = [once() for _ in rounds]
    found = {str(p): float(np.percentile(latencies, p)) for p in PERCENTILES}
    print(f"Avg latency: {np.mean(latencies):.6f} seconds")
    for percent, seconds in found.items():
        print(f"{percent}% percentile latency: {seconds:.6f} seconds")
    if args.output_json:
        result = {
            "avg_latency": float(np.mean(latencies)),
            "latencies": latencies,
            "percentiles": found,
        }
        write_json(args.output_json, result)
