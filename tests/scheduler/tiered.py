"""A drive over two tiers that fail, hang and are late."""

from __future__ import annotations

import random

from tests.kv.faulty import FaultyTier, HeldClock, SteppedMover
from vllm.kv.cost import LoadCost
from vllm.kv.evict import make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.mover import Mover
from vllm.kv.shelf import Level, Shelf

from .drive import Drive


class TieredDrive(Drive):
    """Transfers go on a little at each step, as `rng` likes."""

    def __init__(self, rng: random.Random, host: int, disk: int, asynchronous: bool, **options):
        super().__init__(**options)
        self.rng, self.clock = rng, HeldClock()
        self.tiers = [FaultyTier("host", host), FaultyTier("disk", disk)]
        kind = SteppedMover if asynchronous else Mover
        self.mover = kind(self.tiers, clock=self.clock, asynchronous=asynchronous)
        levels = [
            Level(t, Shelf(len(t.free), make(self.kv.policy), self.kv.uses)) for t in self.tiers
        ]
        size = self.kv.spec.block_size
        cost = LoadCost(self.kv.spec.block_bytes, size)
        self.kv.attach(
            Hierarchy(levels, self.mover, self.fake, self.kv.pool, self.kv.index, cost, window=host)
        )
        self.pauses = 0

    def may_pause(self) -> bool:
        """A step may do nothing only while transfers hold something, and not for ever."""
        self.pauses += 1
        return self.mover.busy and self.pauses < 3000

    def step(self):
        self.fake.memory[self.kv.pool._free] = 0  # poison
        plan = super().step()
        self.transfer(self.rng.choice([0, 1, 5, 20]))
        return plan

    def transfer(self, count: int) -> None:
        if not isinstance(self.mover, SteppedMover):
            return
        for _ in range(count):
            if runnable := self.mover.runnable():
                self.mover.advance(*self.rng.choice(runnable))

    def settle(self) -> None:
        if isinstance(self.mover, SteppedMover):
            self.mover.finish()
        self.kv.poll()

    def misbehave(self) -> None:
        """A tier's next two reads, writes or deletions may fail."""
        plan = getattr(self.rng.choice(self.tiers), self.rng.choice(["reads", "writes", "deletes"]))
        plan.extend(self.rng.choices(["ok", "os", "crash"], k=2))

    def finish(self) -> None:
        """To the end, with everybody served and nothing left."""
        self.run(5000)
        self.settle()
        self.verify()
        assert not self.mover.busy
        assert not self.kv.pool._pinned
        assert self.kv.reset()
