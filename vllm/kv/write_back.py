"""What goes down: blocks are copied before they are about to leave, so that evicting is free.

Nobody asks for stores. What is next in line on the device is copied to the first tier, what is next
in line there to the second. Where the device is full, blocks that sequences still hold are copied
too when the tier is idle: they may be evicted by the admissions of the very step that ends their
sequence. An engine that has nothing else to do copies everything to every tier that has room, so
that a restart finds it.

A shared tier stands beside that chain: it is fed from the device, with what is next in line there
and, without waiting for that, with what has served a hit: others may want it too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice, takewhile

from vllm.core.plan import BlockIO
from vllm.kv.index import BlockId, Index
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.kv.pool import BlockPool
from vllm.kv.shelf import BATCH, Level


class WriteBack:
    """`window`: how many blocks that are next in line have their copies kept ready."""

    def __init__(
        self,
        levels: list[Level],
        mover: Mover,
        io: BlockIO,
        pool: BlockPool,
        index: Index,
        window: int,
    ) -> None:
        self._levels, self._mover, self._io = levels, mover, io
        self._chain = [level for level in levels if not level.shared]
        self._shared = [level for level in levels if level.shared]
        self._pool, self._index, self._window = pool, index, window
        self._reused: OrderedDict[Key, None] = OrderedDict()
        self._reused_limit = 4 * (pool.num_blocks + sum(v.shelf.capacity for v in levels))
        self._proven: OrderedDict[Key, None] = OrderedDict()  # reused, and not offered to others
        self._refused: set[Key] = set()  # next in line, and the queue took no more
        self._fresh: OrderedDict[Key, None] = OrderedDict()  # computed, and not copied yet

    def used(self, keys: Iterable[Key]) -> None:
        """These keys served a hit: they are worth keeping when the device lets them go."""
        for key in keys:
            for kept in (self._reused, self._proven) if self._shared else (self._reused,):
                kept[key] = None
                kept.move_to_end(key)
                while len(kept) > self._reused_limit:
                    kept.popitem(last=False)

    def computed(self, key: Key) -> None:
        """The device has this key's content, and no tier may have it yet."""
        if self._levels:
            self._fresh[key] = None

    def ahead(self) -> None:
        """Copy down what is next in line to be evicted, as far as the queues take it."""
        if not self._levels:
            return
        count = max(0, self._window - self._pool.free - self._pool.pinned)
        soon = self._pool.next_victims(count)
        first, *others = self._fed()
        pairs = self._chosen(first, soon)
        if self._idle(first):
            pairs += self._held(count - len(pairs), {key for key, _ in pairs})
        self._refused = {key for key, _ in self._store(first, pairs)}
        for level in others:
            self._store(level, self._chosen(level, soon))
        for level in self._shared:
            self._share(level)
        for upper, lower in zip(self._chain, self._chain[1:], strict=False):
            if len(upper.shelf) >= upper.shelf.capacity - self._window:
                self._cascade(upper, lower, upper.shelf.next_sole(self._window))

    def _fed(self) -> list[Level]:
        """The tiers that are fed from the device."""
        return self._chain[:1] + self._shared

    def _idle(self, level: Level) -> bool:
        return self._mover.lanes[level.tier.name].waiting == 0

    def _chosen(self, level: Level, soon: list[tuple[Key, BlockId]]) -> list[tuple[Key, BlockId]]:
        """Second uses always go; first uses when the tier has nothing else to do."""
        idle = self._idle(level)
        return [
            (key, block)
            for key, block in soon
            if (idle or key in self._reused) and not level.shelf.knows(key)
        ]

    def _held(self, count: int, but: set[Key]) -> list[tuple[Key, BlockId]]:
        """Blocks of sequences that run: the step that ends these may evict them at once."""
        first, found = self._fed()[0].shelf, self._index.block
        done = takewhile(lambda key: first.knows(key) or found(key) is None, self._fresh)
        for key in list(done):
            del self._fresh[key]
        some = islice(self._fresh, 4 * self._window)  # a bound on the time, not on the copies
        held = (
            (key, at)
            for key in some
            if (at := found(key)) is not None
            and not (key in but or first.knows(key) or self._pool.is_pinned(key))
        )
        return list(islice(held, count))

    def _share(self, level: Level) -> None:
        """Offer what has served a hit to others, a batch at a time."""
        pairs: list[tuple[Key, BlockId]] = []
        while self._proven and len(pairs) < BATCH and self._mover.accepts_store(level.tier.name):
            key, _ = self._proven.popitem(last=False)
            block = self._index.block(key)
            if block is not None and not level.shelf.knows(key):
                pairs.append((key, block))
        self._store(level, pairs)

    def everything(self) -> None:
        """Copy all that is cached to each tier, into free room only.

        (Else copies would push each other out for ever.)
        """
        for level in self._levels:
            # At most half of the device: what is being copied cannot be evicted.
            room = min(
                level.shelf.room,
                self._pool.num_blocks - self._pool.num_blocks // 2 - self._pool.pinned,
            )
            cached = self._pool.next_victims(self._pool.num_blocks)
            pairs = [(key, block) for key, block in cached if not level.shelf.knows(key)]
            self._store(level, pairs[: max(0, room)])
        for upper, lower in zip(self._chain, self._chain[1:], strict=False):
            keys = [key for key in upper.shelf.readable() if not lower.shelf.knows(key)]
            self._cascade(upper, lower, keys[: lower.shelf.room])

    def _store(self, level: Level, pairs: list[tuple[Key, BlockId]]) -> list[tuple[Key, BlockId]]:
        """Copy these from the device; returns those that the tier's queue did not take."""
        for at in range(0, len(pairs), BATCH):
            if not self._mover.accepts_store(level.tier.name):
                return pairs[at:]
            job = Job(Kind.STORE, level.tier.name, [], [])
            for key, block in pairs[at : at + BATCH]:
                victims = level.shelf.reserve(key)
                if victims is not None:
                    self._pool.pin(key)
                    job.add(key, self._io.view(block), victims)
            if job.keys:
                self._mover.submit(job)
        return []

    def _cascade(self, upper: Level, lower: Level, keys: list[Key]) -> None:
        """Copy these from one tier to the next, where they are not yet."""
        keys = [key for key in keys if not lower.shelf.knows(key)]
        for at in range(0, len(keys), BATCH):
            if not self._mover.accepts_store(lower.tier.name):
                return
            job = Job(Kind.STORE, lower.tier.name, [], [], source=upper.tier.name)
            for key in keys[at : at + BATCH]:
                view = upper.tier.view(key)  # type: ignore[attr-defined]
                victims = lower.shelf.reserve(key) if view is not None else None
                if view is not None and victims is not None:
                    upper.shelf.pin(key)
                    job.add(key, view, victims)
            if job.keys:
                self._mover.submit(job)

    def stored(self, job: Job, level: Level, source: Level | None) -> list[Key]:
        """A store has ended; the keys that the tier has now."""
        made = []
        for key, ok in zip(job.keys, job.ok, strict=True):
            if source is not None:
                source.shelf.unpin(key)
            elif not job.revoked:
                self._pool.unpin(key)
            if ok:
                level.shelf.stored(key, on_device=self._index.block(key) is not None)
                made.append(key)
            else:
                level.shelf.failed(key)
        return made

    def revoke(self, job: Job) -> None:
        """The tier hangs: what is on the device may be evicted, copied or not."""
        for key in job.keys if job.source is None else ():
            self._pool.unpin(key)

    def evicted(self, keys: list[Key]) -> None:
        """The device has let these go."""
        for level in self._levels:
            for key in keys:
                level.shelf.device_lost(key)
        for key in keys:
            self._fresh.pop(key, None)
        if self._refused:
            lane = self._mover.lanes[self._fed()[0].tier.name]
            lane.dropped_stores += len(self._refused.intersection(keys))
            self._refused.difference_update(keys)

    def clear(self) -> None:
        self._reused.clear()
        self._fresh.clear()
        self._proven.clear()
        self._refused.clear()
