"""Mean attention of the last queries, smoothed over neighbours.

Li et al., "SnapKV: LLM Knows What You Are Looking for Before Generation", 2024.
"""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.attention import pool, probabilities
from vllm.compression.metrics.by_queries import ByQueries
from vllm.compression.metrics.observed import Observed

POOL = 7


class SnapKV(ByQueries):
    """The mean over the window's queries and over the group."""

    def __init__(self, window: int) -> None:
        self.window = window

    def score(self, o: Observed) -> Tensor:
        return pool(probabilities(o).mean((1, 2)), o.positions, POOL, "mean")
