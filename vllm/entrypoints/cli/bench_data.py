"""What the benchmarks share: random prompts, statistics, result files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vllm.engine.tokenizer import Tokenizer


def usable_ids(tokenizer: Tokenizer | None) -> list[int]:
    """Token ids that mean nothing special. Raises ValueError without a tokenizer."""
    if tokenizer is None:
        raise ValueError("benchmarks need a tokenizer")
    return [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]


def random_prompts(
    ids: Sequence[int],
    *,
    count: int,
    input_len: int,
    prefix_len: int = 0,
    range_ratio: float = 0.0,
    seed: int,
) -> list[list[int]]:
    """Prompts of random tokens: a prefix that all share, then input_len*(1 ± range_ratio) more."""
    rng = random.Random(seed)
    prefix = rng.choices(ids, k=prefix_len)
    low, high = (max(1, round(input_len * (1 + r))) for r in (-range_ratio, range_ratio))
    return [prefix + rng.choices(ids, k=rng.randint(low, high)) for _ in range(count)]


def statistics(values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """mean, median, std and pXX; zeros when there is nothing."""
    data = np.asarray(values if len(values) else [0.0], dtype=float)
    told = {"mean": data.mean(), "median": np.median(data), "std": data.std()}
    told |= {f"p{percent:g}": np.percentile(data, percent) for percent in percentiles}
    return {name: float(value) for name, value in told.items()}


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
