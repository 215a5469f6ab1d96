"""Keys that are unlike the average key.

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
Resource-Constrained Environments", 2025.
"""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.by_keys import ByKeys
from vllm.compression.metrics.observed import Observed
from vllm.compression.metrics.redundancy import likeness


class KeyDiff(ByKeys):
    """Minus the cosine between a key and the mean direction of its head's keys."""

    def score(self, o: Observed) -> Tensor:
        alike, length = likeness(o)
        return -alike / length.clamp_min(1e-12)
