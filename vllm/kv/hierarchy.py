"""The tiers below the device, as the manager sees them: find, load, write back.

Loads are asked for by admissions and shared by all that wait for the same block. Stores are not
asked for by anybody: before a block is about to leave the device, it is copied down (`write_back`),
so that evicting it costs nothing, and what is never about to leave is never copied. Between the
slower tiers the same rule holds.

Everything here belongs to the engine's loop; only the mover's threads touch bytes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm.core.plan import BlockIO
from vllm.core.request import TierStats
from vllm.kv.cost import LoadCost
from vllm.kv.events import Events
from vllm.kv.index import BlockId, Index
from vllm.kv.lineage import Key
from vllm.kv.mover import Job, Kind, Mover, delete
from vllm.kv.pool import BlockPool
from vllm.kv.shelf import Shelf
from vllm.kv.spill import Spilled, Spills
from vllm.kv.tiers import Tier

BATCH = 16  # blocks a job: enough to be worth a thread's while, few enough to spread over threads


@dataclass(slots=True, eq=False)
class Load:
    """A block that is on its way up. The transfer holds one reference to `block`."""

    block: BlockId
    tier: str
    waiters: set[int] = field(default_factory=set)  # sequences
    late: bool = False
    private: bool = False  # a copy of `spill`: nobody else's, and deleted when it has come


@dataclass(slots=True)
class Level:
    """One tier and its bookkeeping."""

    tier: Tier
    shelf: Shelf


class Hierarchy:
    """`levels` from fast to slow."""

    def __init__(
        self,
        levels: list[Level],
        mover: Mover,
        io: BlockIO,
        pool: BlockPool,
        index: Index,
        cost: LoadCost,
        *,
        window: int,
    ) -> None:
        self.levels = levels
        self.mover = mover
        self.cost = cost
        self._io = io
        self._pool = pool
        self._index = index
        self._window = window  # blocks next in line whose copies are kept ready
        self._loads: dict[Key, Load] = {}
        self._reused: OrderedDict[Key, None] = OrderedDict()
        self._reused_limit = 4 * (pool.num_blocks + sum(v.shelf.capacity for v in levels))
        self._waiting: dict[int, int] = {}  # sequence -> loads that it waits for
        self.spills = Spills()
        self.events: Events | None = None

    # ---- up -----------------------------------------------------------------------------------

    def where(self, key: Key) -> str | None:
        """The fastest tier from which the key can be had now, or is on its way already."""
        load = self._loads.get(key)
        if load is not None:
            return None if load.late else load.tier
        for level in self.levels:
            if key in level.shelf and self.mover.usable(level.tier.name):
                return level.tier.name
        return None

    def worth_loading(self, tokens: int, tiers: Iterable[str]) -> bool:
        """Whether to take so many tokens from these tiers rather than compute them."""
        lanes = [self.mover.lanes[tier] for tier in tiers]
        return self.cost.worth_loading(tokens, min(lane.load_bandwidth for lane in lanes))

    def arriving(self, key: Key) -> BlockId | None:
        """The block that the key is being loaded into, if it is."""
        load = self._loads.get(key)
        return None if load is None or load.late else load.block

    def arriving_blocks(self) -> list[BlockId]:
        """Blocks that transfers hold a reference to."""
        return [load.block for load in self._loads.values()] + self.spills.blocks()

    def load(self, seq: int, wanted: list[tuple[Key, BlockId]]) -> None:
        """Let `seq` wait for these keys in these blocks, to which it holds references.

        A key that is arriving already must come with its block (`arriving`).
        """
        batches: dict[str, list[tuple[Key, BlockId]]] = {}
        for key, block in wanted:
            load = self._loads.get(key)
            if load is None:
                tier = self.where(key)
                assert tier is not None, "the key was there when it was looked up"
                load = self._loads[key] = Load(block, tier)
                self._pool.share([block])
                batches.setdefault(tier, []).append((key, block))
            load.waiters.add(seq)
        self._waiting[seq] = len(wanted)
        self._submit_loads(batches)

    def _submit_loads(self, batches: dict[str, list[tuple[Key, BlockId]]]) -> None:
        for tier, pairs in batches.items():
            level, lane = self._level(tier), self.mover.lanes[tier]
            if lane.load_bandwidth:
                tokens = len(pairs) * self.cost.block_size
                lane.predicted_seconds += self.cost.load_seconds(tokens, lane.load_bandwidth)
            for key, _ in pairs:
                level.shelf.pin(key)
            for at in range(0, len(pairs), BATCH):
                self._submit(Kind.LOAD, tier, pairs[at : at + BATCH])

    def bring(self, keys: Iterable[Key]) -> list[BlockId]:
        """Load a run of keys that nobody waits for, up to the first that cannot be had.

        Returns their blocks, to which only the transfers hold references.
        """
        batches: dict[str, list[tuple[Key, BlockId]]] = {}
        for key in keys:
            tier = None if key in self._loads else self.where(key)
            taken = None if tier is None else self._pool.allocate(1)
            if tier is None or taken is None:
                break
            self._loads[key] = Load(taken[0], tier)
            batches.setdefault(tier, []).append((key, taken[0]))
        self._submit_loads(batches)
        return [block for pairs in batches.values() for _, block in pairs]

    # ---- aside and back -----------------------------------------------------------------------

    def spill(self, seq: int, blocks: list[BlockId], tokens: int) -> bool:
        """Copy a sequence's blocks aside. False, and nothing changes, when there is no room."""
        if not self.levels or not self.mover.accepts_store(self.levels[0].tier.name):
            return False
        level = self.levels[0]
        if level.shelf.room < len(blocks):
            return False
        names = self.spills.begin(seq, blocks, tokens)
        self._pool.share(blocks)
        pairs = list(zip(names, blocks, strict=True))
        for at in range(0, len(pairs), BATCH):
            victims: list[Key] = []
            for name, _ in pairs[at : at + BATCH]:
                room = level.shelf.reserve(name)
                assert room is not None, "there was room for all"
                victims += room
            self._submit(Kind.STORE, level.tier.name, pairs[at : at + BATCH], victims)
        return True

    def bring_back(self, seq: int, blocks: list[BlockId]) -> None:
        """Let `seq` wait for its copies in these blocks, to which it holds references."""
        spilled = self.spills.pop(seq)
        assert spilled is not None and not spilled.storing and spilled.whole
        pairs = list(zip(spilled.names, blocks, strict=True))
        tier = self.levels[0].tier.name
        self._pool.share(blocks)
        for name, block in pairs:
            self._loads[name] = Load(block, tier, {seq}, private=True)
        self._waiting[seq] = len(pairs)
        self._submit_loads({tier: pairs})

    def rank_anew(self, key: Key) -> None:
        for level in self.levels:
            level.shelf.rank_anew(key)

    def forget_spilled(self, seq: int) -> None:
        """Nobody comes back for the sequence's copies."""
        spilled = self.spills.pop(seq)
        if spilled is None:
            return
        spilled.wanted = False
        if not spilled.storing:
            self._delete_copies(spilled)

    def _copied(self, level: Level, name: Key, ok: bool) -> bool:
        """A store has ended: whether it was a copy of a sequence that is aside."""
        found = self.spills.stored(name, ok)
        if found is None:
            return False
        spilled, block = found
        self._pool.release([block])
        if ok:
            level.shelf.stored(name, on_device=False)
            level.shelf.pin(name)
        else:
            level.shelf.failed(name)
        if not spilled.storing and not spilled.wanted:
            self._delete_copies(spilled)
        return True

    def _delete_copies(self, spilled: Spilled) -> None:
        level = self.levels[0]
        for name in spilled.names:
            if name in level.shelf:
                self._delete_copy(level, name)

    def _delete_copy(self, level: Level, name: Key) -> None:
        level.shelf.unpin(name)
        level.shelf.discard(name)
        delete(level.tier, name)

    def forget(self, seq: int) -> None:
        """The sequence waits no longer; transfers go on, and what they bring stays cached."""
        self.forget_spilled(seq)
        if self._waiting.pop(seq, None) is not None:
            for load in self._loads.values():
                load.waiters.discard(seq)

    def waits(self, seq: int) -> bool:
        return seq in self._waiting

    # ---- down ---------------------------------------------------------------------------------

    def used(self, keys: Iterable[Key]) -> None:
        """These keys served a hit: they are worth keeping when the device lets them go."""
        for key in keys:
            self._reused[key] = None
            self._reused.move_to_end(key)
        while len(self._reused) > self._reused_limit:
            self._reused.popitem(last=False)

    def write_back(self, *, everything: bool = False) -> None:
        """Copy down what is next in line to be evicted, as far as the queues take it.

        With `everything`, all that is cached: for an engine that has nothing else to do.
        """
        if not self.levels:
            return
        first = self.levels[0]
        count = self._window - self._pool.free - self._pool.pinned
        if everything:
            count = self._pool.num_blocks
        soon = self._pool.next_victims(max(0, count))
        # Second uses always go; first uses when the tier has nothing else to do.
        idle = self.mover.lanes[first.tier.name].waiting == 0
        pairs = [
            (key, block)
            for key, block in soon
            if (idle or key in self._reused) and not first.shelf.knows(key)
        ]
        if everything:  # into free room only: else copies would push each other out for ever
            pairs = pairs[: first.shelf.capacity - len(first.shelf)]
        for at in range(0, len(pairs), BATCH):
            if not self._store_from_device(first, pairs[at : at + BATCH]):
                break
        for upper, lower in zip(self.levels, self.levels[1:], strict=False):
            self._cascade(upper, lower)

    def _store_from_device(self, level: Level, pairs: list[tuple[Key, BlockId]]) -> bool:
        tier = level.tier.name
        if not self.mover.accepts_store(tier):
            self.mover.lanes[tier].dropped_stores += len(pairs)
            return False
        chosen, victims = [], []
        for key, block in pairs:
            room = level.shelf.reserve(key)
            if room is None:
                continue
            victims += room
            chosen.append((key, block))
        if chosen:
            for key, _ in chosen:
                self._pool.pin(key)
            self._submit(Kind.STORE, tier, chosen, victims)
        return True

    def _cascade(self, upper: Level, lower: Level) -> None:
        """What the upper tier would lose next goes to the lower one first."""
        if len(upper.shelf) < upper.shelf.capacity - self._window:
            return
        keys = [k for k in upper.shelf.next_sole(self._window) if not lower.shelf.knows(k)]
        for at in range(0, len(keys), BATCH):
            if not self.mover.accepts_store(lower.tier.name):
                return
            chosen, buffers, victims = [], [], []
            for key in keys[at : at + BATCH]:
                view = upper.tier.view(key)  # type: ignore[attr-defined]
                room = lower.shelf.reserve(key) if view is not None else None
                if room is None:
                    continue
                upper.shelf.pin(key)
                chosen.append(key)
                buffers.append(view)
                victims += room
            if chosen:
                job = Job(Kind.STORE, lower.tier.name, chosen, buffers, delete_first=victims)
                job.source = upper.tier.name
                self.mover.submit(job)

    def on_device(self, key: Key) -> None:
        """The key was computed again, or has arrived: copies below are to spare."""
        for level in self.levels:
            level.shelf.device_has(key)

    def evicted(self, keys: list[Key]) -> None:
        """The device has let these go."""
        for level in self.levels:
            for key in keys:
                level.shelf.device_lost(key)

    # ---- what came of it ----------------------------------------------------------------------

    def poll(self) -> tuple[list[int], list[int]]:
        """(sequences that have all they waited for, sequences that will not get it)."""
        done, late = self.mover.poll()
        ready: list[int] = []
        failed: set[int] = set()
        for job in done:
            if job.kind is Kind.LOAD:
                self._loaded(job, ready, failed)
            else:
                self._stored(job)
        for job in late:
            for key in job.keys:
                load = self._loads[key]
                load.late = True
                failed |= load.waiters
        for seq in failed:
            self.forget(seq)
        return [seq for seq in ready if seq not in failed], sorted(failed)

    def _loaded(self, job: Job, ready: list[int], failed: set[int]) -> None:
        level = self._level(job.tier)
        for key, ok in zip(job.keys, job.ok, strict=True):
            load = self._loads.pop(key)
            level.shelf.unpin(key)
            if load.private:
                self._delete_copy(level, key)
                failed |= set() if ok else load.waiters
            elif ok:
                if self._index.block(key) is None:
                    self._pool.publish(load.block, key)
                    self._tell_stored(key, "device")
                self.on_device(key)
            else:
                level.shelf.spoil(key)
                self._tell_removed([key], job.tier)
                failed |= load.waiters
            self._pool.release([load.block])
            for seq in load.waiters - failed:
                self._waiting[seq] -= 1
                if self._waiting[seq] == 0:
                    del self._waiting[seq]
                    ready.append(seq)

    def _stored(self, job: Job) -> None:
        level = self._level(job.tier)
        level.shelf.deleted(job.delete_first)
        self._tell_removed(job.delete_first, job.tier)
        for key, ok in zip(job.keys, job.ok, strict=True):
            if self._copied(level, key, ok):
                continue
            if job.source is None:
                self._pool.unpin(key)
            else:
                self._level(job.source).shelf.unpin(key)
            if ok:
                level.shelf.stored(key, on_device=self._index.block(key) is not None)
                self._tell_stored(key, job.tier)
            else:
                level.shelf.failed(key)

    def stats(self) -> list[TierStats]:
        return [self._stats(level) for level in self.levels]

    def _stats(self, level: Level) -> TierStats:
        lane = self.mover.lanes[level.tier.name]
        return TierStats(
            tier=level.tier.name,
            capacity=level.shelf.capacity,
            blocks=len(level.shelf),
            queued=lane.waiting,
            bytes_loaded=lane.bytes_loaded,
            bytes_stored=lane.bytes_stored,
            load_seconds=lane.load_seconds,
            predicted_seconds=lane.predicted_seconds,
            deadline_misses=lane.deadline_misses,
            failures=lane.total_failures,
            corrupt=level.tier.damaged,
            dropped_stores=lane.dropped_stores,
        )

    # ---- the rest -----------------------------------------------------------------------------

    def _level(self, tier: str) -> Level:
        return next(level for level in self.levels if level.tier.name == tier)

    def _tell_stored(self, key: Key, tier: str) -> None:
        if self.events is not None:
            self.events.stored(key, tier)

    def _tell_removed(self, keys: list[Key], tier: str) -> None:
        if self.events is not None:
            self.events.removed(keys, tier)

    def _submit(
        self,
        kind: Kind,
        tier: str,
        pairs: list[tuple[Key, BlockId]],
        delete_first: list[Key] | None = None,
    ) -> None:
        keys = [key for key, _ in pairs]
        views = [self._io.view(block) for _, block in pairs]
        self.mover.submit(Job(kind, tier, keys, views, delete_first=delete_first or []))

    def tidy(self) -> bool:
        """While nothing runs: write everything back, bit by bit. False when there is no more to do.

        So a restart finds on disk what was only on the device.
        """
        self.poll()
        if not self.mover.busy:
            self.write_back(everything=True)
        return self.mover.busy

    def flush(self, seconds: float) -> None:
        """Write back as much as can be in so long; before an end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.tidy():
            self.mover.wait(0.01)

    @property
    def busy(self) -> bool:
        """Whether transfers run. Those that have ended, and nobody waits for, are taken in."""
        if not self._waiting:
            self.poll()
        return self.mover.busy

    def reset(self) -> bool:
        """Forget everything in every tier. False, and nothing changes, while transfers run."""
        if self.mover.busy:
            return False
        for level in self.levels:
            for key in level.shelf.clear():
                delete(level.tier, key)
        self._reused.clear()
        return True

    def check(self) -> None:
        for level in self.levels:
            level.shelf.check()
        self.spills.check()
        for seq, count in self._waiting.items():
            assert count == sum(seq in load.waiters for load in self._loads.values())
