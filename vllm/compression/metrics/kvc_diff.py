"""KV-Compress's metric against redundancy among keys: the engine's default."""

from __future__ import annotations

from torch import Tensor

from vllm.compression.metrics.kvc import KVC
from vllm.compression.metrics.observed import Observed
from vllm.compression.metrics.redundancy import less_redundant, likeness


class KVCDiff(KVC):
    """What `KVC` has observed, in R-KV's formula; redundancy is the mean cosine to the head's keys.

    That mean is the cosine's linear part, as in KeyDiff: one product with the mean direction, where
    R-KV compares every two keys.
    """

    __slots__ = ()

    def score(self, o: Observed) -> Tensor:
        alike, _ = likeness(o)
        return less_redundant(super().score(o), alike, o)
