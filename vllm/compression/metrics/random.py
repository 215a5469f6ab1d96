"""A number drawn for each KV: the floor that a metric must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.compression.metrics.by_keys import ByKeys
from vllm.compression.metrics.observed import Observed

# Odd multipliers of 64 bits as signed integers; products wrap around, which mixes the bits.
_LAYER, _HEAD, _POSITION = -7046029254386353131, -4417276706812531889, -8796714831421723037


class Random(ByKeys):
    """A function of (seed, layer, head, position), so that batches and chunks change nothing."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, o: Observed) -> Tensor:
        head = torch.arange(len(o.positions), device=o.positions.device)[:, None]
        x = o.positions * _POSITION + (head + 1) * _HEAD + (self._seed + (o.layer << 32)) * 2 + 1
        for _ in range(3):
            x = (x ^ (x >> 29)) * _LAYER
        return ((x >> 40) & 0xFFFFFF).float() / 2**24
