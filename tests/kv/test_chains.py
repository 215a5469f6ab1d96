"""Operations on chains of blocks against the same ones block by block."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.core.retention import NO_HINTS, CacheHints, Retention
from vllm.kv import manager as manager_module
from vllm.kv.evict import POLICIES, LeafFirst, Use, parse
from vllm.kv.evict.banded import Banded
from vllm.kv.index import BlockId
from vllm.kv.lineage import Key
from vllm.kv.manager import KVManager
from vllm.kv.pool import BlockPool
from vllm.kv.spec import KVSpec

HINTS = [
    NO_HINTS,
    NO_HINTS,
    CacheHints((Retention(priority=80, ttl=3.0),), "chat", "x"),
    CacheHints((Retention(0, 4, 10), Retention(4, None, 60, ttl=9.0)), "qa", "y"),
]
SIZE, BLOCKS = 2, 12


class SlowBands(Banded):
    def insert_all(self, used: Iterable[tuple[Key, Use]]) -> None:
        for key, use in used:
            self.insert(key, use)

    def evict_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.evict(key)


class SlowPool(BlockPool):
    def release_used(self, blocks: Sequence[BlockId], uses: Sequence[tuple[Key, Use]]) -> None:
        for block, (key, use) in reversed(list(zip(blocks, uses, strict=True))):
            copy = not self.is_published(block)
            if copy and not self.publish(block, key) and key in self._policy:
                self._policy.touch(key, use)
            self.release([block])

    def publish_all(self, blocks: Sequence[BlockId], keys: Sequence[Key]) -> list[int]:
        stored = []
        for i, (block, key) in enumerate(zip(blocks, keys, strict=True)):
            if not self.is_published(block) and self.publish(block, key):
                stored.append(i)
        return stored


def manager(policy: str) -> KVManager:
    spec = KVSpec(num_layers=1, num_kv_heads=1, head_dim=1, block_size=SIZE, dtype="float32")
    return KVManager(spec, BLOCKS, bytes(32), policy=policy)


def slow_manager(policy: str) -> KVManager:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager_module, "BlockPool", SlowPool)
        patch.setattr(manager_module, "make", lambda spec: LeafFirst(SlowBands(parse(spec))))
        return manager(policy)


def state(kv: KVManager) -> list[Any]:
    kv.check()
    pool = kv.pool
    order = list(pool._policy.victims(kv.uses.now))
    return [dict(kv.index.items()), pool._free, pool._refs, order, list(kv.uses._uses.items())]


def live(kv: KVManager, seed: int) -> list[list[Any]]:
    """Sequences that share beginnings come, compute, fork and go; what is known at each step."""
    draw, states = random.Random(seed), []
    computed: dict[int, tuple[list[int], int]] = {}
    for seq in range(40):
        kv.uses.now += draw.choice([0.0, 0.5, 4.0])
        if draw.random() < 0.2:
            kv.session(draw.choice("xy"), draw.choice(["pin", "demote", "release"]), ttl=2.0)
        tokens = [draw.choice([0, 0, 0, 1])] * draw.randint(1, 12) + [2] * draw.randint(0, 8)
        cached = kv.admit(seq, tokens, hints=draw.choice(HINTS))
        if cached is not None:
            computed[seq] = tokens, cached
        for each in draw.sample(sorted(computed), draw.randint(0, len(computed))):
            tokens, done = computed[each]
            if draw.random() < 0.3:
                kv.release(each)
                del computed[each]
            else:
                done = draw.randint(done, len(tokens))
                kv.publish(each, tokens, done)
                computed[each] = tokens, done
                if draw.random() < 0.2:
                    kv.fork(each, -1, done)
                    kv.release(-1)
            states.append(state(kv))
    return states


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(sorted(POLICIES)))
def test_chains_are_blocks_one_after_the_other(seed: int, policy: str) -> None:
    assert live(manager(policy), seed) == live(slow_manager(policy), seed)
