"""The table of kernel operations, and what a step's attention reads.

`kernels.load(device, prefer)` fills one frozen `Ops` record, once; models get it as an argument.
`reference` defines every op; a faster set replaces the ops that it has. There is no global
context and nothing else to look up.

Shapes are named with single letters throughout:
T tokens of the step, S sequences of the step, Q query heads, H KV heads, D head size,
N blocks of the arena, B block size (tokens), E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass(slots=True)
class DenseBatch:
    """What attention needs to know about the dense sequences of one step.

    Sequence `s` owns the tokens `query_start[s]:query_start[s+1]`, its last KVs: token `i` of `n`
    stands at position `seq_lens[s] - n + i` and sees the KVs `0 .. that position`.
    """

    slots: Tensor  # int64 [T]; block * B + offset: where each token's KV is written
    block_tables: Tensor  # int32 [S, max_blocks]; entries past a sequence's length are undefined
    query_start: Tensor  # int32 [S + 1]
    seq_lens: Tensor  # int32 [S]; KVs in the cache once this step's tokens are written
    max_query: int  # longest run of new tokens
    max_seq: int  # longest sequence


@dataclass(slots=True)
class HeadBatch:
    """The compressed sequences of one step: as `DenseBatch`, but every layer and head has a table
    and a length of its own, over head blocks (see `head_blocks`), and reads nothing of the others.

    KVs are ordered by position, those of the step's tokens last; where between 0 and the first of
    these the others once stood makes no difference to attention.
    """

    slots: Tensor  # int64 [L, T, H]; head block * B + offset: where each token's KV is written
    tables: Tensor  # int32 [L, S, H, max_blocks]; entries past a head's length are undefined
    query_start: Tensor  # int32 [S + 1]
    lengths: Tensor  # int32 [L, S, H]; KVs once this step's tokens are written


RmsNorm = Callable[[Tensor, Tensor, float], Tensor]
AddRmsNorm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Rotary = Callable[[Tensor, Tensor, Tensor, Tensor], None]
SiluAndMul = Callable[[Tensor], Tensor]
WriteKV = Callable[[Tensor, Tensor, Tensor, Tensor], None]
Attention = Callable[[Tensor, Tensor, DenseBatch, float, int], Tensor]
WriteKVHeads = Callable[[Tensor, Tensor, Tensor, Tensor], None]
AttentionHeads = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
CopyKV = Callable[[Tensor, Tensor, Tensor], None]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Ops:
    """One callable an operation. Every field but `origin` is an op that `reference` defines."""

    rms_norm: RmsNorm
    add_rms_norm: AddRmsNorm
    rotary: Rotary
    silu_and_mul: SiluAndMul
    write_kv: WriteKV
    attention: Attention
    write_kv_heads: WriteKVHeads
    attention_heads: AttentionHeads
    copy_kv: CopyKV
    linear: Linear
    origin: Mapping[str, str] = field(default_factory=dict)  # op -> the set that supplies it

    @staticmethod
    def names() -> tuple[str, ...]:
        return tuple(f.name for f in fields(Ops) if f.name != "origin")


def head_blocks(kv: Tensor) -> Tensor:
    """The arena `[N, L, H, 2, B, D]` as head blocks `[N*L*H, 2, B, D]`: the same bytes.

    Head block of block `b` at layer `l`, head `h` is `(b * L + l) * H + h`.
    """
    n, layers, heads = kv.shape[:3]
    return kv.view(n * layers * heads, *kv.shape[3:])


def dense_batch(
    block_tables: list[list[int]], starts: list[int], counts: list[int], block_size: int
) -> DenseBatch:
    """A `DenseBatch` from plain lists, for tests, examples and small tools.

    Sequence `s` computes `counts[s]` tokens from position `starts[s]` on.
    """
    width = max(len(t) for t in block_tables)
    tables = torch.zeros(len(block_tables), width, dtype=torch.int32)
    slots = []
    for s, (table, start, count) in enumerate(zip(block_tables, starts, counts, strict=True)):
        tables[s, : len(table)] = torch.tensor(table, dtype=torch.int32)
        slots += [
            table[p // block_size] * block_size + p % block_size
            for p in range(start, start + count)
        ]
    ends = [a + n for a, n in zip(starts, counts, strict=True)]
    return DenseBatch(
        slots=torch.tensor(slots, dtype=torch.int64),
        block_tables=tables,
        query_start=torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        max_query=max(counts),
        max_seq=max(ends),
    )
