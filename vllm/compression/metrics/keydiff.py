"""Keys that are unlike the average key.

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
Resource-Constrained Environments", 2025.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vllm.compression.metrics.by_keys import ByKeys
from vllm.compression.metrics.observed import Observed


class KeyDiff(ByKeys):
    """Minus the cosine between a key and the mean direction of its head's keys."""

    def score(self, o: Observed) -> Tensor:
        directions = F.normalize(o.keys.float(), dim=-1) * o.valid[..., None]
        mean = directions.sum(1, keepdim=True) / o.valid.sum(1)[:, None, None].clamp_min(1)
        return -(directions * F.normalize(mean, dim=-1)).sum(-1)
