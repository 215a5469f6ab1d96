"""The newest KVs, and the first few as sinks of attention.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023. Positions stay true
here; they are not counted anew inside the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.by_keys import ByKeys
from vllm.compression.metrics.observed import Observed

SINKS = 4
ABOVE_ANY_POSITION = 2**24  # up to here float32 holds every integer


class Recency(ByKeys):
    def score(self, o: Observed) -> Tensor:
        return torch.where(o.positions < SINKS, ABOVE_ANY_POSITION, o.positions).float()
