"""The tiers below the device, as the manager sees them: find, load, write back, put aside.

    loads.py        up: asked for by admissions, shared by all that wait for the same block
    write_back.py   down: copies of what is next in line to leave
    spill.py        aside: all of a sequence that was preempted

Everything here belongs to the engine's loop; only the mover's threads touch bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm.core.plan import BlockIO
from vllm.core.request import TierStats
from vllm.kv.cost import LoadCost
from vllm.kv.events import Events
from vllm.kv.index import BlockId, Index
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.loads import Load, Loads
from vllm.kv.mover import Mover, delete
from vllm.kv.pool import BlockPool
from vllm.kv.seek import Seeker
from vllm.kv.shelf import Level
from vllm.kv.spill import Spills
from vllm.kv.write_back import WriteBack


@dataclass(frozen=True, slots=True)
class Hit:
    """One block of a cached prefix: its tier, and where it is on the device (None: nowhere)."""

    key: Key
    block: BlockId | None
    tier: str


class Hierarchy:
    """`levels` from fast to slow, the shared one last. `window`: see `WriteBack`.

    `seeker` asks the shared one; without it, only what was stored from here is found there.
    """

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
        seeker: Seeker | None = None,
    ) -> None:
        self.levels = levels
        self.mover = mover
        self.cost = cost
        self.loads = Loads(mover, io, pool, cost)
        self.write_back = WriteBack(levels, mover, io, pool, index, window)
        aside = levels[0] if levels and not levels[0].shared else None
        self.spills = Spills(aside, mover, io, pool, self.loads)
        self.seeker = seeker
        self.events: Events | None = None
        self._pool = pool
        self._index = index
        self._level = {level.tier.name: level for level in levels}

    # ---- up -----------------------------------------------------------------------------------

    def find(self, keys: Iterable[Key]) -> list[Hit]:
        """The run of keys that the device or a tier has, up to the first that none has."""
        usable = [level for level in self.levels if self.mover.usable(level.tier.name)]
        found: list[Hit] = []
        for key in keys:
            block = self._index.block(key)
            if block is not None:
                found.append(Hit(key, block, "device"))
                continue
            load = self.loads.get(key)
            if load is not None:
                found.append(Hit(key, load.block, load.level.tier.name))
                continue
            for level in usable:
                if key in level.shelf:
                    found.append(Hit(key, None, level.tier.name))
                    break
            else:
                break
        return found

    def seek(self, seq: int, keys: Sequence[Key]) -> None:
        """Ask the shared store what it has behind the run that is found without it."""
        if self.seeker is not None:
            self.seeker.ask(seq, keys[len(self.find(keys)) :])

    def seeks(self, seq: int) -> bool:
        """Whether the answer is not there yet, and worth waiting for."""
        return self.seeker is not None and self.seeker.asking(seq)

    def has(self, key: Key) -> bool:
        return bool(self.find((key,)))

    def to_compute(self, found: Sequence[Hit], *, both: bool) -> int:
        """How many of these to compute: none, all, or, if it may be `both`, the first so many."""
        tiers = {hit.tier for hit in found if hit.tier != "device"}
        tokens = len(found) * self.cost.block_size
        bandwidth = min(self.mover.load_bandwidth(tier) for tier in tiers)
        queued = max(self.mover.lanes[tier].loading_bytes for tier in tiers)
        within = self.mover.deadline
        if both and self.mover.asynchronous:
            front = self.cost.front(tokens, bandwidth, queued=queued, within=within)
            if front:
                return front // self.cost.block_size
        if self.cost.worth_loading(tokens, bandwidth, queued=queued, within=within):
            return 0
        return len(found)

    def load(self, seq: int, wanted: Sequence[tuple[Hit, BlockId]]) -> None:
        """Let `seq` wait for these hits in these blocks, to which it holds references.

        A key that is arriving already must come with its block.
        """
        fresh = []
        for hit, block in wanted:
            if hit.key not in self.loads:
                self._pool.share([block])
                fresh.append((hit.key, Load(block, self._level[hit.tier])))
        self.loads.begin(fresh)
        self.loads.await_all(seq, (hit.key for hit, _ in wanted))

    def bring(self, keys: Iterable[Key], room: int) -> list[BlockId]:
        """Load what of a run of keys is in slower tiers only, into at most `room` more blocks.

        Nobody waits for them. Returns the blocks of the run, as far as it gets, to each of which
        the caller holds a reference now.
        """
        found = self.find(keys)
        held = [hit.block for hit in found if hit.block is not None]
        room = min(room, self._pool.available) - self._pool.unheld(held)
        missing = [hit for hit in found if hit.block is None][: max(0, room)]
        self._pool.share(held)
        taken = self._pool.allocate(len(missing))
        assert taken is not None
        self._pool.share(taken)
        pairs = zip(missing, taken, strict=True)
        self.loads.begin((hit.key, Load(block, self._level[hit.tier])) for hit, block in pairs)
        return held + taken

    def forget(self, seq: int) -> None:
        """The sequence waits no longer, and does not come back for its copies."""
        self.spills.forget(seq)
        self.loads.forget(seq)
        if self.seeker is not None:
            self.seeker.forget(seq)

    # ---- what happens elsewhere ---------------------------------------------------------------

    def on_device(self, key: Key) -> None:
        """The key was computed again, or has arrived: copies below are to spare."""
        for level in self.levels:
            level.shelf.device_has(key)

    def rank_anew(self, key: Key) -> None:
        """What is known of the key's use has changed."""
        for level in self.levels:
            level.shelf.rank_anew(key)

    # ---- what came of it ----------------------------------------------------------------------

    def poll(self) -> tuple[list[int], list[int]]:
        """(sequences that have all they waited for, sequences that will not get it)."""
        self._learn()
        done, revoked = self.mover.poll()
        ready: list[int] = []
        failed: set[int] = set()
        for job in done:
            if job.kind is Kind.LOAD:
                self._loaded(job, ready, failed)
            else:
                self._stored(job)
        for job in revoked:
            if job.kind is Kind.LOAD:
                failed |= self.loads.revoke(job)
            elif self.spills.owns(job):
                self.spills.revoke(job)
            else:
                self.write_back.revoke(job)
        for seq in failed:
            self.loads.forget(seq)
        return [seq for seq in ready if seq not in failed], sorted(failed)

    def _learn(self) -> None:
        """Take in what the shared store has answered."""
        if self.seeker is None:
            return
        shelf = self.levels[-1].shelf
        for key in self.seeker.poll():
            shelf.learn(key, on_device=self._index.block(key) is not None)

    def _loaded(self, job: Job, ready: list[int], failed: set[int]) -> None:
        if job.revoked:
            for key, load in self.loads.end_revoked(job):
                if load.private:
                    self.spills.delete(key)
            return
        for key, ok in zip(job.keys, job.ok, strict=True):
            load = self.loads.end(key)
            if load.private:
                self.spills.delete(key)
            elif ok:
                if self._index.block(key) is None:
                    self._pool.publish(load.block, key)
                    self._tell_stored([key], "device")
                self.on_device(key)
            elif not job.withdrawn:
                load.level.shelf.spoil(key)
                self._tell_removed([key], job.tier)
            if not ok:
                failed |= load.waiters
            self._pool.release([load.block])
            ready += [seq for seq in load.waiters - failed if self.loads.served(seq)]

    def _stored(self, job: Job) -> None:
        level = self._level[job.tier]
        if not job.withdrawn:
            level.shelf.deleted(job.delete_first)
            self._tell_removed(job.delete_first, job.tier)
        if self.spills.owns(job):
            self.spills.stored(job)
        else:
            source = None if job.source is None else self._level[job.source]
            self._tell_stored(self.write_back.stored(job, level, source), job.tier)
        for key in job.delete_first if job.withdrawn else ():
            bad = key in job.keys  # that is why it was to be written again
            level.shelf.keep(key, on_device=self._index.block(key) is not None, bad=bad)

    def _tell_stored(self, keys: list[Key], tier: str) -> None:
        for key in keys if self.events is not None else ():
            assert self.events is not None
            self.events.stored(key, tier)

    def _tell_removed(self, keys: list[Key], tier: str) -> None:
        if self.events is not None:
            self.events.removed(keys, tier)

    # ---- the rest -----------------------------------------------------------------------------

    def tidy(self) -> bool:
        """While nothing runs: write everything back, bit by bit. False when there is no more to do.

        So a restart finds on disk what was only on the device.
        """
        self.poll()
        if not self.mover.busy:
            self.write_back.everything()
        return self.mover.busy

    def flush(self, seconds: float) -> None:
        """Write back as much as can be in so long; before an end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.tidy():
            self.mover.wait(0.01)

    @property
    def busy(self) -> bool:
        """Whether transfers run. Those that have ended, and nobody waits for, are taken in."""
        if not self.loads.awaited:
            self.poll()
        return self.mover.busy

    def reset(self) -> bool:
        """Forget everything in every tier. False, and nothing changes, while transfers run."""
        if self.mover.busy:
            return False
        for level in self.levels:
            for key in level.shelf.clear():
                delete(level.tier, key)
        self.write_back.clear()
        return True

    def close(self) -> None:
        """End all threads. What is on its way is lost."""
        if self.seeker is not None:
            self.seeker.close()
        self.mover.shutdown()

    def held_blocks(self) -> list[BlockId]:
        """One for each reference to a block that a transfer holds."""
        return self.loads.blocks() + self.spills.blocks()

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
            failures=lane.failures,
            corrupt=level.tier.damaged,
            dropped_stores=lane.dropped_stores,
        )

    def check(self) -> None:
        for level in self.levels:
            level.shelf.check()
        self.spills.check()
        self.loads.check()
        if self.seeker is not None:
            self.seeker.check()
