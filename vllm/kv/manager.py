"""The only door to the KV cache: lookups, reservations, publication, release.

Tables and lineages live here, by sequence number; a `Sequence` has no KV field. All calls are made
from the engine's loop, between steps, and none of them waits for anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm.kv.evict import POLICIES
from vllm.kv.index import BlockId, Index
from vllm.kv.lineage import Lineage, root
from vllm.kv.pool import BlockPool
from vllm.kv.spec import KVSpec
from vllm.kv.table import BlockTable


class KVManager:
    """Block tables for all sequences over one pool of `num_blocks` blocks.

    `fingerprint` (see `kv.spec`) starts every key. With caching off nothing is looked up or
    published; everything else works the same way.
    """

    def __init__(
        self,
        spec: KVSpec,
        num_blocks: int,
        fingerprint: bytes,
        *,
        enable_caching: bool = True,
        policy: str = "lru",
    ) -> None:
        self.spec = spec
        self.caching = enable_caching
        self._fingerprint = fingerprint
        self._index = Index()
        self._pool = BlockPool(num_blocks, POLICIES[policy](), self._index)
        self._tables: dict[int, BlockTable] = {}

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1; cached blocks count as free."""
        return self._pool.held / self._pool.num_blocks

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.spec.block_size)

    def lookup(self, tokens: Sequence[int], salt: str | None, limit: int) -> int:
        """How many leading tokens, at most `limit`, are cached, in whole blocks. Pins nothing."""
        lineage = Lineage(root(self._fingerprint, salt), self.spec.block_size)
        return len(self._hits(lineage, tokens, min(limit, len(tokens)))) * self.spec.block_size

    def admit(
        self,
        seq: int,
        tokens: Sequence[int],
        *,
        salt: str | None = None,
        limit: int | None = None,
        headroom: int = 0,
    ) -> int | None:
        """Give a sequence blocks for all of its tokens, sharing those that are cached.

        Returns how many leading tokens need not be computed, at most `limit` (by default all but
        the last token, which must be computed to sample the next). None, and nothing changes, when
        that would leave fewer than `headroom` blocks to those who run already. A forked sequence
        keeps the blocks that it has.
        """
        assert tokens, "an empty sequence cannot be admitted"
        limit = len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
        table = self._tables.get(seq)
        hits: list[BlockId] = []
        if table is None:
            table = BlockTable(Lineage(root(self._fingerprint, salt), self.spec.block_size))
            hits = self._hits(table.lineage, tokens, limit) if self.caching else []
        cached = len(table.blocks) + len(hits)
        missing = self.blocks_for(len(tokens)) - cached
        if missing + headroom > self._pool.available - self._pool.unheld(hits):
            return None
        self._pool.share(hits)
        new = self._pool.allocate(missing)
        assert new is not None
        table.blocks += hits + new
        table.published += len(hits)
        self._tables[seq] = table
        return cached * self.spec.block_size

    def _hits(self, lineage: Lineage, tokens: Sequence[int], limit: int) -> list[BlockId]:
        lineage.extend(tokens, limit // self.spec.block_size)
        return self._index.leading(lineage.keys())

    def grow(self, seq: int, tokens: int) -> list[BlockId] | None:
        """Blocks added so that the table holds `tokens` tokens; None when there are too few."""
        table = self._tables[seq]
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing <= 0:
            return []
        new = self._pool.allocate(missing)
        if new is not None:
            table.blocks += new
        return new

    def fork(self, parent: int, child: int, tokens: int) -> None:
        """Let `child` hold the parent's full blocks among its first `tokens` computed tokens.

        Shared blocks are never written again, by either: the child computes the rest itself.
        """
        source = self._tables[parent]
        full = tokens // self.spec.block_size
        shared = source.blocks[:full]
        self._pool.share(shared)
        published = min(full, source.published)
        self._tables[child] = BlockTable(source.lineage.fork(published), list(shared), published)

    def publish(self, seq: int, tokens: Sequence[int], computed: int) -> None:
        """Offer the blocks that `computed` tokens have filled to everybody else.

        Called once the step that computed them has succeeded. A lossy sequence publishes nothing.
        """
        table = self._tables[seq]
        full = computed // self.spec.block_size
        if not self.caching or full <= table.published or table.lineage.lossy:
            return
        table.lineage.extend(tokens, full)
        for i in range(table.published, full):
            if not self._pool.is_published(table.blocks[i]):
                self._pool.publish(table.blocks[i], table.lineage.key(i))
        table.published = full

    def release(self, seq: int) -> None:
        """The sequence is done with its blocks; published ones stay cached, the end goes first.

        Where it computed a copy of what was published already, that was in use until now as well;
        and if it has been evicted since, the copy takes its place. So nothing that is cached is out
        of reach because what comes before it has gone.
        """
        table = self._tables.pop(seq, None)
        if table is None:
            return
        for i in reversed(range(len(table.blocks))):
            if i < table.published and not table.lineage.lossy:
                self._pool.renew(table.blocks[i], table.lineage.key(i))
            self._pool.release(table.blocks[i : i + 1])

    def holds(self, seq: int) -> bool:
        return seq in self._tables

    def blocks(self, seq: int) -> list[BlockId]:
        """The sequence's table; the caller must not change it."""
        return self._tables[seq].blocks

    def reset(self) -> bool:
        """Forget all cached content. False, and nothing changes, while sequences hold any of it."""
        return self._pool.forget_cached()

    def check(self) -> None:
        """AssertionError unless every invariant of pool, index and tables holds."""
        self._pool.check(table.blocks for table in self._tables.values())
        for table in self._tables.values():
            assert table.published <= len(table.blocks)
