"""A wrapper: what a KV adds to the output counts, not its attention alone.

After Feng et al., "Identify Critical KV Cache in LLM Inference from an Output Perturbation
Perspective", 2025 (CriticalKV).
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from vllm.compression.metrics.observed import Metric, Observed

EPSILON = 1e-4
FIRST_SHARE = 0.5  # of the budget goes by the inner metric alone


class ValueNorm:
    """(score + epsilon) * |W_o v|, the root mean square over the group, behind the inner metric's
    best KVs.

    The inner metric's best half of the budget comes first in any case. The paper sums |W_o v| over
    the hidden size, which takes as long as the output projection itself; the Euclidean norm needs
    but a [D, D] matrix a head, and ranks nearly alike. Where the runner does not show the output
    projection, the norm is the value's own.
    """

    def __init__(self, inner: Metric) -> None:
        self._inner = inner
        self.window, self.accumulates = inner.window, inner.accumulates
        self.decode, self.block = inner.decode, inner.block
        self._squares: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by layer

    def observe(self, o: Observed) -> Tensor:
        return self._inner.observe(o)

    def score(self, o: Observed) -> Tensor:
        inner = self._inner.score(o)
        weighed = (inner + EPSILON) * self._norms(o)
        if o.keep is None:
            return weighed
        count = min(int(o.keep * FIRST_SHARE), inner.shape[-1])
        best = inner.masked_fill(~o.valid, float("-inf")).topk(count, -1).indices
        return weighed.scatter(-1, best, torch.finfo(torch.float32).max)

    def _norms(self, o: Observed) -> Tensor:
        """float32 [H, T]"""
        values = o.values.float()
        if o.output is None:
            return values.norm(dim=-1)
        return ((values @ self._square(o, o.output)) * values).sum(-1).clamp_min_(0).sqrt_()

    def _square(self, o: Observed, output: Tensor) -> Tensor:
        """W_o.T @ W_o of each KV head, the mean over its group: float32 [H, D, D]."""
        known = self._squares.get(o.layer)
        if known is None or known[0]() is not output:  # weights may have been loaded anew
            heads, _, dim = o.values.shape
            parts = output.float().view(len(output), heads, -1, dim).permute(1, 2, 0, 3)
            made = (parts.transpose(-1, -2) @ parts).mean(1)  # of [H, G, hidden, D]
            known = self._squares[o.layer] = weakref.ref(output), made
        return known[1]
