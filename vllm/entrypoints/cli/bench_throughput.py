"""`vllm bench throughput`: all requests at once, in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from vllm.config import EngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.entrypoints.cli import bench_datasets
from vllm.entrypoints.cli.bench_data import write_json
from vllm.entrypoints.cli.command import natural, positive, run


def main(words: Sequence[str]) -> int:
    parser = FlexibleArgumentParser(
        prog="vllm bench throughput", description="Tokens a second, all requests given at once."
    )
    parser.add_argument("--input-len", type=positive, metavar="N")
    parser.add_argument("--output-len", type=positive, metavar="N")
    parser.add_argument("--prefix-len", type=natural, default=0, metavar="N", help="Shared by all.")
    bench_datasets.add_flags(parser)
    parser.add_argument("--num-prompts", type=positive, default=1000, metavar="N")
    parser.add_argument("--n", type=positive, default=1, help="Outputs a prompt.")
    parser.add_argument("--disable-tqdm", action="store_true", help="No progress bar.")
    parser.add_argument("--output-json", metavar="FILE", help="Write the result there.")
    add_flags(parser, EngineArgs)
    return run(parser, words, _run)


def _run(args: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM.from_engine_args(EngineArgs.from_mapping(args))
    if llm.llm_engine.tokenizer is None:
        raise ValueError("benchmarks need a tokenizer")
    args.random_prefix_len = args.random_prefix_len or args.prefix_len
    chosen = bench_datasets.samples(args, llm.llm_engine.tokenizer, args.num_prompts)
    params = [
        SamplingParams(n=args.n, temperature=1.0, ignore_eos=True, max_tokens=sample.output_len)
        for sample in chosen
    ]
    start = time.perf_counter()
    outputs = llm.generate(
        [sample.prompt for sample in chosen], params, use_tqdm=not args.disable_tqdm
    )
    elapsed = time.perf_counter() - start
    asked = sum(len(o.prompt_token_ids) for o in outputs)
    made = sum(len(c.token_ids) for o in outputs for c in o.outputs)
    print(
        f"Throughput: {len(outputs) / elapsed:.2f} requests/s, "
        f"{(asked + made) / elapsed:.2f} total tokens/s, {made / elapsed:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {asked}")
    print(f"Total num output tokens:  {made}")
    if args.output_json:
        result = {
            "elapsed_time": elapsed,
            "num_requests": len(outputs),
            "total_num_tokens": asked + made,
            "total_input_tokens": asked,
            "total_output_tokens": made,
            "requests_per_second": len(outputs) / elapsed,
            "tokens_per_second": (asked + made) / elapsed,
            "output_tokens_per_second": made / elapsed,
        }
        write_json(args.output_json, result)
