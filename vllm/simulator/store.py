"""A modelled store that several simulated engines share: a tier with one set of keys."""

from __future__ import annotations

from vllm.kv.evict import make
from vllm.kv.evict.policy import Use
from vllm.kv.lineage import Key
from vllm.kv.manager import KVManager
from vllm.kv.retention import Uses
from vllm.kv.shelf import Level, Shelf
from vllm.simulator.tiers import ModelledTier


class SharedStore:
    """`blocks` blocks; each engine reaches it at `bandwidth` bytes a second of its own.

    What goes in and when is the engines' rule for their slower tiers: blocks that were used twice
    before they are evicted, the others when there is nothing else to do.
    """

    def __init__(self, blocks: int, bandwidth: float) -> None:
        """Raises ValueError for a store without room, or that nothing gets out of."""
        if blocks < 1 or not 0 < bandwidth < float("inf"):
            raise ValueError("a store needs at least one block and a bandwidth above 0")
        self.blocks, self.bandwidth = blocks, bandwidth
        self._level: Level | None = None
        self._uses = _AllUses()

    def level(self, kv: KVManager, page: memoryview) -> Level:
        """The store as another engine's last tier. page: what every block's bytes look like."""
        self._uses.members.append(kv.uses)
        if self._level is None:
            tier = ModelledTier("shared", page, failure=0.0, seed=0)
            self._level = Level(tier, _SharedShelf(self.blocks, make(kv.policy), self._uses))
        return self._level

    def check(self) -> None:
        if self._level is not None:
            self._level.shelf.check()


class _AllUses(Uses):
    """The latest use of each block by any of the engines."""

    def __init__(self) -> None:
        super().__init__(limit=0, block_size=1)
        self.members: list[Uses] = []

    def last(self, key: Key) -> Use:
        self.now = max(uses.now for uses in self.members)
        return max((uses.last(key) for uses in self.members), key=lambda use: use.time)


class _SharedShelf(Shelf):
    """A copy on one engine's device spares the others nothing, so none is to spare."""

    def stored(self, key: Key, *, on_device: bool) -> None:
        super().stored(key, on_device=False)

    def device_has(self, key: Key) -> None:
        self.rank_anew(key)

    def device_lost(self, key: Key) -> None:
        self.rank_anew(key)
