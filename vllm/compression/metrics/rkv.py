"""Attention of the last queries against redundancy among keys.

Cai et al., "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models", 2025.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.compression.metrics.attention import pool, probabilities
from vllm.compression.metrics.by_queries import ByQueries
from vllm.compression.metrics.observed import Observed
from vllm.compression.metrics.redundancy import less_redundant
from vllm.config.compression import RKV_WINDOW

SIMILAR = 0.8  # cosine from which two keys say the same
POOL = 7
KEYS_AT_ONCE = 512  # bounds the memory for cosines


class RKV(ByQueries):
    """Importance is the queries' mean attention, max-pooled; see `less_redundant`.

    A key's redundancy is the mean cosine to its head's other keys. Of those that are similar to
    it the newest is let off, so that one of many repetitions stays.
    """

    window: int | None = RKV_WINDOW

    def score(self, o: Observed) -> Tensor:
        paid = pool(probabilities(o).mean((1, 2)), o.positions, POOL, "max")
        return less_redundant(paid, self._redundancy(o), o)

    @staticmethod
    def _redundancy(o: Observed) -> Tensor:
        """float32 [H, T]"""
        units = F.normalize(o.keys.float(), dim=-1) * o.valid[..., None]
        kvs = units.shape[1]
        total = units.new_zeros(o.positions.shape)
        for first in range(0, kvs, KEYS_AT_ONCE):
            rows = torch.arange(first, min(first + KEYS_AT_ONCE, kvs), device=units.device)
            cosines = units[:, rows] @ units.transpose(-1, -2)  # [H, rows, T]
            cosines[:, torch.arange(len(rows)), rows] = 0
            # Row r speaks against every key but the newest of those similar to r.
            similar = torch.where(cosines >= SIMILAR, o.positions[:, None], -1)
            newest, which = similar.max(-1, keepdim=True)
            kept = cosines.gather(-1, which)
            cosines.scatter_(-1, which, torch.where(newest >= 0, 0.0, kept))
            total += cosines.sum(1)
        return total / o.valid.sum(-1, keepdim=True).clamp_min(1)
