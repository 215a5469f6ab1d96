"""Keys of small norm draw much attention.

Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024.
"""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.by_keys import ByKeys
from vllm.compression.metrics.observed import Observed


class Knorm(ByKeys):
    def score(self, o: Observed) -> Tensor:
        return -o.keys.float().norm(dim=-1)
