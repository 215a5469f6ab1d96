"""Whatever fails below, in whatever order transfers end: sequences are given only what their
own tokens make, and no block is lost.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vllm.kv.cost import LoadCost
from vllm.kv.evict import POLICIES, make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.lineage import Key, Lineage, root
from vllm.kv.manager import KVManager
from vllm.kv.mover import Mover
from vllm.kv.shelf import Level, Shelf
from vllm.kv.spec import KVSpec

from .faulty import FaultyTier, HeldClock, SteppedMover

PRINT = bytes(32)
SIZE = 2
BYTES = KVSpec(1, 1, 1, SIZE, "float32").block_bytes
POISON = 0xEE


def content(key: Key) -> bytes:
    """What computing the block of this key would give: a key says all tokens up to its end."""
    return hashlib.blake2b(key, digest_size=BYTES).digest()


class Arena:
    def __init__(self, blocks: int) -> None:
        self.bytes = np.full((blocks, BYTES), POISON, dtype=np.uint8)

    def view(self, block: int) -> memoryview:
        return memoryview(self.bytes[block])


# Beginnings of few texts, so that prefixes meet.
TOKENS = st.builds(
    lambda base, length, own: [base] * (length - min(own, length)) + [7] * min(own, length),
    st.sampled_from([3, 4]),
    st.integers(4, 11),
    st.sampled_from([0, 0, 1, 3]),
)
FAULTS = st.lists(st.sampled_from(["ok", "ok", "os", "crash", "miss"]), min_size=1, max_size=3)

BUSY = ["come_back"] * 4 + ["serve"] * 4 + ["advance"] * 6 + ["poll"] * 3 + ["compute"] * 3
BUSY += ["abort", "leave", "fail", "time", "write_back", "finish", "reset", "idle", "harm"]


class TiersMachine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(5, 8),
        upper=st.integers(1, 6),
        lower=st.integers(0, 8),
        window=st.integers(2, 8),
        warm=st.lists(st.sampled_from([3, 4]), max_size=4),
        asynchronous=st.sampled_from([True, True, True, False]),
        policy=st.sampled_from(["lru", "lru", *POLICIES]),
    )
    def start(self, blocks, upper, lower, window, warm, asynchronous, policy):
        self.kv = KVManager(KVSpec(1, 1, 1, SIZE, "float32"), blocks, PRINT, policy=policy)
        self.tiers = [FaultyTier("host", upper)]
        if lower:
            self.tiers.append(FaultyTier("disk", lower))
        self.clock = HeldClock()
        self.arena = Arena(blocks)
        kind = SteppedMover if asynchronous else Mover
        self.mover = kind(
            self.tiers, asynchronous=asynchronous, clock=self.clock, deadline=2.0, max_queued=8
        )
        self.stepped = self.mover if asynchronous else None
        levels = [
            Level(t, Shelf(len(t.free), make(self.kv.policy), self.kv.uses)) for t in self.tiers
        ]
        self.kv.attach(
            Hierarchy(
                levels,
                self.mover,
                self.arena,
                self.kv.pool,
                self.kv.index,
                LoadCost(BYTES, SIZE),
                window=window,
            )
        )
        self.tokens: dict[int, list[int]] = {}
        self.keys: dict[int, list[Key]] = {}
        self.computed: dict[int, int] = {}
        self.waiting: dict[int, int] = {}  # sequence -> tokens that it was promised
        self.made = 0
        for base in warm:
            self.serve([base] * 2 * blocks)
            self.finish()
            self.flood(blocks)

    # ---- what sequences do --------------------------------------------------------------------

    @rule(
        tokens=TOKENS,
        salt=st.sampled_from([None, None, None, "a"]),
        limit=st.none() | st.none() | st.integers(0, 8),
        room=st.sampled_from([0, 0, 1]),
    )
    def admit(self, tokens, salt, limit, room):
        self.made += 1
        seq = self.made
        most = len(tokens) - 1 if limit is None else min(limit, len(tokens) - 1)
        probed = self.kv.probe(seq, tokens, salt, most)
        free = list(self.kv.pool._free)
        got = self.kv.admit(seq, tokens, salt=salt, limit=limit, headroom=room)
        if got is None:
            self.kv.release(seq)
            assert self.kv.pool._free == free
            return
        assert got % SIZE == 0
        assert got <= most
        assert got in probed
        lineage = Lineage(root(PRINT, salt), SIZE)
        lineage.extend(tokens, len(tokens) // SIZE)
        self.tokens[seq], self.keys[seq] = tokens, list(lineage.keys())
        self.poison(self.kv.blocks(seq)[got // SIZE :])
        if self.kv.waits(seq):
            self.waiting[seq] = got
        else:
            self.computed[seq] = got

    def poison(self, blocks):
        self.arena.bytes[blocks] = POISON

    @rule(tokens=TOKENS, others=st.integers(0, 2))
    def come_back(self, tokens, others):
        """To a device that has forgotten it; several at once share what is loaded."""
        for seq in list(self.computed):
            self.drop(seq)
        if self.kv.pool.available:
            self.flood(self.kv.pool.available)
        for i in range(others + 1):
            self.admit(tokens[: len(tokens) - i], None, None, 0)

    @rule(tokens=TOKENS)
    def serve(self, tokens):
        """A request from its beginning to its end, if it need not wait."""
        self.admit(tokens, None, None, 0)
        if self.made in self.computed:
            self.compute_one(self.made, len(tokens))
            self.drop(self.made)
        self.kv.write_back()

    @precondition(lambda self: self.computed)
    @rule(data=st.data(), count=st.integers(1, 9))
    def compute(self, data, count):
        self.compute_one(data.draw(st.sampled_from(sorted(self.computed))), count)

    def compute_one(self, seq, count):
        start = self.computed[seq]
        end = self.computed[seq] = min(start + count, len(self.tokens[seq]))
        for i in range(start // SIZE, end // SIZE):
            block = self.kv.blocks(seq)[i]
            assert not self.kv.pool.is_published(block), "a published block is written"
            assert self.kv.pool._refs[block] == 1, "a block that others hold is written"
            self.arena.bytes[block] = np.frombuffer(content(self.keys[seq][i]), dtype=np.uint8)
        self.kv.publish(seq, self.tokens[seq], end)

    @precondition(lambda self: self.computed or self.waiting)
    @rule(data=st.data())
    def release(self, data):
        """Also in the middle of its prompt, and while it waits."""
        self.drop(data.draw(st.sampled_from(sorted([*self.computed, *self.waiting]))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abort_one_that_waits(self, data):
        self.drop(data.draw(st.sampled_from(sorted(self.waiting))))

    def drop(self, seq):
        self.kv.release(seq)
        self.computed.pop(seq, None)
        self.waiting.pop(seq, None)

    @rule(data=st.data())
    def push_out(self, data):
        """Somebody who needs much of what can be had, computes nothing and leaves."""
        most = max(1, self.kv.pool.available)
        self.flood(data.draw(st.integers((most + 1) // 2, most)))

    def flood(self, count):
        self.made += 1
        if self.kv.admit(self.made, [9] * (count * SIZE), salt=str(self.made)) is not None:
            self.poison(self.kv.blocks(self.made))
            self.kv.release(self.made)

    # ---- what transfers do --------------------------------------------------------------------

    @rule()
    def poll(self):
        ready, failed = self.kv.poll()
        assert len(set(ready)) == len(ready)
        assert not set(ready) & set(failed)
        for seq in ready:
            self.computed[seq] = self.waiting.pop(seq)
        for seq in failed:
            del self.waiting[seq]
            assert not self.kv.holds(seq)

    @rule()
    def write_back(self):
        self.kv.write_back()

    @rule()
    def idle(self):
        self.kv.tiers.write_back.everything()

    @precondition(lambda self: self.stepped and self.stepped.runnable())
    @rule(data=st.data(), count=st.integers(1, 6))
    def advance(self, data, count):
        for _ in range(count):
            if runnable := self.stepped.runnable():
                self.stepped.advance(*data.draw(st.sampled_from(runnable)))

    @rule()
    def finish(self):
        if self.stepped:
            self.stepped.finish()
        self.poll()

    @rule(seconds=st.sampled_from([1.5, 3.0, 100.0]))
    def pass_time(self, seconds):
        self.clock.now += seconds

    @rule(data=st.data(), what=st.sampled_from(["reads", "writes", "deletes"]), plan=FAULTS)
    def fail(self, data, what, plan):
        tier = data.draw(st.sampled_from(self.tiers))
        getattr(tier, what).extend("ok" if p == "miss" and what != "reads" else p for p in plan)

    @rule(data=st.data())
    def lose(self, data):
        """Somebody deletes a block from a tier behind everybody's back."""
        tier = data.draw(st.sampled_from(self.tiers))
        busy = self.mover.busy
        if tier.slot and not busy:
            tier.free.append(tier.slot.pop(data.draw(st.sampled_from(sorted(tier.slot)))))

    @rule(data=st.data(), how=st.sampled_from(["flip", "truncate", "swap"]))
    def harm(self, data, how):
        """Somebody, or the disk, damages what the slowest tier has; memory is trusted."""
        if slot := self.tiers[-1].slot:
            keys = data.draw(st.permutations(sorted(slot)))
            self.tiers[-1].harm(how, keys[0], keys[-1])

    @rule()
    def reset(self):
        before = dict(self.kv.index.items())
        if self.kv.reset():
            assert not dict(self.kv.index.items())
            assert not any(len(level.shelf) for level in self.kv.tiers.levels)
        else:
            assert dict(self.kv.index.items()) == before or not self.waiting

    @rule(rng=st.randoms(use_true_random=True), count=st.integers(20, 60))
    def busy_time(self, rng, count):
        """Many of them in a row, those that matter most more often than hypothesis would."""
        for _ in range(count):
            op = rng.choice(BUSY)
            own = rng.choice([0, 0, 1, 3])
            tokens = [rng.choice([3, 4])] * (rng.randint(4, 11) - own) + [7] * own
            if op == "come_back":
                self.come_back(tokens, rng.randint(0, 2))
            elif op == "serve":
                self.serve(tokens)
            elif op == "advance" and self.stepped:
                for _ in range(rng.choice([1, 3, 8])):
                    if runnable := self.stepped.runnable():
                        self.stepped.advance(*rng.choice(runnable))
            elif op == "abort" and self.waiting:
                self.drop(rng.choice(sorted(self.waiting)))
            elif op == "leave" and self.computed:
                self.drop(rng.choice(sorted(self.computed)))
            elif op == "compute" and self.computed:
                self.compute_one(rng.choice(sorted(self.computed)), rng.randint(1, 9))
            elif op == "fail":
                plan = getattr(rng.choice(self.tiers), rng.choice(["reads", "writes", "deletes"]))
                plan.extend(rng.choices(["ok", "os", "crash"], k=2))
            elif op == "harm" and (slot := self.tiers[-1].slot):
                keys = rng.sample(sorted(slot), len(slot))
                self.tiers[-1].harm(rng.choice(["flip", "truncate", "swap"]), keys[0], keys[-1])
            elif op == "time":
                self.pass_time(rng.choice([0.1, 1.0, 3.0, 70.0]))
            elif op in ("poll", "write_back", "finish", "reset", "idle"):
                getattr(self, op)()
            self.state()

    # ---- what always holds --------------------------------------------------------------------

    @invariant()
    def state(self):
        if not hasattr(self, "kv"):
            return
        self.kv.check()
        self.right_on_the_device()
        self.right_in_the_tiers()
        for seq in self.waiting:
            assert self.kv.waits(seq)
        for job in self.mover._pending if self.stepped else ():
            if job in self.stepped.stores_from_device() and not job.revoked:
                for key in job.keys:
                    assert self.kv.index.block(key) is not None, "a block left while it was copied"

    def right_on_the_device(self):
        for key, block in self.kv.index.items():
            assert bytes(self.arena.bytes[block]) == content(key), "wrong data under a key"
        for seq, computed in self.computed.items():
            for i in range(computed // SIZE):
                block = self.kv.blocks(seq)[i]
                assert bytes(self.arena.bytes[block]) == content(self.keys[seq][i]), "wrong data"

    def right_in_the_tiers(self):
        for level in self.kv.tiers.levels:
            tier = level.tier
            for key, slot in tier.slot.items():
                right = bytes(tier.content[slot]) == content(key)
                assert right or not tier.is_sound(key), "wrong data in a tier"
            assert len(tier.slot) <= level.shelf.capacity

    def teardown(self):
        if not hasattr(self, "kv"):
            return
        for tier in self.tiers:
            for plan in (tier.reads, tier.writes, tier.deletes):
                plan.clear()
        for seq in [*self.computed, *self.waiting]:
            self.drop(seq)
        for _ in range(3):
            if self.stepped:
                self.stepped.finish()
            assert self.kv.poll() == ([], [])
        self.state()
        pool, tiers = self.kv.pool, self.kv.tiers
        assert not self.mover.busy
        assert all(lane.waiting == 0 for lane in self.mover.lanes.values())
        assert pool._refs == [0] * pool.num_blocks
        assert pool.available == pool.num_blocks, "a block is lost"
        assert not pool._pinned
        assert not self.kv._tables
        assert not self.kv._expected
        assert not tiers.loads._loads
        assert not tiers.loads._waiting
        assert not tiers.loads._revoked
        assert not tiers.spills._storing and not tiers.spills._by_seq
        for level in tiers.levels:
            assert not level.shelf._pins
            assert not level.shelf._storing
        assert self.kv.reset()
        assert pool.free == pool.num_blocks


TiersMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
TestTiers = TiersMachine.TestCase


@pytest.mark.parametrize("tens", range(12))
def test_long_random_lives(tens):
    """Hypothesis finds short ways to fail; these are long, and full of loads."""
    for seed in range(20 * tens, 20 * tens + 20):
        rng = random.Random(seed)
        machine = TiersMachine()
        machine.start(
            blocks=rng.randint(5, 12),
            upper=rng.randint(1, 8),
            lower=rng.choice([0, 3, 8, 30]),
            window=rng.randint(2, 8),
            warm=[3, 4],
            asynchronous=rng.random() < 0.8,
            policy=rng.choice(["lru", *POLICIES]),
        )
        machine.busy_time(rng, 150)
        machine.teardown()
