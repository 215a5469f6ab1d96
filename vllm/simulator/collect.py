"""The prefix study's collection: four workloads at three block sizes through the simulated engine.

Writes `prefix_{workload}_b{16|32|64}_{requests,blocks}.jsonl`, the names of the study that the
laboratory goes back to. Unlike there, the requests run: a block is only found while it is cached.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs
from vllm.engine.tokenizer import Tokenizer
from vllm.simulator import clients
from vllm.simulator.conversations import WORKLOADS, Conversation, generate, read_sharegpt
from vllm.simulator.run import Simulation, Told

BLOCK_SIZES = (16, 32, 64)
CONVERSATIONS, MAX_TOKENS = 100, 32  # the study's


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, and how."""

    workloads: Sequence[str] = WORKLOADS
    block_sizes: Sequence[int] = BLOCK_SIZES
    sharegpt: Path | None = None  # where the chats come from; the others, and without it all, are
    conversations: int = CONVERSATIONS  # made up
    max_tokens: int = MAX_TOKENS
    rate: float = clients.RATE  # conversations a second
    think: float = clients.THINK  # mean seconds between turns
    closed: bool = False  # a turn waits for the answer before it, and repeats it

    def check(self) -> None:
        """Raises ValueError, naming the field."""
        unknown = set(self.workloads) - set(WORKLOADS)
        if unknown or not self.workloads:
            raise ValueError(f"workloads must be of {', '.join(WORKLOADS)}, not {sorted(unknown)}")
        if not self.block_sizes:
            raise ValueError("block_sizes must name one at least")
        for name in ("conversations", "max_tokens", "rate", "think"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0")

    def talks(self, workload: str, seed: int) -> tuple[list[Conversation], int]:
        """The workload's conversations, and how many entries of the file could not be read."""
        if self.sharegpt is not None and workload.startswith("chat"):
            told = read_sharegpt(self.sharegpt, workload, self.conversations)
            return told.found, len(told.refused)
        return generate(workload, self.conversations, seed), 0


def collect(
    folder: Path,
    plan: Plan,
    args: EngineArgs,
    *,
    each: Callable[[Sequence[tuple[str, int]]], Any] = iter,
) -> list[dict[str, Any]]:
    """Run all, write the files into `folder`; a row a run, of what was reused.

    args: of the simulated engine; `block_size` and `prefix_metrics` are set here. each: wraps the
    list of runs, for a progress bar. Raises ValueError, and OSError for files.
    """
    plan.check()
    folder.mkdir(parents=True, exist_ok=True)
    told = {w: plan.talks(w, args.seed) for w in plan.workloads}
    runs = [(workload, size) for workload in plan.workloads for size in plan.block_sizes]
    rows = []
    for workload, size in each(runs):
        prefix = folder / f"prefix_{workload}_b{size}"
        talks, refused = told[workload]
        done = run(talks, plan, replace(args, block_size=size, prefix_metrics=str(prefix)))
        rows.append(_row(workload, size, done, refused))
    return rows


def run(talks: list[Conversation], plan: Plan, args: EngineArgs) -> list[Told]:
    config = args.create_engine_config()
    engine = Simulation(config)
    tokenizer = Tokenizer(config.model.tokenizer_folder)
    encode = partial(tokenizer.encode, add_special_tokens=False)  # turns are joined as they are
    longest = engine.core.capacity.max_model_len - plan.max_tokens
    if longest < 1:
        raise ValueError(f"max_tokens: {plan.max_tokens} leave no room for a prompt")
    limits = {"max_tokens": plan.max_tokens, "longest": longest}
    pace = {"rate": plan.rate, "think": plan.think, "seed": config.model.seed}
    try:
        if plan.closed:
            loop = clients.ClosedLoop(talks, encode, **limits, **pace)
            return engine.run(loop.first(), follow=loop.follow)
        return engine.run(clients.asks(clients.events(talks, **pace), encode, **limits))
    finally:
        engine.core.shutdown()


def _row(workload: str, size: int, done: list[Told], refused: int) -> dict[str, Any]:
    shares = sorted(t.cached_tokens / len(t.ask.prompt) for t in done)
    tokens = sum(len(t.ask.prompt) for t in done)
    return {
        "workload": workload,
        "block_size": size,
        "requests": len(done),
        "prompt_tokens": tokens,
        "reused_tokens": sum(t.cached_tokens for t in done),
        "token_hit_rate": sum(t.cached_tokens for t in done) / tokens,
        "mean_reuse": statistics.fmean(shares),
        "median_reuse": statistics.median(shares),
        "share_above_0": sum(s > 0 for s in shares) / len(shares),
        "refused_entries": refused,
    }
