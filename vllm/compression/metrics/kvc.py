"""KV-Compress: squared attention of the last prompt queries, max-pooled, summed over the group.

Rehg, "KV-Compress: Paged KV-Cache Compression with Variable Compression Rates per Attention Head",
2024. A window of the last prompt queries makes it KVC-w, all of them KVC-full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.compression.metrics.attention import pool, probabilities
from vllm.compression.metrics.observed import Observed
from vllm.config.compression import CompressionSettings

POOL = 7


@dataclass(slots=True)
class KVC:
    """power: 2 for L2, 1 for L1. average: over the queries that could see a KV, not their sum.

    Prompt queries are pooled for each query head and each block of `block` queries; decode queries
    are not pooled. The sum over the group is a sum: heads of one KV head all lose when it goes.
    """

    window: int | None
    power: int = 2
    average: bool = False
    max_pool: bool = True
    decode: bool = True
    block: int | None = 4096
    accumulates: bool = True

    @classmethod
    def of(cls, settings: CompressionSettings, window: int | None) -> KVC:
        norm, _, kind = settings.aggregation.partition("-")
        return cls(
            window=window,
            power=int(norm[1]),
            average=kind == "avg",
            max_pool=settings.max_pool,
            decode=not settings.only_prefill,
            block=settings.block,
        )

    def observe(self, o: Observed) -> Tensor:
        added = o.keys.new_zeros(o.positions.shape, dtype=torch.float32)
        for first, last in self._blocks(o):
            told = probabilities(o, first, last)
            if self.power == 2:
                told = told.square_()
            at = o.query_positions[first:last]
            if o.buffer:  # younger KVs than a query have no attention of it
                told *= (at[:, None] - o.positions[:, None] >= o.buffer)[:, None]
            paid = told.sum(2)  # [H, G, T]
            if self.average and self.window is not None and not o.decoding:
                paid *= self._unseen(o)[:, None]
            if self.max_pool and not o.decoding:
                paid = pool(paid, o.positions, POOL, "max")
            # What comes behind the block is not there yet when the prompt comes in chunks.
            added += paid.sum(1) * (o.positions <= at[-1])
        return added

    def score(self, o: Observed) -> Tensor:
        assert o.running is not None
        if not self.average:
            return o.running
        return o.running / (o.now - o.positions + 1 - o.buffer).clamp_min(1)

    def _blocks(self, o: Observed) -> list[tuple[int, int]]:
        """Ranges of queries that are summed before they are pooled."""
        count = len(o.queries)
        if self.block is None or count == 0:
            return [(0, count)] if count else []
        # A window counts its blocks from its first query, a whole prompt from position 0.
        start = int(o.query_positions[0]) if self.window is None else 0
        cuts = range(self.block - start % self.block, count, self.block)
        return list(zip([0, *cuts], [*cuts, count], strict=True))

    @staticmethod
    def _unseen(o: Observed) -> Tensor:
        """float32 [H, T]: queries that could see a KV, for each of them in the window.

        So the window stands for all of the prompt's queries, and decode queries add one each.
        """
        first = (o.positions + o.buffer).clamp_min(o.since)  # that has something to say of each KV
        could = (o.query_positions[-1] - first + 1).clamp_min(0)
        did = could.clamp_max(len(o.queries))
        return could / did.clamp_min(1)
