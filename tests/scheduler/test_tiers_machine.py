"""Over tiers that fail, hang and are late, any schedule gives requests what they get alone."""

from __future__ import annotations

import random

import pytest

from tests.kv.faulty import FaultyTier, HeldClock, SteppedMover
from vllm.core.retention import NO_HINTS, CacheHints, Retention
from vllm.kv.cost import LoadCost
from vllm.kv.evict import POLICIES, make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.mover import Mover
from vllm.kv.sessions import VERBS
from vllm.kv.shelf import Level, Shelf

from .drive import Drive

BASES = (list(range(50)), [6, 7] * 25)


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
        cost = LoadCost(self.kv.spec.block_bytes, self.kv.spec.block_size)
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


HINTS = [
    NO_HINTS,
    NO_HINTS,
    CacheHints(session="x"),
    CacheHints((Retention(priority=80, ttl=9.0),), "chat", "y"),
    CacheHints((Retention(0, 4, 10), Retention(4, None, 60)), "qa"),
]


def some_prompt(rng: random.Random, most: int) -> list[int]:
    length = rng.randint(1, most)
    own = min(length, rng.choice([0, 0, 1, 2, 4]))
    return rng.choice(BASES)[: length - own] + [rng.randint(8, 10)] * own


@pytest.mark.parametrize("tens", range(8))
def test_random_lives(tens):
    for seed in range(15 * tens, 15 * tens + 15):
        live(seed)


def live(seed: int) -> None:
    rng = random.Random(seed)
    size, blocks = rng.randint(1, 4), rng.randint(6, 14)
    longest = max(2, size * blocks // rng.choice([1, 2, 2]) - rng.randint(0, 2))
    seqs, chunked = rng.choice([1, 2, 3, 5]), rng.random() < 0.7
    low = seqs if chunked else max(seqs, longest)
    drive = TieredDrive(
        rng,
        rng.randint(2, 12),
        rng.choice([0, 5, 40]),
        rng.random() < 0.8,
        blocks=blocks,
        size=size,
        seqs=seqs,
        budget=low + rng.randint(0, 8),
        chunked=chunked,
        policy=rng.choice(["fcfs", "priority"]),
        max_model_len=longest,
        window=rng.choice([1, 2, 5]),
        eviction=rng.choice(["lru", "lru", *POLICIES]),
        swap=rng.random() < 0.5,
        prefetch=rng.choice([0, 0, 1, 5]),
    )
    if drive.scheduler._config.prefetch:
        drive.kv.enable_prefetching()
    for _ in range(60):
        op = rng.random()
        if op < 0.4:
            for _ in range(rng.randint(1, 3)):
                drive.add(
                    some_prompt(rng, longest - 1),
                    n=rng.choice([1, 1, 1, 2, 3]),
                    priority=rng.randint(0, 2) if drive.scheduler._config.policy != "fcfs" else 0,
                    salt=rng.choice([None, None, None, "a"]),
                    max_tokens=rng.choice([1, 3, 10]),
                    skip_reading_prefix_cache=rng.choice([None, None, None, True]),
                    hints=rng.choice(HINTS),
                )
        elif op < 0.5 and drive.requests:
            loading = [s.request.request_id for s in drive.scheduler.loading.values()]
            drive.abort(rng.choice(loading or sorted(drive.requests)[-4:]))
            drive.scheduler.check()
        elif op < 0.6:
            plan = getattr(rng.choice(drive.tiers), rng.choice(["reads", "writes", "deletes"]))
            plan.extend(rng.choices(["ok", "os", "crash"], k=2))
        elif op < 0.67:
            drive.clock.now += rng.choice([0.5, 3.0, 70.0])
        elif op < 0.73:
            drive.kv.session(rng.choice("xy"), rng.choice(VERBS), rng.choice([None, 5.0]))
            drive.kv.check()
        elif op < 0.76:
            drive.kv.reset()
            drive.kv.check()
        for _ in range(rng.choice([0, 1, 4])):
            if drive.scheduler.has_work:
                drive.step()
    steps = 0
    while drive.scheduler.has_work:
        drive.step()
        steps += 1
        assert steps < 5000, "it does not come to an end"
    drive.settle()
    drive.verify()
    assert not drive.mover.busy
    assert not drive.kv.pool._pinned
    assert drive.kv.reset()
