"""Layers of made-up attention for the metrics, with heads that may have kept different KVs."""

from __future__ import annotations

import dataclasses

import torch

from vllm.compression.metrics import Observed

SCALE = 0.35


def observed(
    *,
    kvs: int = 40,
    heads: int = 2,
    group: int = 2,
    dim: int = 8,
    queries: int = 8,
    seed: int = 0,
    gaps: bool = False,
    **more,
) -> Observed:
    """The last `queries` of `kvs` tokens. With `gaps`, heads lack some KVs, stored in any order."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=made)

    positions = torch.arange(kvs).repeat(heads, 1)
    keys, values = normal(heads, kvs, dim), normal(heads, kvs, dim)
    if gaps:
        for head in range(heads):
            order = torch.randperm(kvs, generator=made)
            keys[head], values[head] = keys[head][order], values[head][order]
            positions[head] = order
            positions[head, : kvs // 4 + 2 * head] = -1
    return Observed(
        queries=normal(queries, heads * group, dim),
        query_positions=torch.arange(kvs - queries, kvs),
        read=lambda side: (keys, values)[side],
        positions=positions,
        scale=SCALE,
        **more,
    )


def part(o: Observed, first: int, last: int, **more) -> Observed:
    """The same layer as the queries `first` to `last` show it."""
    return dataclasses.replace(
        o, queries=o.queries[first:last], query_positions=o.query_positions[first:last], **more
    )
