"""Which blocks hold a sequence's KVs."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.core.retention import NO_HINTS, CacheHints
from vllm.kv.index import BlockId
from vllm.kv.lineage import Key, Lineage


@dataclass(slots=True)
class BlockTable:
    """An ordinary sequence: token t lies in `blocks[t // B]` at offset `t % B`.

    | published, shared: immutable | private: being filled | reserved, empty |
    0                           published * B           computed           len(blocks) * B
    """

    lineage: Lineage
    blocks: list[BlockId] = field(default_factory=list)
    published: int = 0  # leading blocks that were offered to the index
    promised: list[Key] = field(default_factory=list)  # of prompt blocks that it is to compute
    cached: int = 0  # leading tokens that it needed not compute when it was admitted
    sources: dict[str, int] = field(
        default_factory=dict
    )  # cached tokens by the tier they came from
    hints: CacheHints = NO_HINTS
