"""Tables of compressed sequences, and what is reserved for those that are being compressed.

Compression has two phases, as transfers have: `reserve` takes head blocks for all that a sequence
may keep; when the workers have copied what it does keep out into them, `settle` makes its table and
gives the rest back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vllm.kv.index import BlockId
from vllm.kv.pool import BlockPool
from vllm.kv.slabs import Slabs
from vllm.kv.spec import KVSpec
from vllm.kv.table import HeadTable

NONE = np.empty(0, dtype=np.int32)


class Heads:
    def __init__(self, spec: KVSpec, pool: BlockPool) -> None:
        self.per_block = spec.heads
        self._spec, self._size = spec, spec.block_size
        self.slabs = Slabs(pool, self.per_block)
        self.tables: dict[int, HeadTable] = {}
        self._reserved: dict[int, np.ndarray] = {}
        self._aside: dict[int, HeadTable] = {}  # tables whose head blocks are in no slab now

    def blocks_to_reserve(self, kvs: int) -> int:
        return self.slabs.blocks_for(self._spec.head_blocks_at_most(kvs))

    def blocks_to_grow(self, seq: int, tokens: int) -> int:
        return self.slabs.blocks_for(self.tables[seq].missing(tokens))

    def reserve(self, seq: int, kvs: int) -> np.ndarray | None:
        """Head blocks for `kvs` KVs over all layers and heads; None when there are too few."""
        assert seq not in self._reserved, "a sequence is compressed once at a time"
        taken = self.slabs.allocate(self._spec.head_blocks_at_most(kvs))
        if taken is not None:
            self._reserved[seq] = taken
        return taken

    def settle(self, seq: int, lengths: np.ndarray, tokens: int) -> None:
        """The reserved head blocks hold `lengths` KVs (int [L, H]) of `tokens` tokens by now."""
        old = self.tables.pop(seq, None)
        reserved = self._reserved.pop(seq)
        self.tables[seq], rest = HeadTable.of(reserved, lengths, tokens, self._size)
        self.slabs.release(rest)
        if old is not None:
            self.slabs.release(old.held)

    def grow(self, seq: int, tokens: int) -> np.ndarray | None:
        """Head blocks added so that the table holds `tokens` tokens; None when too few are left."""
        table = self.tables[seq]
        missing = table.missing(tokens)
        added = self.slabs.allocate(missing) if missing else NONE
        if added is not None:
            table.extend(tokens, added)
        return added

    def begin(self, seq: int, blocks: list[BlockId], lengths: np.ndarray, tokens: int) -> None:
        """A new sequence's KVs of `tokens` tokens, `lengths` a head, lie packed in these blocks."""
        taken = self.slabs.adopt(blocks)
        self.tables[seq], rest = HeadTable.of(taken, lengths, tokens, self._size)
        self.slabs.release(rest)

    # ---- aside and back -----------------------------------------------------------------------

    def pack(self, seq: int, view: Callable[[int], memoryview]) -> list[memoryview]:
        """Copies of the sequence's head blocks, in the order of heads, `per_block` in a blob.

        view: the bytes of a block.
        """
        held = self.tables[seq].held.tolist()
        blobs = []
        for at in range(0, len(held), self.per_block):
            mine = held[at : at + self.per_block]
            size = len(view(mine[0] // self.per_block)) // self.per_block
            blob = memoryview(bytearray(size * self.per_block))
            for i, head_block in enumerate(mine):
                block, place = divmod(head_block, self.per_block)
                piece = view(block)[place * size : (place + 1) * size]
                blob[i * size : (i + 1) * size] = piece
            blobs.append(blob)
        return blobs

    def put_aside(self, seq: int) -> None:
        """Its blobs are on their way to a tier: its head blocks are free."""
        table = self._aside[seq] = self.tables.pop(seq)
        self.slabs.release(table.held)

    def blobs(self, seq: int) -> int | None:
        """How many blocks a sequence that is aside comes back into; None: it is not."""
        table = self._aside.get(seq)
        return None if table is None else -(-int(table.counts.sum()) // self.per_block)

    def take_back(self, seq: int, blocks: list[BlockId]) -> None:
        """Its blobs come back into these blocks, which the caller holds.

        All of them is the sequence's until `arrived`: a load writes whole blocks.
        """
        old = self._aside.pop(seq)
        taken = self.slabs.adopt(blocks)
        self.tables[seq], self._reserved[seq] = old.elsewhere(taken)

    def arrived(self, seq: int) -> None:
        """Its blobs are there."""
        self.slabs.release(self._reserved.pop(seq))

    def forget_aside(self, seq: int) -> None:
        self._aside.pop(seq, None)

    def release(self, seq: int) -> None:
        table = self.tables.pop(seq, None)
        if table is not None:
            self.slabs.release(table.held)
        reserved = self._reserved.pop(seq, None)
        if reserved is not None:
            self.slabs.release(reserved)

    def check(self) -> None:
        self.slabs.check([*(t.held for t in self.tables.values()), *self._reserved.values()])
