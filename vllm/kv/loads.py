"""Blocks on their way up, and who waits for them.

A block is loaded once, however many sequences wait for it. The transfer holds a reference to the
block until it ends or is revoked, so a sequence that stops waiting leaves nothing undone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm.core.plan import BlockIO
from vllm.kv.cost import LoadCost
from vllm.kv.index import BlockId
from vllm.kv.lane import Job, Kind
from vllm.kv.lineage import Key
from vllm.kv.mover import Mover
from vllm.kv.pool import BlockPool
from vllm.kv.shelf import BATCH, Level


@dataclass(slots=True, eq=False)
class Load:
    """A block that is on its way up."""

    block: BlockId
    level: Level
    waiters: set[int] = field(default_factory=set)  # sequences
    private: bool = False  # a copy of `spill`: nobody else's


class Loads:
    """All that are under way."""

    def __init__(self, mover: Mover, io: BlockIO, pool: BlockPool, cost: LoadCost) -> None:
        self._mover, self._io, self._pool, self._cost = mover, io, pool, cost
        self._loads: dict[Key, Load] = {}
        self._waiting: dict[int, int] = {}  # sequence -> loads that it waits for
        self._revoked: dict[Job, list[tuple[Key, Load]]] = {}  # the tier is still at work on them

    def __contains__(self, key: Key) -> bool:
        return key in self._loads

    def get(self, key: Key) -> Load | None:
        return self._loads.get(key)

    def begin(self, wanted: Iterable[tuple[Key, Load]]) -> None:
        """Start loads; each takes over one reference to its block, and pins its key."""
        batches: dict[str, list[tuple[Key, Load]]] = {}
        for key, load in wanted:
            assert key not in self._loads
            self._loads[key] = load
            load.level.shelf.pin(key)
            batches.setdefault(load.level.tier.name, []).append((key, load))
        for tier, pairs in batches.items():
            lane = self._mover.lanes[tier]
            bandwidth = self._mover.load_bandwidth(tier)
            if bandwidth:
                tokens = len(pairs) * self._cost.block_size
                lane.predicted_seconds += self._cost.load_seconds(tokens, bandwidth)
            for at in range(0, len(pairs), BATCH):
                batch = pairs[at : at + BATCH]
                views = [self._io.view(load.block) for _, load in batch]
                self._mover.submit(Job(Kind.LOAD, tier, [key for key, _ in batch], views))

    def await_all(self, seq: int, keys: Iterable[Key]) -> None:
        """Let the sequence wait for these, which are all on their way."""
        count = 0
        for key in keys:
            self._loads[key].waiters.add(seq)
            count += 1
        self._waiting[seq] = count

    def forget(self, seq: int) -> None:
        """The sequence waits no longer; transfers go on, and what they bring stays cached."""
        if self._waiting.pop(seq, None) is not None:
            for load in self._loads.values():
                load.waiters.discard(seq)

    def waits(self, seq: int) -> bool:
        return seq in self._waiting

    @property
    def awaited(self) -> bool:
        return bool(self._waiting)

    def revoke(self, job: Job) -> set[int]:
        """The job has missed its deadline and leaves its blocks alone; who waited for them."""
        pairs = self._revoked[job] = [(key, self._loads.pop(key)) for key in job.keys]
        self._pool.release([load.block for _, load in pairs])
        return {seq for _, load in pairs for seq in load.waiters}

    def end_revoked(self, job: Job) -> list[tuple[Key, Load]]:
        """What it was to load."""
        pairs = self._revoked.pop(job)
        for key, load in pairs:
            load.level.shelf.unpin(key)
        return pairs

    def end(self, key: Key) -> Load:
        """A transfer has ended. The caller gives its reference back, and says who is `served`."""
        load = self._loads.pop(key)
        load.level.shelf.unpin(key)
        return load

    def served(self, seq: int) -> bool:
        """One of the blocks that it waits for is there. Whether it was the last."""
        self._waiting[seq] -= 1
        if self._waiting[seq]:
            return False
        del self._waiting[seq]
        return True

    def blocks(self) -> list[BlockId]:
        """One for each reference that transfers hold."""
        return [load.block for load in self._loads.values()]

    def check(self) -> None:
        for seq, count in self._waiting.items():
            assert count == sum(seq in load.waiters for load in self._loads.values()) > 0
        assert all(load.waiters <= self._waiting.keys() for load in self._loads.values())
