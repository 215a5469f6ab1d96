"""Which blocks hold a sequence's KVs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vllm.core.retention import NO_HINTS, CacheHints
from vllm.kv.index import BlockId
from vllm.kv.lineage import Lineage


@dataclass(slots=True)
class BlockTable:
    """An ordinary sequence: token t lies in `blocks[t // B]` at offset `t % B`.

    | published, shared: immutable | private: being filled | reserved, empty |
    0                           published * B           computed           len(blocks) * B
    """

    lineage: Lineage
    blocks: list[BlockId] = field(default_factory=list)
    published: int = 0  # leading blocks that were offered to the index
    promised: int = 0  # leading blocks that others may wait for until they are published
    cached: int = 0  # leading tokens that it needed not compute when it was admitted
    sources: dict[str, int] = field(
        default_factory=dict
    )  # cached tokens by the tier they came from
    hints: CacheHints = NO_HINTS
    resumed: bool = False  # it was aside, and came back


@dataclass(slots=True)
class HeadTable:
    """A compressed sequence: every layer and head has kept KVs of its own choice.

    KV i of layer l, head h lies in head block `head_blocks[l, h, i // B]` at offset `i % B`; past
    a head's last block entries are undefined. New KVs go behind those that are kept, so all lengths
    grow alike, but they need not be equal: most steps change two numbers, not all heads'. Heads are
    ordered by layer, then head.
    """

    head_blocks: np.ndarray  # int32 [L, H, max]
    first: np.ndarray  # int32 [L, H]: KVs that there were at `since`
    tokens: int  # logical length: positions that are behind these KVs
    block_size: int
    total: int  # KVs over all layers and heads
    since: int = field(init=False)  # tokens at the beginning
    spare: int = field(init=False)  # further KVs for which every head has room

    def __post_init__(self) -> None:
        self.since = self.tokens
        self.spare = _spare(self.first, self.block_size)

    @property
    def lengths(self) -> np.ndarray:
        """KVs of each head, int32 [L, H]."""
        return self.first + (self.tokens - self.since)

    @classmethod
    def of(
        cls, head_blocks: np.ndarray, lengths: np.ndarray, tokens: int, block_size: int
    ) -> tuple[HeadTable, np.ndarray]:
        """Hand out `head_blocks` (int32 [n]) to the heads in order; and those that are left."""
        lengths = lengths.astype(np.int32)
        counts = -(-lengths // block_size)
        used, width = int(counts.sum()), int(counts.max())
        table = np.zeros((*lengths.shape, width), dtype=np.int32)
        table[np.arange(width) < counts[..., None]] = head_blocks[:used]
        made = cls(table, lengths, tokens, block_size, int(lengths.sum()))
        return made, head_blocks[used:]

    def elsewhere(self, head_blocks: np.ndarray) -> tuple[HeadTable, np.ndarray]:
        """The same KVs in other head blocks (int32 [n], in the order of heads); what is left."""
        return HeadTable.of(head_blocks, self.lengths, self.tokens, self.block_size)

    @property
    def counts(self) -> np.ndarray:
        """Head blocks of each head, int32 [L, H]."""
        return -(-self.lengths // self.block_size)

    @property
    def held(self) -> np.ndarray:
        """Every head block of the table, int32 [n]."""
        width = np.arange(self.head_blocks.shape[2])
        return self.head_blocks[width < self.counts[..., None]]

    def missing(self, tokens: int) -> int:
        """Head blocks that the table lacks to hold the KVs of `tokens` tokens."""
        more = tokens - self.tokens
        if more <= self.spare:
            return 0
        grown = self.lengths + more
        return int((-(-grown // self.block_size)).sum() - self.counts.sum())

    def extend(self, tokens: int, head_blocks: np.ndarray) -> None:
        """Go on to `tokens` tokens, with as many head blocks as `missing` says."""
        more, before = tokens - self.tokens, self.counts if len(head_blocks) else None
        self.total += more * self.first.size
        self.tokens = tokens
        self.spare -= more
        if before is None:
            return
        self.spare = _spare(self.lengths, self.block_size)
        after = self.counts
        short = int(after.max()) - self.head_blocks.shape[2]
        if short > 0:  # twice as wide, so that growing costs little on average
            room = max(short, self.head_blocks.shape[2])
            self.head_blocks = np.pad(self.head_blocks, ((0, 0), (0, 0), (0, room)))
        at = np.arange(self.head_blocks.shape[2])
        new = (at >= before[..., None]) & (at < after[..., None])
        self.head_blocks[new] = head_blocks


def _spare(lengths: np.ndarray, block_size: int) -> int:
    return int((-lengths % block_size).min())
