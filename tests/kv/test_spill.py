"""Preemption by swapping: what comes back is what went out, whatever the tier does meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from vllm.kv.cost import LoadCost
from vllm.kv.evict import make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.manager import KVManager
from vllm.kv.mover import Mover
from vllm.kv.shelf import Level, Shelf
from vllm.kv.spec import KVSpec

from .faulty import FaultyTier, HeldClock, SteppedMover

SIZE = 4


class Bench:
    """A manager over an arena of bytes, and one tier of `host` blocks."""

    def __init__(self, blocks: int = 8, host: int = 8, asynchronous: bool = True) -> None:
        spec = KVSpec(1, 1, 1, SIZE, "float32")
        self.kv = KVManager(spec, blocks, bytes(32))
        self.memory = np.zeros((blocks, spec.block_bytes), dtype=np.uint8)
        self.tier, self.clock = FaultyTier("host", host), HeldClock()
        kind = SteppedMover if asynchronous else Mover
        self.mover = kind([self.tier], clock=self.clock, asynchronous=asynchronous)
        levels = [Level(self.tier, Shelf(host, make("lru"), self.kv.uses))]
        cost = LoadCost(spec.block_bytes, SIZE)
        pool, index = self.kv.pool, self.kv.index
        self.kv.attach(Hierarchy(levels, self.mover, self, pool, index, cost, window=2))

    def view(self, block: int) -> memoryview:
        return memoryview(self.memory[block])

    def run(self, seq: int, tokens: int) -> bytes:
        """Admit a sequence and fill its blocks with noise; what is in them."""
        assert self.kv.admit(seq, [seq] * tokens) == 0
        rng = np.random.default_rng(seq)
        for block in self.kv.blocks(seq):
            self.memory[block] = rng.integers(0, 256, self.memory.shape[1])
        return self.content(seq)

    def content(self, seq: int) -> bytes:
        return b"".join(bytes(self.memory[b]) for b in self.kv.blocks(seq))

    def settle(self) -> tuple[list[int], list[int]]:
        if isinstance(self.mover, SteppedMover):
            self.mover.finish()
        told = self.kv.poll()
        self.kv.check()
        return told


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_tail_comes_back_too(asynchronous: bool) -> None:
    bench = Bench(asynchronous=asynchronous)
    kv = bench.kv
    before = bench.run(1, 10)  # two blocks and a half
    assert kv.spill(1, 10)
    assert not kv.holds(1) and kv.spilling == True  # noqa: E712  until it is polled
    bench.settle()
    assert not kv.spilling and kv.usage == 0
    bench.run(2, 20)  # everything that was there is written over
    bench.memory[:] = 0
    assert kv.admit(1, [1] * 11) == 10
    assert kv.waits(1)
    assert bench.settle() == ([1], [])
    assert bench.content(1)[: len(before)] == before
    assert kv.cached(1) == 10 and kv.sources(1) == {}
    kv.release(1), kv.release(2)
    bench.settle()
    assert not bench.tier.slot, "no copy is left behind"
    assert kv.usage == 0


def test_blocks_are_given_back_only_when_their_copies_are_made() -> None:
    bench = Bench(blocks=4)
    bench.run(1, 16)
    assert bench.kv.spill(1, 16)
    assert bench.kv.pool.available == 0
    assert bench.kv.admit(2, [2] * 4) is None
    assert bench.kv.admit(1, [1] * 16) is None, "not while it is on its way out"
    bench.settle()
    assert bench.kv.pool.available == 4


def test_without_room_nothing_changes() -> None:
    bench = Bench(host=2)
    before = bench.run(1, 12)
    assert not bench.kv.spill(1, 12)
    assert bench.kv.holds(1) and bench.content(1) == before
    bench.kv.check()
    assert bench.kv.spill(1, 8), "two blocks fit"


def test_copies_are_not_pushed_out() -> None:
    """The tier fills with others' blocks: the copies stay, and are no hits for anybody."""
    bench = Bench(blocks=4, host=3)
    before = bench.run(1, 8)
    assert bench.kv.spill(1, 8)
    bench.settle()
    for seq in range(2, 7):
        bench.run(seq, 16)
        bench.kv.publish(seq, [seq] * 16, 16)
        bench.kv.release(seq)
        bench.kv.write_back()
        bench.settle()
    assert bench.kv.admit(1, [1] * 8) == 8
    assert bench.settle() == ([1], [])
    assert bench.content(1) == before


@pytest.mark.parametrize("fault", ["os", "crash"])
def test_a_copy_that_cannot_be_made_is_a_recomputation(fault: str) -> None:
    bench = Bench()
    bench.run(1, 12)
    bench.tier.writes.extend(["ok", fault])
    assert bench.kv.spill(1, 12)
    bench.settle()
    assert bench.kv.admit(1, [1] * 12) == 0
    assert not bench.kv.waits(1)
    bench.settle()
    assert not bench.tier.slot


@pytest.mark.parametrize("fault", ["os", "miss"])
def test_a_copy_that_cannot_be_read_is_a_recomputation(fault: str) -> None:
    bench = Bench()
    bench.run(1, 12)
    assert bench.kv.spill(1, 12)
    bench.settle()
    bench.tier.reads.extend(["ok", fault])
    assert bench.kv.admit(1, [1] * 12) == 12
    assert bench.settle() == ([], [1])
    assert not bench.kv.holds(1) and not bench.tier.slot
    assert bench.kv.admit(1, [1] * 12) == 0


@pytest.mark.parametrize("when", ["going", "aside", "coming"])
def test_a_sequence_that_ends_leaves_nothing(when: str) -> None:
    bench = Bench()
    bench.run(1, 12)
    assert bench.kv.spill(1, 12)
    if when != "going":
        bench.settle()
    if when == "coming":
        assert bench.kv.admit(1, [1] * 12) == 12
    bench.kv.release(1)
    bench.settle()
    assert not bench.tier.slot and bench.kv.usage == 0
    assert bench.kv.reset()


def test_late_copies_are_not_waited_for() -> None:
    bench = Bench()
    bench.run(1, 4)
    assert bench.kv.spill(1, 4)
    bench.settle()
    assert bench.kv.admit(1, [1] * 4) == 4
    bench.clock.now += 10.0
    assert bench.kv.poll() == ([], [1])
    bench.settle()
    assert not bench.tier.slot and bench.kv.usage == 0


def test_what_came_back_is_published() -> None:
    """It is exact, so others may have it; under its own key, not the copy's."""
    bench = Bench()
    bench.run(1, 8)
    assert bench.kv.spill(1, 8)
    bench.settle()
    bench.kv.admit(1, [1] * 9)
    bench.settle()
    bench.kv.publish(1, [1] * 9, 8)
    assert bench.kv.lookup([1] * 9, None, 8) == 8
