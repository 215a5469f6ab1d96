"""The KV manager against its naive twin, and its promises one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from vllm.kv.lineage import Key, Lineage, root
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec

from .twin import Twin

PRINT = bytes(32)


def spec(size: int) -> KVSpec:
    return KVSpec(num_layers=1, num_kv_heads=1, head_dim=1, block_size=size, dtype="float32")


def manager(blocks: int, size: int = 2, **options) -> KVManager:
    return KVManager(spec(size), blocks, PRINT, **options)


def snapshot(kv: KVManager) -> tuple:
    """All that a refusal must leave as it was, the order of eviction included."""
    pool = kv._pool
    tables = {seq: list(table.blocks) for seq, table in kv._tables.items()}
    return tables, dict(kv._index.items()), list(pool._policy.victims()), list(pool._free)


# Few different tokens, so that prefixes meet by chance.
TOKENS = st.lists(st.sampled_from([7, 8]), min_size=1, max_size=9)
SALTS = st.sampled_from([None, None, None, "a"])


class ManagerMachine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(4, 9), size=st.integers(1, 3), caching=st.sampled_from([1, 1, 0])
    )
    def start(self, blocks, size, caching):
        self.size = size
        self.kv = manager(blocks, size, enable_caching=bool(caching))
        self.twin = Twin(blocks, size, bool(caching))
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.forked: dict[int, list[int]] = {}  # hold blocks, wait for admission
        self.made = 0

    def some(self, data, of):
        return data.draw(st.sampled_from(sorted(of)))

    def admit_both(self, seq, tokens, **options):
        before = snapshot(self.kv)
        got = self.kv.admit(seq, tokens, **options)
        assert got == self.twin.admit(seq, tokens, **options)
        if got is None:
            assert snapshot(self.kv) == before
            return
        assert got % self.size == 0
        assert got < len(tokens)
        self.tokens[seq], self.computed[seq] = list(tokens), got

    @rule(tokens=TOKENS, salt=SALTS, limit=st.none() | st.integers(0, 10), room=st.integers(0, 2))
    def admit(self, tokens, salt, limit, room):
        self.made += 1
        self.admit_both(self.made, tokens, salt=salt, limit=limit, headroom=room)

    @precondition(lambda self: self.forked)
    @rule(data=st.data())
    def admit_a_fork(self, data):
        seq = self.some(data, self.forked)
        self.admit_both(seq, self.forked[seq])
        if seq in self.tokens:
            del self.forked[seq]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), count=st.integers(1, 9))
    def compute(self, data, count):
        seq = self.some(data, self.tokens)
        self.computed[seq] = min(self.computed[seq] + count, len(self.tokens[seq]))
        self.kv.publish(seq, self.tokens[seq], self.computed[seq])
        self.twin.publish(seq, self.tokens[seq], self.computed[seq])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), token=st.sampled_from([7, 8]))
    def grow(self, data, token):
        seq = self.some(data, self.tokens)
        before = snapshot(self.kv)
        added = self.kv.grow(seq, len(self.tokens[seq]) + 1)
        count = self.twin.grow(seq, len(self.tokens[seq]) + 1)
        if added is None:
            assert count is None
            assert snapshot(self.kv) == before
            return
        assert len(added) == count
        self.tokens[seq].append(token)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def fork(self, data):
        parent = self.some(data, self.tokens)
        self.made += 1
        self.kv.fork(parent, self.made, self.computed[parent])
        self.twin.fork(parent, self.made, self.computed[parent])
        known = self.tokens[parent]
        if self.computed[parent] == len(known):
            known = [*known, 7]  # as the scheduler does, leave a token to compute
        self.forked[self.made] = list(known)

    @rule(data=st.data())
    def release(self, data):
        seq = data.draw(st.sampled_from([*self.tokens, *self.forked, 10**6]))
        self.kv.release(seq)
        self.twin.release(seq)
        for known in (self.tokens, self.computed, self.forked):
            known.pop(seq, None)
        assert not self.kv.holds(seq)

    @rule()
    def reset(self):
        before = snapshot(self.kv)
        assert self.kv.reset() == self.twin.reset()
        if self.kv._index.items():
            assert snapshot(self.kv) == before

    @rule(tokens=TOKENS, salt=SALTS, limit=st.integers(0, 10))
    def lookup(self, tokens, salt, limit):
        before = snapshot(self.kv)
        found = self.kv.lookup(tokens, salt, limit)
        assert found == len(self.twin.prefixes(tokens, salt, limit)) * self.size
        assert snapshot(self.kv) == before

    @invariant()
    def agrees(self):
        if not hasattr(self, "kv"):
            return
        self.kv.check()
        self.compare_tables()
        names = self.names()
        assert set(names.values()) == set(self.twin.known)
        assert [names[k] for k in self.kv._pool._policy.victims()] == self.twin.unused
        self.ends_go_first(names)

    def compare_tables(self):
        """The same blocks are shared by the same sequences, and as many are held."""
        kv, twin = self.kv, self.twin
        pairs = set()
        for seq, table in twin.tables.items():
            blocks = kv.blocks(seq)
            assert len(blocks) == len(table.blocks)
            pairs |= {(block, id(ours)) for block, ours in zip(blocks, table.blocks, strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == twin.held
        assert kv.usage == twin.held / twin.total

    def names(self) -> dict[Key, tuple]:
        """What the index's keys stand for."""
        made = {self.key(name): name for name in self.twin.known}
        return {key: made[key] for key, _ in self.kv._index.items()}

    def key(self, name) -> Key:
        salt, tokens = name
        lineage = Lineage(root(PRINT, salt), self.size)
        lineage.extend(tokens, len(tokens) // self.size)
        return lineage.key(len(lineage) - 1)

    def ends_go_first(self, names):
        """No cached block is out of reach: its prefix is cached too, and goes later."""
        order = list(self.kv._pool._policy.victims())
        place = {names[key]: at for at, key in enumerate(order)}
        for salt, tokens in place:
            parent = (salt, tokens[: -self.size])
            if parent[1]:
                assert parent in self.twin.known, "an end outlived its beginning"
                assert place.get(parent, len(order)) > place[salt, tokens]

    def teardown(self):
        if not hasattr(self, "kv"):
            return
        for seq in [*self.tokens, *self.forked]:
            self.kv.release(seq)
            self.twin.release(seq)
        self.agrees()
        pool = self.kv._pool
        assert pool._refs == [0] * pool.num_blocks
        assert len(pool._free) + len(pool._policy) == pool.num_blocks
        assert self.kv.usage == 0


ManagerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestManager = ManagerMachine.TestCase


def fill(kv: KVManager, seq: int, tokens: list[int], salt: str | None = None) -> int | None:
    """Admit and compute; returns what was cached."""
    cached = kv.admit(seq, tokens, salt=salt)
    if cached is not None:
        kv.publish(seq, tokens, len(tokens))
    return cached


@pytest.mark.parametrize("length", [3, 4, 5, 7, 8, 9])
def test_hits_end_before_the_last_token(length):
    """Whole blocks only, and never all of a prompt: its last token is always computed."""
    kv = manager(16, size=4)
    tokens = list(range(length))
    assert fill(kv, 1, tokens) == 0
    kv.release(1)
    assert fill(kv, 2, tokens) == (length - 1) // 4 * 4
    assert kv.lookup(tokens, None, length) == length // 4 * 4
    assert kv.lookup(tokens, None, 100) == length // 4 * 4


def test_salts():
    """Another tenant hits nothing, and the same one hits what it should."""
    kv = manager(32, size=4)
    tokens = list(range(12))
    assert fill(kv, 1, tokens, "red") == 0
    assert fill(kv, 2, tokens, "blue") == 0
    assert fill(kv, 3, tokens, None) == 0
    assert fill(kv, 4, tokens, "") == 0
    assert [fill(kv, 5 + i, tokens, salt) for i, salt in enumerate(["red", "blue", None, ""])] == [
        8
    ] * 4


def test_without_caching_nothing_is_found_or_kept():
    kv = manager(8, size=2, enable_caching=False)
    assert fill(kv, 1, [1, 2, 3, 4]) == 0
    kv.release(1)
    assert fill(kv, 2, [1, 2, 3, 4]) == 0
    assert not dict(kv._index.items())


def test_a_refused_admission_changes_nothing():
    """Not even the order of eviction: the hits of one who waits are not used until it runs."""
    kv = manager(6, size=2)
    fill(kv, 1, [1, 2, 3, 4])
    kv.release(1)
    fill(kv, 2, [9, 9])
    kv.release(2)
    before = snapshot(kv)
    assert kv.admit(3, [1, 2, 3, 4, 5], headroom=4) is None
    assert snapshot(kv) == before
    assert not kv.holds(3)
    assert kv.admit(3, [1, 2, 3, 4, 5], headroom=3) == 4


def test_hits_are_not_counted_as_room_for_the_rest():
    """Cached blocks that a sequence shares can no longer be evicted for it."""
    kv = manager(3, size=2)
    fill(kv, 1, [1, 2, 3, 4])
    kv.release(1)
    assert kv.admit(2, [1, 2, 3, 4, 5, 6, 7]) is None
    assert kv.admit(2, [1, 2, 3, 4, 5, 6]) == 4


def test_a_refused_fork_keeps_what_it_has():
    kv = manager(4, size=2)
    fill(kv, 1, [1, 2, 3, 4, 5])
    kv.fork(1, 2, 4)
    before = snapshot(kv)
    assert kv.admit(2, [1, 2, 3, 4, 5], headroom=1) is None
    assert snapshot(kv) == before
    assert kv.blocks(2) == kv.blocks(1)[:2]
    assert kv.admit(2, [1, 2, 3, 4, 5]) == 4
    kv.check()


def test_a_fork_shares_full_blocks_only():
    kv = manager(8, size=4)
    fill(kv, 1, list(range(9)))
    for tokens, shared in ((3, 0), (4, 1), (7, 1), (8, 2)):
        kv.fork(1, 2, tokens)
        assert kv.blocks(2) == kv.blocks(1)[:shared]
        kv.release(2)
    kv.check()


def test_the_longest_unused_goes_first():
    kv = manager(4, size=2)
    for seq, tokens in ((1, [1, 1]), (2, [2, 2]), (3, [3, 3])):
        fill(kv, seq, tokens)
        kv.release(seq)
    assert kv.admit(4, [1, 1, 1]) == 2  # used again, beside the one free block
    kv.release(4)
    fill(kv, 5, [4, 4, 4])  # the free block, and one more
    cached = [kv.lookup(tokens, None, 2) for tokens in ([1, 1], [2, 2], [3, 3])]
    assert cached == [2, 0, 2]


def test_a_copy_that_was_used_last_counts_as_use():
    """Two compute one prefix at once and only the first is published. When the second, still
    running, ends last, the prefix was used last of all, and must not go before its end."""
    kv = manager(6, size=2)
    first, second = [1, 2, 9], [1, 2, 3, 4, 5]
    assert kv.admit(1, first) == 0
    assert kv.admit(2, second) == 0
    kv.publish(1, first, 3)
    kv.publish(2, second, 5)
    kv.release(1)
    kv.release(2)
    fill(kv, 3, [8] * 9)  # four free blocks, and one that must be evicted
    assert kv.lookup([1, 2, 3, 4], None, 4) == 2
    kv.check()


def test_a_copy_takes_the_place_of_what_was_evicted():
    kv = manager(6, size=2)
    first, second = [1, 2, 9], [1, 2, 3, 4, 5]
    kv.admit(1, first)
    kv.admit(2, second)
    kv.publish(1, first, 3)
    kv.publish(2, second, 5)
    kv.release(1)
    fill(kv, 3, [8] * 6)  # pushes out the first one's block; the second still runs
    assert kv.lookup(second, None, 4) == 0
    kv.release(2)
    assert kv.lookup(second, None, 4) == 4
    kv.check()


def test_reset_refuses_while_cached_content_is_held():
    kv = manager(6, size=2)
    fill(kv, 1, [1, 2, 3])
    assert not kv.reset()
    assert kv.lookup([1, 2, 3], None, 2) == 2
    kv.release(1)
    assert kv.reset()
    assert kv.lookup([1, 2, 3], None, 2) == 0
    assert kv._pool.available == 6
    kv.check()


def test_a_lossy_sequence_publishes_nothing():
    """What it had published before stays; what it held beside that is free at once."""
    kv = manager(6, size=2)
    kv.admit(1, [1, 2, 3, 4, 5])
    kv.publish(1, [1, 2, 3, 4, 5], 2)
    lineage = kv._tables[1].lineage
    shape = kv.spec.num_layers, kv.spec.num_kv_heads
    assert kv.reserve(1, 2 * kv.heads) is not None
    kv.check()
    kv.compact(1, np.full(shape, 2), 5)
    kv.check()
    assert lineage.lossy
    assert kv.compressed(1)
    assert (kv.kept(1, 5), kv.kept(1, 4)) == (2 * kv.heads, kv.heads)
    assert kv.pool.held == 1
    kv.grow(1, 8)
    kv.publish(1, [1, 2, 3, 4, 5, 6, 7, 8], 8)
    assert kv.lookup([1, 2, 3, 4, 5, 6, 7, 8], None, 8) == 2
    kv.release(1)
    assert kv.lookup([1, 2, 3, 4], None, 4) == 2
    assert kv.usage == 0
    kv.check()


def test_usage_counts_cached_blocks_as_free():
    kv = manager(8, size=2)
    fill(kv, 1, [1, 2, 3, 4])
    assert kv.usage == 0.25
    kv.release(1)
    assert kv.usage == 0.0
    assert [kv.blocks_for(n) for n in (0, 1, 2, 3, 4)] == [0, 1, 1, 2, 2]
