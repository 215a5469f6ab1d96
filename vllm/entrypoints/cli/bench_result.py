"""What `vllm bench serve` found, as JSON by vLLM's keys and as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from vllm.entrypoints.cli.bench_client import Answer
from vllm.entrypoints.cli.bench_data import statistics

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
GOALS = ("ttft", "tpot", "e2el")  # what a request as a whole has one value of


def parse_goals(texts: Sequence[str]) -> dict[str, float]:
    """`ttft:200 e2el:5000`, in milliseconds. Raises ValueError."""
    goals = {}
    for text in texts:
        name, _, limit = text.partition(":")
        if name not in GOALS:
            raise ValueError(f"--goodput: {text!r} must be one of {', '.join(GOALS)}, and :MS")
        try:
            goals[name] = float(limit)
        except ValueError:
            raise ValueError(f"--goodput: {text!r} needs a number of milliseconds") from None
        if not goals[name] >= 0:
            raise ValueError(f"--goodput: {text!r} must be at least 0")
    return goals


class Timed(Protocol):
    """An answer's counts, and its times in seconds; the figures of one with an error are void."""

    @property
    def ttft(self) -> float: ...
    @property
    def tpot(self) -> float | None: ...
    @property
    def gaps(self) -> list[float]: ...
    @property
    def latency(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def error(self) -> str | None: ...


def meets(answer: Timed, goals: dict[str, float]) -> bool:
    """Whether every goal is met; an answer of one token has no time between tokens."""
    took = {"ttft": answer.ttft, "e2el": answer.latency, "tpot": answer.tpot or 0.0}
    return all(took[name] * 1000 <= limit for name, limit in goals.items())


def times(answers: Sequence[Timed]) -> dict[str, list[float]]:
    """Seconds by metric, of the answers without an error."""
    good = [a for a in answers if a.error is None]
    return {
        "ttft": [a.ttft for a in good],
        "tpot": [a.tpot for a in good if a.tpot is not None],
        "itl": [gap for a in good for gap in a.gaps],
        "e2el": [a.latency for a in good],
    }


def measures(
    answers: Sequence[Timed], duration: float, percentiles: Sequence[float]
) -> dict[str, Any]:
    """Totals, rates and latencies (milliseconds) of a run of so many seconds."""
    good = [a for a in answers if a.error is None]
    asked, made = sum(a.prompt_tokens for a in good), sum(a.output_tokens for a in good)

    def rate(count: int) -> float:
        return count / duration if duration else 0.0

    told: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": asked,
        "total_output_tokens": made,
        "total_cached_tokens": sum(a.cached_tokens for a in good),
        "request_throughput": rate(len(good)),
        "output_throughput": rate(made),
        "total_token_throughput": rate(asked + made),
    }
    for name, seconds in times(answers).items():
        for statistic, value in statistics(seconds, percentiles).items():
            told[f"{statistic}_{name}_ms"] = value * 1000
    told["errors"] = sorted({a.error for a in answers if a.error is not None})[:10]
    return told


def result(
    args: argparse.Namespace, model: str, answers: list[Answer], duration: float
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "label": args.label,
        "model_id": model,
        "dataset_name": args.dataset_name,
        "num_prompts": len(answers),
        "request_rate": "inf" if args.request_rate == float("inf") else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "request_goodput": None,
        **args.metadata,
        **measures(answers, duration, args.percentiles),
    }
    if args.goals:
        good = sum(meets(a, args.goals) for a in answers if a.error is None)
        told["request_goodput"] = good / duration
    if args.save_detailed:
        told["input_lens"] = [a.prompt_tokens for a in answers]
        told["output_lens"] = [a.output_tokens for a in answers]
        told["ttfts"] = [a.ttft for a in answers]
        told["itls"] = [a.gaps for a in answers]
        told["request_errors"] = [a.error for a in answers]
    return told


def show(told: dict[str, Any], args: argparse.Namespace) -> None:
    width = 50
    print(f"{' Serving Benchmark Result ':=^{width}}")
    cached = told["total_cached_tokens"] / max(1, told["total_input_tokens"])
    lines = [
        ("Successful requests:", f"{told['completed']}"),
        ("Failed requests:", f"{told['failed']}"),
        ("Benchmark duration (s):", f"{told['duration']:.2f}"),
        ("Total input tokens:", f"{told['total_input_tokens']}"),
        ("Total generated tokens:", f"{told['total_output_tokens']}"),
        ("Cached input tokens (%):", f"{cached * 100:.1f}"),
        ("Request throughput (req/s):", f"{told['request_throughput']:.2f}"),
    ]
    if told["request_goodput"] is not None:
        lines.append(("Request goodput (req/s):", f"{told['request_goodput']:.2f}"))
    lines += [
        ("Output token throughput (tok/s):", f"{told['output_throughput']:.2f}"),
        ("Total Token throughput (tok/s):", f"{told['total_token_throughput']:.2f}"),
    ]
    for label, value in lines:
        print(f"{label:<40}{value:<10}".rstrip())
    for name in args.shown:
        print(f"{METRICS[name]:-^{width}}")
        for statistic in ("mean", "median", *(f"p{p:g}" for p in args.percentiles)):
            label = f"{statistic.capitalize()} {name.upper()} (ms):"
            print(f"{label:<40}{told[f'{statistic}_{name}_ms']:<10.2f}".rstrip())
    print("=" * width)
    for error in told["errors"]:
        print(f"error: {error}", file=sys.stderr)


def file_name(args: argparse.Namespace, told: dict[str, Any]) -> str:
    model = told["model_id"].rstrip("/").split("/")[-1]
    return f"{args.label or args.backend}-{args.request_rate}qps-{model}-{told['date']}.json"
