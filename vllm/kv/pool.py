"""The device's blocks: who holds them, which are cached, which are free.

A block is in exactly one of three states, and moves only along these arrows:

    free --allocate--> held (refs > 0) --release--> free              when it has no key
                         ^        |
                       share    release                               when it has one
                         |        v
                       cached (refs == 0, in the policy) --evict--> held by whom it was evicted for

A block without a key goes back to the free list and is handed out before any cached block is
evicted, so that content which nobody can find never pushes out content that somebody may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from vllm.kv.evict import LeafFirst, Use
from vllm.kv.index import BlockId, Index
from vllm.kv.lineage import Key
from vllm.kv.retention import Uses
from vllm.observe.residency import Residency


class BlockPool:
    """All device blocks, by number. Allocation is all or nothing; a refusal changes nothing."""

    def __init__(self, num_blocks: int, policy: LeafFirst, index: Index, uses: Uses) -> None:
        self.num_blocks = num_blocks
        self._uses = uses
        self._refs = [0] * num_blocks
        self._held = 0  # blocks with any
        self._keys: list[Key | None] = [None] * num_blocks
        self._free = [BlockId(i) for i in reversed(range(num_blocks))]  # a stack, 0 on top
        self._policy = policy
        self._index = index
        # Being copied down, to so many tiers: they keep their place, and may not go yet.
        self._pinned: dict[Key, int] = {}
        self.on_evict: Callable[[list[Key]], None] | None = None
        self.residency: Residency | None = None

    @property
    def available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        pinned = sum(key in self._policy for key in self._pinned) if self._pinned else 0
        return self.num_blocks - self._held - pinned

    @property
    def free(self) -> int:
        """Blocks that can be had without evicting."""
        return len(self._free)

    @property
    def held(self) -> int:
        return self._held

    def allocate(self, count: int) -> list[BlockId] | None:
        """`count` blocks with one reference each, evicting cached ones as needed; None: too few."""
        assert count >= 0
        if count > self.available:
            return None
        self._evict(count - len(self._free))
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        taken.reverse()
        for block in taken:
            self._refs[block] = 1
        self._held += count
        return taken

    def _evict(self, count: int) -> None:
        if count <= 0:
            return
        chosen = list(islice(self._victims(), count))
        if self.on_evict is not None:
            self.on_evict(chosen)
        if self.residency is not None:
            for key in chosen:
                self.residency.evicted(key, self._uses.now)
        self._policy.evict_all(chosen)
        for key in chosen:
            block = self._index.drop(key)
            self._keys[block] = None
            self._free.append(block)

    def _victims(self) -> Iterator[Key]:
        """The keys that may be evicted, next one first."""
        keys = self._policy.victims(self._uses.now)
        return (key for key in keys if key not in self._pinned) if self._pinned else keys

    def next_victims(self, count: int) -> list[tuple[Key, BlockId]]:
        """The cached blocks that would be evicted next, at most `count`, and where they are."""
        return [(key, self._index.place(key)) for key in islice(self._victims(), count)]

    def pin(self, key: Key) -> None:
        """Keep a cached key from being evicted, at its place in the order, until `unpin`."""
        self._pinned[key] = self._pinned.get(key, 0) + 1

    def unpin(self, key: Key) -> None:
        self._pinned[key] -= 1
        if self._pinned[key] == 0:
            del self._pinned[key]

    def is_pinned(self, key: Key) -> bool:
        return key in self._pinned

    @property
    def pinned(self) -> int:
        return len(self._pinned)

    def unheld(self, blocks: Iterable[BlockId]) -> int:
        """How many of them are available, and will not be when they are shared."""
        return sum(
            self._refs[block] == 0 and self._keys[block] not in self._pinned for block in blocks
        )

    def share(self, blocks: Iterable[BlockId]) -> None:
        """One more reference to each; cached blocks leave the policy."""
        for block in blocks:
            if self._refs[block] == 0:
                key = self._keys[block]
                assert key is not None, "a free block cannot be shared"
                self._policy.remove(key)
                self._held += 1
            self._refs[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """One reference less to each. Callers pass a sequence's blocks last one first."""
        for block in blocks:
            self._refs[block] -= 1
            assert self._refs[block] >= 0, "a block was released more often than it was held"
            if self._refs[block] == 0:
                self._held -= 1
                key = self._keys[block]
                if key is None:
                    self._free.append(block)
                else:
                    self._policy.insert(key, self._uses.last(key))

    def release_used(self, blocks: Sequence[BlockId], uses: Sequence[tuple[Key, Use]]) -> None:
        """One reference less to each block of a chain, first one first, used until now.

        A block that is a copy of what was published already frees itself; its content was in use
        until now as well, and where that has been evicted since, the copy takes its place.
        """
        idle: list[tuple[Key, Use]] = []
        for i in range(len(blocks) - 1, -1, -1):
            block = blocks[i]
            if self._keys[block] is None:
                self._policy.insert_all(idle)
                idle = []
                self._renew(block, *uses[i])
                self.release((block,))
                continue
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._held -= 1
                idle.append(uses[i])
        self._policy.insert_all(idle)

    def publish_all(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> list[int]:
        """Name held blocks, as `publish`; those that have a name keep it. Which were cached by it:
        places in `blocks`."""
        names = self._keys
        return [
            i
            for i, block in enumerate(blocks)
            if names[block] is None and self.publish(block, keys[i])
        ]

    def publish(self, block: BlockId, key: Key) -> bool:
        """Name a held block's content, once. False when that content is cached elsewhere already.

        The block must be full and must never be written again: rule R4 of the caching contract.
        """
        assert self._refs[block] > 0, "only a held block can be published"
        assert self._keys[block] is None, "a block's key is set once"
        if not self._index.add(key, block):
            return False
        self._keys[block] = key
        if self.residency is not None:
            self.residency.published(key, self._uses.now)
        return True

    def _renew(self, block: BlockId, key: Key, use: Use) -> None:
        if not self.publish(block, key) and key in self._policy:
            self._policy.touch(key, use)

    def rank_anew(self, key: Key) -> None:
        """What is known of the key's use has changed; one that nobody holds takes its new place."""
        if key in self._policy:
            self._policy.remove(key)
            self._policy.insert(key, self._uses.last(key))

    def is_published(self, block: BlockId) -> bool:
        return self._keys[block] is not None

    def forget_cached(self) -> bool:
        """Drop all cached content. False, and nothing changes, while published blocks are held."""
        if self._pinned or len(self._index) != len(self._policy):
            return False
        self._evict(len(self._policy))
        return True

    def check(self, holders: Iterable[Iterable[BlockId]] = ()) -> None:
        """AssertionError unless every invariant holds; `holders` are all tables there are."""
        expected = [0] * self.num_blocks
        for table in holders:
            for held in table:
                expected[held] += 1
        assert expected == self._refs, "reference counts are the number of holders"
        assert self._held == self.num_blocks - len(self._free) - len(self._policy)
        free = set(self._free)
        assert len(free) == len(self._free), "a free block is free once"
        for number, key in enumerate(self._keys):
            if number in free:
                assert self._refs[number] == 0 and key is None
            elif self._refs[number] == 0:
                assert key is not None and key in self._policy
            elif key is not None:
                assert key not in self._policy, "a held block is not evictable"
        for name, place in self._index.items():
            assert self._keys[place] == name, "the index names the block that holds the key"
        named = sum(key is not None for key in self._keys)
        assert named == len(self._index), "every published block is in the index"
        self._policy.check()
