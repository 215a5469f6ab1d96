"""Attention summed over all queries so far.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs", 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.attention import probabilities
from vllm.compression.metrics.observed import Observed

QUERIES_AT_ONCE = 256  # bounds the memory for probabilities


class H2O:
    window: int | None = None
    accumulates = True
    decode = True
    block: int | None = None

    def observe(self, o: Observed) -> Tensor:
        added = o.keys.new_zeros(o.positions.shape, dtype=torch.float32)
        for first in range(0, len(o.queries), QUERIES_AT_ONCE):
            added += probabilities(o, first, first + QUERIES_AT_ONCE).sum((1, 2))
        return added

    def score(self, o: Observed) -> Tensor:
        assert o.running is not None
        return o.running
