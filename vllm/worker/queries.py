"""The queries of sequences that may be compressed, kept until a metric has seen them.

Attention is causal and the KVs of a sequence do not change between two compressions, so a metric
may be shown queries later than they were computed: all of a prompt's window together, decode steps'
in batches. What it makes of them is the same, and chunks make no difference.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from vllm.compression.metrics import Metric

Part = tuple[int, Tensor]  # the first one's position; queries [L, n, Q, D]


@dataclass(slots=True)
class QueryLog:
    """Of one sequence whose prompt has `prompt` tokens: what its metric has yet to see.

    `last` are the newest `metric.window` queries, for metrics that score by them; `pending` those
    that it is to observe, of one kind: the prompt's, or decode steps'.
    """

    metric: Metric
    prompt: int
    last: deque[Part] = field(default_factory=deque)
    pending: list[Part] = field(default_factory=list)

    def wants(self, start: int, end: int) -> tuple[int, int]:
        """Which of the positions [start, end), all prompt or all decoded, to capture: a range."""
        metric = self.metric
        if start >= self.prompt:
            return (start, end) if metric.decode and metric.window != 0 else (end, end)
        if metric.window is None:
            return start, end
        return max(start, min(end, self.prompt - metric.window)), end

    def add(self, start: int, queries: Tensor) -> None:
        """queries [L, n, Q, D], of positions from `start` on, which follow those known."""
        if self.metric.accumulates:
            self.pending.append((start, queries))
            return
        self.last.append((start, queries))
        window = self.metric.window or 0
        while self.last and start + queries.shape[1] - _end(self.last[0]) >= window:
            self.last.popleft()

    @property
    def waiting(self) -> int:
        return sum(queries.shape[1] for _, queries in self.pending)

    def take(self, count: int | None = None) -> Part | None:
        """The first `count` pending queries, or all."""
        if not self.pending:
            return None
        start, queries = join(self.pending)
        count = queries.shape[1] if count is None else count
        self.pending = []
        if count < queries.shape[1]:
            self.pending.append((start + count, queries[:, count:]))
        return (start, queries[:, :count]) if count else None

    def window(self) -> Part | None:
        """The newest `metric.window` queries, for `score`."""
        if not self.last:
            return None
        start, queries = join(list(self.last))
        over = max(0, queries.shape[1] - (self.metric.window or 0))
        return start + over, queries[:, over:]


def _end(part: Part) -> int:
    return part[0] + part[1].shape[1]


def join(parts: list[Part]) -> Part:
    """Parts that follow each other, as one."""
    for before, after in pairwise(parts):
        assert _end(before) == after[0], "queries follow each other without gaps"
    return parts[0][0], torch.cat([queries for _, queries in parts], 1)
