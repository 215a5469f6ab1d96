"""What `vllm bench serve` found, as JSON by vLLM's keys and as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

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


def meets(answer: Answer, goals: dict[str, float]) -> bool:
    """Whether every goal is met; an answer of one token has no time between tokens."""
    took = {"ttft": answer.ttft, "e2el": answer.latency}
    if answer.output_tokens > 1:
        took["tpot"] = answer.tpot
    return all(took.get(name, 0.0) * 1000 <= limit for name, limit in goals.items())


def result(
    args: argparse.Namespace, model: str, answers: list[Answer], duration: float
) -> dict[str, Any]:
    good = [a for a in answers if a.error is None]
    asked, made = sum(a.prompt_tokens for a in good), sum(a.output_tokens for a in good)
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
        "duration": duration,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": asked,
        "total_output_tokens": made,
        "total_cached_tokens": sum(a.cached_tokens for a in good),
        "request_throughput": len(good) / duration,
        "request_goodput": None,
        "output_throughput": made / duration,
        "total_token_throughput": (asked + made) / duration,
        **args.metadata,
    }
    if args.goals:
        told["request_goodput"] = sum(meets(a, args.goals) for a in good) / duration
    values = {
        "ttft": [a.ttft for a in good],
        "tpot": [a.tpot for a in good if a.output_tokens > 1],
        "itl": [gap for a in good for gap in a.gaps],
        "e2el": [a.latency for a in good],
    }
    for name, seconds in values.items():
        for statistic, value in statistics(seconds, args.percentiles).items():
            told[f"{statistic}_{name}_ms"] = value * 1000
    told["errors"] = sorted({a.error for a in answers if a.error is not None})[:10]
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
