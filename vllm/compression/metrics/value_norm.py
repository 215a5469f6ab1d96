"""A wrapper: what a KV adds to the output counts, not its attention alone.

Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
2025 (CriticalKV).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.observed import Metric, Observed

EPSILON = 1e-4
FIRST_SHARE = 0.5  # of the budget goes by the inner metric alone


class ValueNorm:
    """(score + epsilon) * |W_o v|_1, the mean over the group, behind the inner metric's best KVs.

    The inner metric's best half of the budget comes first in any case. Where the runner does not
    show the output projection, the norm is the value's own.
    """

    def __init__(self, inner: Metric) -> None:
        self._inner = inner
        self.window, self.accumulates = inner.window, inner.accumulates
        self.decode, self.block = inner.decode, inner.block

    def observe(self, o: Observed) -> Tensor:
        return self._inner.observe(o)

    def score(self, o: Observed) -> Tensor:
        inner = self._inner.score(o)
        weighed = (inner + EPSILON) * _norms(o)
        if o.keep is None:
            return weighed
        count = min(int(o.keep * FIRST_SHARE), inner.shape[-1])
        best = inner.masked_fill(~o.valid, float("-inf")).topk(count, -1).indices
        return weighed.scatter(-1, best, torch.finfo(torch.float32).max)


def _norms(o: Observed) -> Tensor:
    """float32 [H, T]"""
    if o.output is None:
        return o.values.float().abs().sum(-1)
    heads, _, dim = o.values.shape
    parts = o.output.float().view(len(o.output), heads, -1, dim)  # [hidden, H, G, D]
    norms = [
        (o.values[h].float() @ parts[:, h].permute(1, 2, 0)).abs().sum(-1).mean(0)
        for h in range(heads)
    ]
    return torch.stack(norms)
