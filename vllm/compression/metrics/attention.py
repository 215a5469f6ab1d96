"""The attention that queries pay to KVs, computed apart from the attention kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.compression.metrics.observed import Observed


def probabilities(o: Observed, first: int = 0, last: int | None = None) -> Tensor:
    """float32 [H, G, W, T]: causal attention of the queries `first` to `last`; 0 where padding.

    A query that no KV may answer, since all of them are younger or gone, gives zeros.
    """
    queries, at = o.queries[first:last], o.query_positions[first:last]
    heads, _, dim = o.keys.shape
    grouped = queries.float().view(len(queries), heads, -1, dim).permute(1, 2, 0, 3) * o.scale
    rows = grouped.reshape(heads, -1, dim)  # one product a KV head
    logits = (rows @ o.keys.float().transpose(-1, -2)).view(*grouped.shape[:3], -1)
    seen = o.valid[:, None] & (o.positions[:, None] <= at[:, None])  # [H, W, T]
    # Added: filling by a mask that the members of a group share takes five times as long.
    logits += torch.where(seen, 0.0, float("-inf"))[:, None]
    return torch.nan_to_num_(logits.softmax(-1), nan=0.0)


def pool(scores: Tensor, positions: Tensor, size: int, kind: str) -> Tensor:
    """Max or mean over the `size` neighbours in position of each KV; scores [H, ..., T] >= 0.

    Neighbours are told by `positions` int64 [H, T], so that storage order and evicted KVs between
    them do not matter. A mean counts those that are there.
    """
    heads, kvs = positions.shape
    middle = scores.reshape(heads, -1, kvs)
    width = int(positions.max()) + 2 if kvs else 1  # the last column takes the padding
    place = torch.where(positions >= 0, positions, width - 1)[:, None].expand_as(middle)
    laid = middle.new_zeros(heads, middle.shape[1], width).scatter_(2, place, middle)
    laid[..., -1] = 0
    if kind == "max":
        pooled = F.max_pool1d(laid, size, 1, size // 2)
    else:
        there = laid.new_zeros(heads, 1, width).scatter_(2, place[:, :1], 1.0)
        there[..., -1] = 0
        total = F.avg_pool1d(laid, size, 1, size // 2)
        pooled = total / F.avg_pool1d(there, size, 1, size // 2).clamp_min(1e-9)
    return (pooled.gather(2, place) * (positions >= 0)[:, None]).view(scores.shape)
