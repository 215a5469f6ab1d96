"""The block pool against a model that keeps three plain sets."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm.kv.evict import make as policy
from vllm.kv.index import Index
from vllm.kv.lineage import Key
from vllm.kv.pool import BlockPool
from vllm.kv.retention import Uses

BLOCKS = 5


class PoolMachine(RuleBasedStateMachine):
    """Holders are lists of blocks; the model counts, and knows in which order keys were left."""

    def __init__(self):
        super().__init__()
        self.index = Index()
        self.pool = BlockPool(BLOCKS, policy("lru"), self.index, Uses(100, 16))
        self.holders: list[list[int]] = []
        self.names: dict[int, Key] = {}  # block -> key
        self.left: list[Key] = []  # cached keys, longest unused first
        self.made = 0

    def refs(self, block):
        return sum(holder.count(block) for holder in self.holders)

    @property
    def free(self):
        return {b for b in range(BLOCKS) if self.refs(b) == 0 and b not in self.names}

    @rule(count=st.integers(0, BLOCKS + 1))
    def allocate(self, count):
        free, cached = self.free, list(self.left)
        before = [(k, b) for k, b in self.index.items()]
        got = self.pool.allocate(count)
        if count > len(free) + len(cached):
            assert got is None
            assert [(k, b) for k, b in self.index.items()] == before
            return
        assert got is not None
        assert len(set(got)) == len(got) == count
        evicted = cached[: max(0, count - len(free))]  # none while free blocks are left
        gone = {b for b, k in self.names.items() if k in evicted}
        assert set(got) <= free | gone
        assert gone <= set(got)
        self.names = {b: k for b, k in self.names.items() if b not in gone}
        self.left = cached[len(evicted) :]
        self.holders.append(list(got))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data):
        block = data.draw(st.sampled_from([b for h in self.holders for b in h] or [None]))
        if block is None or block in self.names:
            return
        self.made += 1
        key = Key(self.made.to_bytes(32, "big"))
        assert self.pool.publish(block, key)
        self.names[block] = key

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def publish_what_is_elsewhere(self, data):
        private = [b for h in self.holders for b in h if b not in self.names]
        if not private:
            return
        key = data.draw(st.sampled_from(sorted(self.names.values())))
        assert not self.pool.publish(data.draw(st.sampled_from(private)), key)

    @rule(data=st.data())
    def share(self, data):
        known = {b for h in self.holders for b in h} | set(self.names)
        if not known:
            return
        blocks = data.draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=3))
        self.pool.share(blocks)
        self.left = [k for k in self.left if k not in [self.names.get(b) for b in blocks]]
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(reversed(holder))
        for block in reversed(holder):
            if self.refs(block) == 0 and block in self.names:
                self.left.append(self.names[block])

    @rule()
    def forget_cached(self):
        if self.pool.forget_cached():
            assert set(self.names.values()) == set(self.left)
            self.names, self.left = {}, []
        else:
            assert any(self.refs(b) for b in self.names)

    @invariant()
    def agrees(self):
        self.pool.check(self.holders)
        assert {k: b for b, k in self.names.items()} == dict(self.index.items())
        assert self.pool.available == len(self.free) + len(self.left)
        assert self.pool.held == len({b for h in self.holders for b in h})


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def make(blocks: int = 3) -> BlockPool:
    return BlockPool(blocks, policy("lru"), Index(), Uses(100, 16))


def test_release_of_what_is_not_held_fails_at_once():
    pool = make()
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError, match="more often"):
        pool.release([block])


def test_a_key_is_set_once():
    pool = make()
    (block,) = pool.allocate(1)
    pool.publish(block, Key(b"a" * 32))
    with pytest.raises(AssertionError, match="set once"):
        pool.publish(block, Key(b"b" * 32))


def test_only_held_blocks_are_published():
    with pytest.raises(AssertionError, match="held"):
        make().publish(0, Key(b"a" * 32))


def test_a_free_block_cannot_be_shared():
    with pytest.raises(AssertionError, match="free"):
        make().share([0])


def test_check_sees_a_wrong_reference_count():
    pool = make()
    blocks = pool.allocate(2)
    pool.check([blocks])
    with pytest.raises(AssertionError):
        pool.check([blocks, blocks])
    with pytest.raises(AssertionError):
        pool.check([])
