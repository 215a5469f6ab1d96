"""The attention of the newest query, one opinion for all heads of a layer.

Oren et al., "Transformers are Multi-State RNNs", 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.attention import probabilities
from vllm.compression.metrics.by_queries import ByQueries
from vllm.compression.metrics.observed import Observed


class TOVA(ByQueries):
    """Heads that have kept different KVs are averaged position by position."""

    window: int | None = 1

    def score(self, o: Observed) -> Tensor:
        own = probabilities(o, len(o.queries) - 1).mean((1, 2))  # [H, T]
        width = int(o.positions.max()) + 2  # the last column takes the padding
        place = torch.where(o.valid, o.positions, width - 1).flatten()
        total = own.new_zeros(width).scatter_add_(0, place, own.flatten())
        return (total / len(own)).gather(0, place).view_as(own)
