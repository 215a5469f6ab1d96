"""Slabs and head tables against models of plain sets and lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm.kv.evict.lru import LRU
from vllm.kv.index import Index
from vllm.kv.pool import BlockPool
from vllm.kv.retention import Uses
from vllm.kv.slabs import Slabs
from vllm.kv.table import HeadTable

BLOCKS, HEADS = 5, 6


def make_pool(blocks: int = BLOCKS) -> BlockPool:
    return BlockPool(blocks, LRU(), Index(), Uses(100, 16))


class SlabMachine(RuleBasedStateMachine):
    """Holders are sets of head blocks; now and then somebody takes whole blocks as well."""

    def __init__(self):
        super().__init__()
        self.pool = make_pool()
        self.slabs = Slabs(self.pool, HEADS)
        self.holders: list[np.ndarray] = []
        self.whole: list[int] = []

    @rule(count=st.integers(0, BLOCKS * HEADS + 1))
    def allocate(self, count):
        room = self.pool.available * HEADS + self.slabs.remainder
        assert (self.slabs.blocks_for(count) <= self.pool.available) == (count <= room)
        before = self.pool.available, self.slabs.remainder
        got = self.slabs.allocate(count)
        if count > room:
            assert got is None
            assert before == (self.pool.available, self.slabs.remainder)
            return
        assert len(got) == count
        self.holders.append(got)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        cut = data.draw(st.integers(0, len(holder)))
        mixed = np.array(data.draw(st.permutations(holder.tolist())), dtype=np.int32)
        self.slabs.release(mixed[:cut])
        if cut < len(mixed):
            self.holders.append(mixed[cut:])

    @rule(count=st.integers(0, 2))
    def take_blocks(self, count):
        self.whole += self.pool.allocate(count) or []

    @precondition(lambda self: self.whole)
    @rule()
    def give_blocks(self):
        self.pool.release([self.whole.pop()])

    @invariant()
    def agrees(self):
        self.slabs.check(self.holders)
        self.pool.check([self.whole, self.slabs.blocks()])
        held = {i for ids in self.holders for i in ids.tolist()}
        assert len(held) == sum(map(len, self.holders)), "a head block has one holder"
        assert {i // HEADS for i in held} == set(self.slabs.blocks()), "no slab without a holder"
        assert self.slabs.held == len(held)
        free = self.pool.available * HEADS
        total = free + len(held) + self.slabs.remainder + len(self.whole) * HEADS
        assert total == BLOCKS * HEADS


SlabMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSlabs = SlabMachine.TestCase


def test_a_head_block_given_back_twice_fails_at_once():
    slabs = Slabs(make_pool(), HEADS)
    taken = slabs.allocate(HEADS)
    slabs.release(taken[:1])
    with pytest.raises(AssertionError, match="twice"):
        slabs.release(np.array([taken[0]] * HEADS))


def test_head_blocks_have_numbers_that_fit_the_tables():
    with pytest.raises(ValueError, match="too many head blocks"):
        Slabs(make_pool(3), 2**30)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_table_holds_what_lists_hold(data):
    """Growing by any steps: each head has its own head blocks, in order, and nobody else's."""
    layers, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size = data.draw(st.integers(1, 4))
    count = layers * heads
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    ids = iter(range(1000))
    tokens = 20
    given_ = np.array([next(ids) for _ in range(sum(-(-n // size) for n in lengths) + 2)])
    table, rest = HeadTable.of(given_, np.array(lengths).reshape(layers, heads), tokens, size)
    assert rest.tolist() == given_[-2:].tolist()
    model = []
    taken = iter(given_.tolist())
    for n in lengths:
        model.append([next(taken) for _ in range(-(-n // size))])
    for more in data.draw(st.lists(st.integers(0, 9), max_size=5)):
        tokens += more
        missing = table.missing(tokens)
        lengths = [n + more for n in lengths]
        short = [-(-n // size) - len(held) for n, held in zip(lengths, model, strict=True)]
        assert missing == sum(short)
        added = [next(ids) for _ in range(missing)]
        table.extend(tokens, np.array(added, dtype=np.int32))
        left = iter(added)
        for held, n in zip(model, short, strict=True):
            held += [next(left) for _ in range(n)]
        assert table.tokens == tokens
        assert table.lengths.ravel().tolist() == lengths
        assert table.total == sum(lengths)
        flat = table.head_blocks.reshape(layers * heads, -1)
        for i, held in enumerate(model):
            assert flat[i, : len(held)].tolist() == held
        assert sorted(table.held.tolist()) == sorted(i for held in model for i in held)
