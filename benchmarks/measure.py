"""Timing side by side: alternate the contenders, keep every round, report ratios with spread."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vllm.entrypoints.cli.collect_env import processor


@dataclass
class Rounds:
    """Seconds of each contender, round by round; what one round measured stands side by side."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, who: str) -> float:
        return statistics.median(self.seconds[who])

    def ratio(self, who: str, to: str) -> tuple[float, float, float]:
        """(median, lowest, highest) over the rounds of seconds of `to` / seconds of `who`.

        Above 1: `who` is faster.
        """
        pairs = [b / a for a, b in zip(self.seconds[who], self.seconds[to], strict=True) if a > 0]
        return statistics.median(pairs), min(pairs), max(pairs)


def alternate(
    name: str, contenders: dict[str, Callable[[], float | None]], rounds: int, warmup: int = 1
) -> Rounds:
    """Run every contender in turn, `warmup` + `rounds` times; one may return its own time."""
    result = Rounds(name, {who: [] for who in contenders})
    for i in tqdm(range(warmup + rounds), desc=name, leave=False):
        for who, run in contenders.items():
            start = time.perf_counter()
            own = run()
            taken = time.perf_counter() - start if own is None else own
            if i >= warmup:
                result.seconds[who].append(taken)
    return result


def read_bandwidth(size: int = 1 << 30, rounds: int = 5) -> float:
    """Bytes a second at which all threads read memory that is in no cache; the best of `rounds`."""
    data = torch.ones(size // 8, dtype=torch.int64)
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        data.sum()
        best = max(best, size / (time.perf_counter() - start))
    return best


def spread(values: tuple[float, float, float]) -> str:
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def write_json(path: str | None, name: str, results: dict[str, Any]) -> None:
    """The results with the machine that they were measured on."""
    if path is None:
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    document = {"benchmark": name, "machine": machine, "results": results}
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {target}")
