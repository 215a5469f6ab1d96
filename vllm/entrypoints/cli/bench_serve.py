"""`vllm bench serve`: requests at a rate against a server, and how long each waited."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from vllm.config import hub
from vllm.config.flags import FlexibleArgumentParser
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.cli.bench_client import Answer, Target, ask
from vllm.entrypoints.cli.bench_data import (
    positive,
    random_prompts,
    statistics,
    usable_ids,
    write_json,
)

PROG = "vllm bench serve"
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
ENDPOINTS = {
    "vllm": "/v1/completions",
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog=PROG, description="Measure a server.")
    add = parser.add_argument
    add("--backend", choices=tuple(ENDPOINTS), default="vllm")
    add("--endpoint", metavar="PATH", help="Default: the backend's.")
    add("--base-url", metavar="URL", help="The server, if not http://HOST:PORT.")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--api-key", help="Bearer token, if the server needs one.")
    add("--model", help="Model name; default: the first that the server lists.")
    add("--tokenizer", help="Folder or hub id; default: the model's.")
    add("--dataset-name", choices=("random",), default="random")
    add("--num-prompts", type=positive, default=1000, metavar="N")
    add("--random-input-len", "--input-len", type=positive, default=1024, metavar="N")
    add("--random-output-len", "--output-len", type=positive, default=128, metavar="N")
    add("--random-prefix-len", type=int, default=0, metavar="N", help="Tokens that all share.")
    add("--random-range-ratio", type=float, default=0.0, metavar="R", help="Lengths vary by ±R.")
    add("--request-rate", type=float, default=float("inf"), metavar="R", help="Requests a second.")
    add("--burstiness", type=float, default=1.0, help="Shape of the gaps; 1 is a Poisson process.")
    add("--max-concurrency", type=positive, metavar="N", help="Most requests at once.")
    add("--num-warmups", type=int, default=0, metavar="N", help="Requests before measuring.")
    add("--temperature", type=float, default=0.0)
    add("--ignore-eos", action="store_true", help="Make every output as long as asked for.")
    add("--seed", type=int, default=0)
    add("--percentile-metrics", default="ttft,tpot,itl", help=f"Of {', '.join(METRICS)}.")
    add("--metric-percentiles", default="99", help="Percentiles, separated by commas.")
    add("--save-result", action="store_true", help="Write the result as JSON.")
    add("--save-detailed", action="store_true", help="Each request's figures too.")
    add("--result-dir", default=".", metavar="DIR")
    add("--result-filename", metavar="NAME")
    add("--label", help="Goes into the result.")
    add("--disable-tqdm", action="store_true", help="No progress bar.")
    return parser


def main(words: Sequence[str]) -> int:
    parser = make_parser()
    args = parser.parse_args(list(words))
    try:
        args.percentiles = [float(p) for p in args.metric_percentiles.split(",")]
    except ValueError:
        parser.error(f"--metric-percentiles: {args.metric_percentiles!r} are not numbers")
    args.shown = args.percentile_metrics.split(",")
    if unknown := [name for name in args.shown if name not in METRICS]:
        parser.error(f"--percentile-metrics: there is no {unknown[0]!r}")
    if not args.request_rate > 0 or not args.burstiness > 0:
        parser.error("--request-rate and --burstiness must be above 0")
    try:
        result = asyncio.run(_run(args))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except httpx.HTTPError as error:
        print(f"{PROG}: error: the server cannot be reached: {error!r}", file=sys.stderr)
        return 1
    _print(result, args)
    if args.save_result:
        name = args.result_filename or _file_name(args, result)
        write_json(Path(args.result_dir) / name, result)
    return 0 if result["completed"] else 1


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    base = (args.base_url or f"http://{args.host}:{args.port}").rstrip("/")
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as client:
        models = await client.get(f"{base}/v1/models")
        models.raise_for_status()
        model = args.model or models.json()["data"][0]["id"]
        named = _tokenizer_of(args.tokenizer, model)
        folder = hub.resolve(named, weights=False, tokenizer_only=True)
        tokenizer = Tokenizer(folder)
        prompts: list[Any] = random_prompts(
            usable_ids(tokenizer),
            count=args.num_prompts + args.num_warmups,
            input_len=args.random_input_len,
            prefix_len=args.random_prefix_len,
            range_ratio=args.random_range_ratio,
            seed=args.seed,
        )
        if args.backend == "openai-chat":
            prompts = [tokenizer.decode(ids) for ids in prompts]
        target = Target(
            url=base + (args.endpoint or ENDPOINTS[args.backend]),
            model=model,
            chat=args.backend == "openai-chat",
            output_len=args.random_output_len,
            temperature=args.temperature,
            ignore_eos=args.ignore_eos,
        )
        warmups, prompts = prompts[: args.num_warmups], prompts[args.num_warmups :]
        await asyncio.gather(*(ask(client, target, prompt) for prompt in warmups))
        answers, duration = await _all(client, target, prompts, args)
    return _result(args, model, answers, duration)


def _tokenizer_of(tokenizer: str | None, model: str) -> str | None:
    """What to load: what the user names, or the model's; `demo` is the one that ships."""
    chosen = tokenizer or model
    return None if chosen == "demo" else chosen


async def _all(
    client: httpx.AsyncClient, target: Target, prompts: list[Any], args: argparse.Namespace
) -> tuple[list[Answer], float]:
    """Send each prompt at its time; no more than so many at once."""
    rng = random.Random(args.seed)
    gate = asyncio.Semaphore(args.max_concurrency or len(prompts))
    bar = tqdm(total=len(prompts), disable=args.disable_tqdm)

    async def one(prompt: Any, at: float) -> Answer:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        async with gate:
            answer = await ask(client, target, prompt)
        bar.update()
        return answer

    start = at = time.perf_counter()
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(one(prompt, at)))
        if args.request_rate != float("inf"):
            at += rng.gammavariate(args.burstiness, 1 / (args.request_rate * args.burstiness))
    answers = await asyncio.gather(*tasks)
    duration = time.perf_counter() - start
    bar.close()
    return answers, duration


def _result(
    args: argparse.Namespace, model: str, answers: list[Answer], duration: float
) -> dict[str, Any]:
    good = [a for a in answers if a.error is None]
    asked, made = sum(a.prompt_tokens for a in good), sum(a.output_tokens for a in good)
    result: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "label": args.label,
        "model_id": model,
        "num_prompts": len(answers),
        "request_rate": "inf" if args.request_rate == float("inf") else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "duration": duration,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": asked,
        "total_output_tokens": made,
        "total_cached_tokens": sum(a.cached_tokens for a in good),
        "request_throughput": len(good) / duration,
        "output_throughput": made / duration,
        "total_token_throughput": (asked + made) / duration,
    }
    values = {
        "ttft": [a.ttft for a in good],
        "tpot": [a.tpot for a in good if a.output_tokens > 1],
        "itl": [gap for a in good for gap in a.gaps],
        "e2el": [a.latency for a in good],
    }
    for name, seconds in values.items():
        for statistic, value in statistics(seconds, args.percentiles).items():
            result[f"{statistic}_{name}_ms"] = value * 1000
    result["errors"] = sorted({a.error for a in answers if a.error is not None})[:10]
    if args.save_detailed:
        result["input_lens"] = [a.prompt_tokens for a in answers]
        result["output_lens"] = [a.output_tokens for a in answers]
        result["ttfts"] = [a.ttft for a in answers]
        result["itls"] = [a.gaps for a in answers]
    return result


def _print(result: dict[str, Any], args: argparse.Namespace) -> None:
    width = 50
    print(f"{' Serving Benchmark Result ':=^{width}}")
    cached = result["total_cached_tokens"] / max(1, result["total_input_tokens"])
    for label, value in (
        ("Successful requests:", f"{result['completed']}"),
        ("Failed requests:", f"{result['failed']}"),
        ("Benchmark duration (s):", f"{result['duration']:.2f}"),
        ("Total input tokens:", f"{result['total_input_tokens']}"),
        ("Total generated tokens:", f"{result['total_output_tokens']}"),
        ("Cached input tokens (%):", f"{cached * 100:.1f}"),
        ("Request throughput (req/s):", f"{result['request_throughput']:.2f}"),
        ("Output token throughput (tok/s):", f"{result['output_throughput']:.2f}"),
        ("Total Token throughput (tok/s):", f"{result['total_token_throughput']:.2f}"),
    ):
        print(f"{label:<40}{value:<10}".rstrip())
    for name in args.shown:
        print(f"{METRICS[name]:-^{width}}")
        for statistic in ("mean", "median", *(f"p{p:g}" for p in args.percentiles)):
            label = f"{statistic.capitalize()} {name.upper()} (ms):"
            print(f"{label:<40}{result[f'{statistic}_{name}_ms']:<10.2f}".rstrip())
    print("=" * width)
    for error in result["errors"]:
        print(f"error: {error}", file=sys.stderr)


def _file_name(args: argparse.Namespace, result: dict[str, Any]) -> str:
    model = result["model_id"].rstrip("/").split("/")[-1]
    return f"{args.label or args.backend}-{args.request_rate}qps-{model}-{result['date']}.json"
