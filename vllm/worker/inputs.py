"""From a plan and the rows to the tensors that a forward pass reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.core.plan import StepPlan
from vllm.kernels import DenseBatch, HeadBatch
from vllm.kv.table import HeadTable
from vllm.worker.rows import Rows


@dataclass(slots=True)
class StepInputs:
    """Tokens of one row stand together; rows of compressed sequences behind all others."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    dense: DenseBatch
    heads: HeadBatch | None
    last: np.ndarray  # int64 [S], as the plan's rows: index in T of each row's last token


def build(plan: StepPlan, rows: np.ndarray, state: Rows) -> StepInputs:
    """One vectorised gather; no loop over tokens."""
    starts, counts = plan.starts, plan.counts
    apart = [row in state.tables for row in rows.tolist()] if state.tables else []
    order = np.argsort(apart, kind="stable") if any(apart) else None
    if order is not None:
        rows, starts, counts = rows[order], starts[order], counts[order]
    ends = np.cumsum(counts)
    row = np.repeat(rows, counts)
    positions = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
    last = ends - 1
    dense, heads = len(rows) - sum(apart), None
    if order is not None:
        last = np.empty_like(last)
        last[order] = ends - 1
        tables = [state.tables[row] for row in rows[dense:].tolist()]
        heads = _heads(tables, counts[dense:])
    tokens = int(counts[:dense].sum())
    lengths = starts[:dense] + counts[:dense]
    longest = int(lengths.max(initial=0))
    size, row_of, at = state.block_size, row[:tokens], positions[:tokens]
    slots = state.table[row_of, at // size].astype(np.int64) * size + at % size
    return StepInputs(
        tokens=torch.from_numpy(state.tokens[row, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        dense=DenseBatch(
            slots=torch.from_numpy(slots),
            block_tables=torch.from_numpy(state.table[rows[:dense], : -(-longest // size)]),
            query_start=_starts(counts[:dense]),
            seq_lens=torch.from_numpy(lengths),
            max_query=int(counts[:dense].max(initial=0)),
            max_seq=longest,
        ),
        heads=heads,
        last=last,
    )


def _starts(counts: np.ndarray) -> Tensor:
    query_start = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start[1:])
    return torch.from_numpy(query_start)


def _heads(tables: list[HeadTable], counts: np.ndarray) -> HeadBatch:
    """tables: one a sequence, with room for its last `counts[s]` tokens, the step's."""
    lengths = np.stack([table.lengths for table in tables], axis=1)  # [L, S, H]
    layers, _, heads = lengths.shape
    size = tables[0].block_size
    width = -(-int(lengths.max()) // size)
    blocks = np.zeros((layers, len(tables), heads, width), dtype=np.int32)
    for s, table in enumerate(tables):
        part = table.head_blocks[:, :, :width]
        blocks[:, s, :, : part.shape[2]] = part
    ends = np.cumsum(counts)
    sequence = np.repeat(np.arange(len(tables)), counts)
    behind = np.repeat(ends, counts) - np.arange(ends[-1])  # 1 for a sequence's last token
    at = lengths[:, sequence] - behind[:, None]  # [L, T, H]: where each token's KV stands
    layer, head = np.arange(layers)[:, None, None], np.arange(heads)
    chosen = blocks[layer, sequence[:, None], head, at // size].astype(np.int64)
    return HeadBatch(
        slots=torch.from_numpy(np.ascontiguousarray(chosen * size + at % size)),
        tables=torch.from_numpy(blocks),
        query_start=_starts(counts),
        lengths=torch.from_numpy(lengths),
    )
