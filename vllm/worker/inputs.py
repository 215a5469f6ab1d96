"""From a plan and the rows to the tensors that a forward pass reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.core.plan import StepPlan
from vllm.kernels import DenseBatch
from vllm.worker.rows import Rows


@dataclass(slots=True)
class StepInputs:
    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    dense: DenseBatch
    last: np.ndarray  # int64 [S]: index in T of each row's last token


def build(plan: StepPlan, rows: np.ndarray, state: Rows) -> StepInputs:
    """One vectorised gather; no loop over tokens."""
    starts, counts = plan.starts, plan.counts
    ends = np.cumsum(counts)
    row = np.repeat(rows, counts)
    positions = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
    size = state.block_size
    slots = state.table[row, positions // size].astype(np.int64) * size + positions % size
    lengths = starts + counts
    longest = int(lengths.max())
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    query_start[1:] = ends
    return StepInputs(
        tokens=torch.from_numpy(state.tokens[row, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        dense=DenseBatch(
            slots=torch.from_numpy(slots),
            block_tables=torch.from_numpy(state.table[rows, : -(-longest // size)]),
            query_start=torch.from_numpy(query_start),
            seq_lens=torch.from_numpy(lengths),
            max_query=int(counts.max()),
            max_seq=longest,
        ),
        last=ends - 1,
    )
