"""`vllm bench serve`: requests at a rate against a server, and how long each waited."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from vllm.config import hub
from vllm.config.flags import FlexibleArgumentParser, json_object
from vllm.engine.tokenizer import Tokenizer
from vllm.entrypoints.cli import bench_datasets
from vllm.entrypoints.cli.bench_client import Answer, Target, ask
from vllm.entrypoints.cli.bench_data import write_json
from vllm.entrypoints.cli.bench_datasets import Sample
from vllm.entrypoints.cli.bench_result import METRICS, file_name, parse_goals, result, show
from vllm.entrypoints.cli.command import natural, positive, run

PROG = "vllm bench serve"
ENDPOINTS = {
    "vllm": "/v1/completions",
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty")


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog=PROG, description="Measure a server.")
    add = parser.add_argument
    add("--backend", choices=tuple(ENDPOINTS), default="vllm")
    add("--endpoint", metavar="PATH", help="Default: the backend's.")
    add("--base-url", metavar="URL", help="The server, if not http://HOST:PORT.")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--api-key", help="Bearer token, if the server needs one.")
    add("--header", nargs="+", default=[], metavar="NAME=VALUE", help="Headers of every request.")
    add("--ready-check-timeout-sec", type=natural, default=0, metavar="S", help="Wait for it.")
    add("--model", help="Model name; default: the first that the server lists.")
    add("--served-model-name", help="The same; --model then names the tokenizer.")
    add("--tokenizer", help="Folder or hub id; default: the model's.")
    add("--num-prompts", type=positive, default=1000, metavar="N")
    add("--input-len", type=positive, metavar="N", help="Of any dataset that makes prompts.")
    add("--output-len", type=positive, metavar="N", help="Of any dataset.")
    bench_datasets.add_flags(parser)
    add("--request-rate", type=float, default=float("inf"), metavar="R", help="Requests a second.")
    add("--burstiness", type=float, default=1.0, help="Shape of the gaps; 1 is a Poisson process.")
    add("--ramp-up-strategy", choices=("linear", "exponential"), help="Let the rate grow.")
    add("--ramp-up-start-rps", type=float, metavar="R", help="The rate that it grows from,")
    add("--ramp-up-end-rps", type=float, metavar="R", help="and to.")
    add("--max-concurrency", type=positive, metavar="N", help="Most requests at once.")
    add("--num-warmups", type=natural, default=0, metavar="N", help="Requests before measuring.")
    add("--temperature", type=float, default=0.0)
    for name in SAMPLING[1:]:
        add("--" + name.replace("_", "-"), type=int if name == "top_k" else float)
    add("--ignore-eos", action="store_true", help="Make every output as long as asked for.")
    add("--extra-body", type=json_object, metavar="JSON", help="Fields of every body.")
    add("--request-id-prefix", metavar="TEXT", help="Name the requests TEXT0, TEXT1, ...")
    add("--profile", action="store_true", help="Have the server write a profile (admin key).")
    add("--seed", type=int, default=0)
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help="Limits of a good request.")
    add("--percentile-metrics", default="ttft,tpot,itl", help=f"Of {', '.join(METRICS)}.")
    add("--metric-percentiles", default="99", help="Percentiles, separated by commas.")
    add("--save-result", action="store_true", help="Write the result as JSON.")
    add("--save-detailed", action="store_true", help="Each request's figures too.")
    add("--append-result", action="store_true", help="Add a line to the file, if it is there.")
    add("--result-dir", default=".", metavar="DIR")
    add("--result-filename", metavar="NAME")
    add("--label", help="Goes into the result.")
    add("--metadata", nargs="+", default=[], metavar="NAME=VALUE", help="Goes into the result.")
    add("--disable-tqdm", action="store_true", help="No progress bar.")
    return parser


def main(words: Sequence[str]) -> int:
    return run(make_parser(), words, _bench)


def _bench(args: argparse.Namespace) -> int:
    _check(args)
    try:
        told = asyncio.run(_run(args))
    except httpx.HTTPError as error:
        print(f"{PROG}: error: the server cannot be reached: {error!r}", file=sys.stderr)
        return 1
    show(told, args)
    if args.save_result or args.append_result:
        path = Path(args.result_dir) / (args.result_filename or file_name(args, told))
        if args.append_result:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")
        else:
            write_json(path, told)
    return 0 if told["completed"] else 1


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that cannot be, and puts the others in shape."""
    try:
        args.percentiles = [float(p) for p in args.metric_percentiles.split(",")]
    except ValueError:
        raise ValueError(
            f"--metric-percentiles: {args.metric_percentiles!r} are not numbers"
        ) from None
    if not all(0 <= p <= 100 for p in args.percentiles):
        raise ValueError("--metric-percentiles must be between 0 and 100")
    args.shown = args.percentile_metrics.split(",")
    if unknown := [name for name in args.shown if name not in METRICS]:
        raise ValueError(f"--percentile-metrics: there is no {unknown[0]!r}")
    if not args.request_rate > 0 or not args.burstiness > 0:
        raise ValueError("--request-rate and --burstiness must be above 0")
    ramp = (args.ramp_up_start_rps, args.ramp_up_end_rps)
    if args.ramp_up_strategy is None and ramp != (None, None):
        raise ValueError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy")
    if args.ramp_up_strategy is not None:
        if not all(rate is not None and rate > 0 for rate in ramp):
            raise ValueError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
        if args.request_rate != float("inf"):
            raise ValueError("--ramp-up-strategy and --request-rate exclude each other")
    args.goals = parse_goals(args.goodput)
    args.header = dict(_pair("--header", text) for text in args.header)
    args.metadata = dict(_pair("--metadata", text) for text in args.metadata)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{flag}: {text!r} must be NAME=VALUE")
    return name, value


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    base = (args.base_url or f"http://{args.host}:{args.port}").rstrip("/")
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        headers=headers | args.header, timeout=None, limits=limits
    ) as client:
        listed = await _models(client, base, args.ready_check_timeout_sec)
        model = args.served_model_name or args.model or listed
        tokenizer = _tokenizer(args.tokenizer or args.model or listed)
        chosen = bench_datasets.samples(args, tokenizer, args.num_prompts + args.num_warmups)
        if args.backend == "openai-chat":
            chosen = [_as_text(sample, tokenizer) for sample in chosen]
        target = Target(
            url=base + (args.endpoint or ENDPOINTS[args.backend]),
            model=model,
            chat=args.backend == "openai-chat",
            extra=_extra(args),
        )
        warmups, chosen = chosen[: args.num_warmups], chosen[args.num_warmups :]
        await asyncio.gather(*(ask(client, target, sample) for sample in warmups))
        if args.profile:
            (await client.post(f"{base}/start_profile")).raise_for_status()
        answers, duration = await _all(client, target, chosen, args)
        if args.profile:
            (await client.post(f"{base}/stop_profile")).raise_for_status()
    return result(args, model, answers, duration)


async def _models(client: httpx.AsyncClient, base: str, patience: float) -> str:
    """The first model that the server lists, once it is there. Raises httpx.HTTPError."""
    end = time.monotonic() + patience
    while True:
        try:
            models = await client.get(f"{base}/v1/models")
            models.raise_for_status()
            return str(models.json()["data"][0]["id"])
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.5)


def _extra(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in SAMPLING}
    extra = {name: value for name, value in given.items() if value is not None}
    if args.ignore_eos:
        extra["ignore_eos"] = True
    return extra | (args.extra_body or {})


def _tokenizer(name: str) -> Tokenizer:
    """`demo` is the one that ships."""
    folder = hub.resolve(None if name == "demo" else name, weights=False, tokenizer_only=True)
    return Tokenizer(folder)


def _as_text(sample: Sample, tokenizer: Tokenizer) -> Sample:
    if isinstance(sample.prompt, str):
        return sample
    return Sample(tokenizer.decode(sample.prompt), sample.output_len)


async def _all(
    client: httpx.AsyncClient, target: Target, chosen: list[Sample], args: argparse.Namespace
) -> tuple[list[Answer], float]:
    """Send each request at its time; no more than so many at once."""
    gate = asyncio.Semaphore(args.max_concurrency or len(chosen) or 1)
    bar = tqdm(total=len(chosen), disable=args.disable_tqdm)
    prefix = args.request_id_prefix

    async def one(number: int, sample: Sample, at: float) -> Answer:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        async with gate:
            name = None if prefix is None else f"{prefix}{number}"
            answer = await ask(client, target, sample, name)
        bar.update()
        return answer

    start = time.perf_counter()
    times = zip(chosen, arrivals(args, len(chosen)), strict=True)
    tasks = [
        asyncio.create_task(one(number, sample, start + at))
        for number, (sample, at) in enumerate(times)
    ]
    answers = await asyncio.gather(*tasks)
    duration = time.perf_counter() - start
    bar.close()
    return answers, duration


def arrivals(args: argparse.Namespace, count: int) -> Iterator[float]:
    """Seconds from the start to each request, with gaps of a gamma distribution."""
    rng = random.Random(args.seed)
    at = 0.0
    for i in range(count):
        yield at
        rate = _rate(args, i / max(1, count - 1))
        if rate != float("inf"):
            at += rng.gammavariate(args.burstiness, 1 / (rate * args.burstiness))


def _rate(args: argparse.Namespace, progress: float) -> float:
    """Requests a second when this share of the requests has been sent."""
    low, high = args.ramp_up_start_rps, args.ramp_up_end_rps
    if args.ramp_up_strategy == "linear":
        return float(low + (high - low) * progress)
    if args.ramp_up_strategy == "exponential":
        return float(low * (high / low) ** progress)
    return float(args.request_rate)
