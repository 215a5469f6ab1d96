"""Recall of the demo model under every metric, budget rule and rate, by the engine itself.

    python -m experiments.compression_quality.run --trials 40
    python -m experiments.compression_quality.report

A trial is one prompt with facts, asked of the engine once for each setting. The whole answer is
given as reference tokens, and counts as right when each of its tokens is the likeliest: then greedy
decoding gives it. Two places of the question:

    window   behind the facts in the prompt: the metric's last queries are the question's
    after    not in the prompt: the facts are compressed before anything is known of the question

Rows go to results/KIND-TOKENS-RULE-PLACE.jsonl, one a trial; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

from experiments import asking, resume
from experiments.demo_model.sample_prompts import KINDS, recall_task
from vllm import LLM, SamplingParams
from vllm.core.compression import METRICS
from vllm.outputs import RequestOutput

RATES = (2, 4, 8, 16, 32, 64)
BLOCK = 8
RULES: dict[str, dict[str, Any]] = {
    "global": {},
    "per-layer": {"compression_budget": "per-layer"},
    "uniform": {"compression_budget": "uniform"},
    "pyramid": {"compression_budget": "pyramid"},
    "head-floor": {"compression_head_floor": 0.2},
    "value-norm": {"compression_value_norm": True},
}
WRAPPED = ("kvc-diff", "kvc", "snapkv", "rkv")
WRAPPERS = {"head-floor": WRAPPED, "value-norm": WRAPPED}
PLACES = ("window", "after")
FOLDER = Path(__file__).parent / "results"


def wish(metric: str, rate: float, tokens: int) -> dict[str, Any]:
    """A head keeps 1/rate of its KVs on average, and at least its last 32, or half if fewer."""
    kept = max(BLOCK, round(tokens / rate / BLOCK) * BLOCK)
    return {
        "compression_metric": metric,
        "max_cache_tokens": kept,
        "protected_window_size": min(32, kept // 2),
        "compress_once": True,
    }


class Asker:
    def __init__(self, rule: str, tokens: int) -> None:
        self._llm = LLM(
            enable_kvc=True,
            block_size=BLOCK,
            max_model_len=tokens + 64,
            max_num_seqs=16,
            **RULES[rule],
        )
        self._tokenizer = self._llm.llm_engine.tokenizer
        self._tokens = tokens

    def trial(self, kind: str, place: str, number: int, metrics: list[str]) -> dict[str, Any]:
        """Which settings answer right, and how many times fewer KVs they kept."""
        rng = random.Random(f"quality-{kind}-{self._tokens}-{number}")
        facts = self._tokens // 32
        messages, answer = recall_task(rng, self._tokens, facts, kind, asked_apart=True)
        prompt, question, expected = self._split(messages, answer, place)
        settings = [(m, r) for m in metrics for r in RATES]
        wishes = [{}, *(wish(m, r, len(prompt)) for m, r in settings)]
        params = [
            SamplingParams(reference_token_ids=question + expected, logprobs=0, **w) for w in wishes
        ]
        # The first alone, so that the others find its blocks in the cache.
        outputs = self._llm.generate([prompt], params[:1], use_tqdm=False)
        outputs += self._llm.generate([prompt] * len(settings), params[1:], use_tqdm=False)
        right = [_right(o, len(expected)) for o in outputs]
        ratios = [_ratio(o) for o in outputs]
        by_metric = {m: [i + 1 for i, s in enumerate(settings) if s[0] == m] for m in metrics}
        return {
            "trial": number,
            "full": right[0],
            "right": {m: [right[i] for i in at] for m, at in by_metric.items()},
            "ratio": {m: [ratios[i] for i in at] for m, at in by_metric.items()},
        }

    def trials(
        self, kind: str, place: str, metrics: list[str], first: int, end: int
    ) -> list[dict[str, Any]]:
        return [self.trial(kind, place, number, metrics) for number in range(first, end)]

    def _split(
        self, messages: list[dict[str, str]], answer: str, place: str
    ) -> tuple[list[int], list[int], list[int]]:
        """(prompt, question that comes after it, answer with its end), in tokens."""
        whole = self._rendered(messages, ask=True)
        known = whole if place == "window" else self._rendered(messages[:-1], ask=False)
        assert whole[: len(known)] == known
        end = self._tokenizer.eos_token_id
        expected = [*self._tokenizer.encode(answer, add_special_tokens=False), end]
        return known, whole[len(known) :], expected

    def _rendered(self, messages: list[dict[str, str]], *, ask: bool) -> list[int]:
        text = self._tokenizer.render_chat(messages, add_generation_prompt=ask)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        self._llm.shutdown()


def _right(output: RequestOutput, tokens: int) -> bool:
    made = output.outputs[0]
    assert made.logprobs is not None
    last = zip(made.logprobs[-tokens:], made.token_ids[-tokens:], strict=True)
    return all(at[token].rank == 1 for at, token in last)


def _ratio(output: RequestOutput) -> float:
    kvs = output.outputs[0].kv_compression
    return 1.0 if kvs is None else round(kvs.ratio, 3)


def run(args: argparse.Namespace) -> None:
    for rule in args.rules:
        metrics = [m for m in args.metrics if m in WRAPPERS.get(rule, args.metrics)]
        settings = {"metrics": metrics, "rates": RATES, "block": BLOCK}
        asker = Asker(rule, args.tokens)
        try:
            for place in args.places:
                path = args.results / f"{args.kind}-{args.tokens}-{rule}-{place}.jsonl"
                answer = partial(asker.trials, args.kind, place, metrics)
                resume.fill(path, settings, args.trials, answer)
        finally:
            asker.close()


def make_parser() -> argparse.ArgumentParser:
    parser = asking.make_parser("compression_quality.run", __doc__)
    add = parser.add_argument
    add("--kind", choices=KINDS, default="code", help="Of facts and questions.")
    add("--tokens", type=int, default=1024, help="Of a prompt; one fact per 32.")
    add("--trials", type=int, default=40)
    add("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE")
    add("--places", nargs="+", choices=PLACES, default=list(PLACES), metavar="PLACE")
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="METRIC")
    add("--results", type=Path, default=FOLDER)
    return parser


if __name__ == "__main__":
    try:
        run(make_parser().parse_args())
    except ValueError as error:
        sys.exit(f"error: {error}")
