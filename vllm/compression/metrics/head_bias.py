"""A wrapper: a bias for each layer, KV head and range of positions, measured beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.observed import Metric, Observed
from vllm.config.head_bias import HeadBias as Bias


class HeadBias:
    """The inner score plus weight * bias; positions before the first bin get the first bin's."""

    def __init__(self, inner: Metric, bias: Bias, weight: float) -> None:
        self._inner, self._weight = inner, weight
        self._bias, self._starts = torch.from_numpy(bias.bias), torch.from_numpy(bias.starts)
        self.window, self.accumulates = inner.window, inner.accumulates
        self.decode, self.block = inner.decode, inner.block

    def observe(self, o: Observed) -> Tensor:
        return self._inner.observe(o)

    def score(self, o: Observed) -> Tensor:
        starts, bias = self._starts.to(o.keys.device), self._bias[o.layer].to(o.keys.device)
        bins = torch.searchsorted(starts, o.positions, right=True) - 1
        return self._inner.score(o) + self._weight * bias.gather(-1, bins.clamp_min(0))
