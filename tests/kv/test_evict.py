"""Every eviction policy: what it offers, in which order, and what it keeps of what it was told."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.config.args.cache import EVICTION_POLICIES
from vllm.core.retention import DEFAULT_PRIORITY
from vllm.kv.evict import POLICIES, WITH_SETTINGS, make, parse
from vllm.kv.evict.banded import Banded
from vllm.kv.evict.leaf_first import LeafFirst
from vllm.kv.evict.lru import LRU
from vllm.kv.evict.policy import UNKNOWN, EvictionPolicy, Use
from vllm.kv.lineage import Key

NAMES = [*POLICIES, "allow:0", "quota:0=2,1=1", "ttl:0=5,*=3"]


def key(name: object) -> Key:
    return Key(str(name).encode().ljust(32, b"."))


def name(told: Key) -> str:
    return told.rstrip(b".").decode()


def test_the_flag_offers_what_there_is() -> None:
    assert set(EVICTION_POLICIES) == {*POLICIES, *WITH_SETTINGS}
    assert len(set(EVICTION_POLICIES)) == len(EVICTION_POLICIES)


class Cache:
    """Of `size` blocks, on demand: a block that comes pushes the policy's first victim out."""

    def __init__(self, policy: EvictionPolicy, size: int) -> None:
        self.policy, self.size, self.time = policy, size, 0.0
        self.gone: list[str] = []

    def access(self, wanted: object, **use: object) -> bool:
        told, self.time = key(wanted), self.time + 1
        hit = told in self.policy
        if hit:
            self.policy.remove(told)
        elif len(self.policy) >= self.size:
            victim = next(self.policy.victims(self.time))
            self.policy.evict(victim)
            self.gone.append(name(victim))
        self.policy.insert(told, Use(self.time, **use))  # type: ignore[arg-type]
        self.policy.check()
        return hit


# What leaves a cache of 4 blocks under these accesses, worked out by hand from each paper.
ACCESSES = "a b c d a a b e f a b g e h a".split()
GOLDEN = {
    "lru": "c d e f a b",
    "fifo": "a b c d e f a b",
    "lfu": "c d e f g",
    "clock": "c d e f a b",
    "sieve": "c d e f g",
}


@pytest.mark.parametrize("policy", GOLDEN)
def test_golden_sequences(policy: str) -> None:
    cache = Cache(POLICIES[policy](), 4)
    for wanted in ACCESSES:
        cache.access(wanted)
    assert cache.gone == GOLDEN[policy].split()


OPERATIONS = st.lists(
    st.tuples(st.sampled_from("insert use touch remove evict drop".split()), st.integers(0, 7)),
    max_size=60,
)


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("wrapped", [False, True])
@given(operations=OPERATIONS)
@settings(max_examples=60)
def test_a_policy_offers_exactly_what_may_go(
    policy: str, wrapped: bool, operations: list[tuple[str, int]]
) -> None:
    """Whatever happens: all evictable keys once, no others, and asking changes nothing."""
    it = make(policy) if wrapped else parse(policy)()
    inside: set[Key] = set()
    in_use: set[Key] = set()
    for now, (operation, number) in enumerate(operations):
        told = key(number)
        use = Use(float(now), key(number - 1) if number % 4 else None, number % 4, str(number % 2))
        if operation in ("insert", "use") and told not in inside:
            it.insert(told, use)
            inside.add(told)
            in_use.discard(told)
        elif operation == "touch":
            if told in inside:
                it.touch(told, use)
            else:
                with pytest.raises(KeyError):
                    it.touch(told, use)
        elif operation == "remove":
            if told in inside:
                it.remove(told)
                inside.remove(told)
                in_use.add(told)
            else:
                with pytest.raises(KeyError):
                    it.remove(told)
        elif operation == "evict" and inside:
            first = next(it.victims(float(now)))
            it.evict(first)
            inside.remove(first)
        elif operation == "drop":  # not the policy's own choice: a damaged file, a reset
            it.evict(told)
            inside.discard(told)
            in_use.discard(told)
        offered = list(it.victims(float(now)))
        assert offered == list(it.victims(float(now))), "asking changes nothing"
        assert len(offered) == len(set(offered))
        assert set(offered) == inside
        assert len(it) == len(inside)
        assert all((key(n) in it) == (key(n) in inside) for n in range(8))
        it.check()


@pytest.mark.parametrize("policy", NAMES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_chains_end_goes_before_its_beginning(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    it = make(policy)
    parents = {n: rng.choice([None, *range(n)]) for n in range(12)}
    order = list(parents)
    rng.shuffle(order)
    for now, n in enumerate(order):
        parent = parents[n]
        it.insert(key(n), Use(float(now), None if parent is None else key(parent), n))
        if rng.random() < 0.4:
            it.touch(key(n), Use(float(now)))
    left = set(parents)
    for victim in it.victims(99.0):
        n = int(name(victim))
        left.remove(n)
        assert all(parents[child] != n for child in left), "a child is left behind"


def test_leaf_first_changes_nothing_where_the_order_is_closed() -> None:
    bare, wrapped = LRU(), LeafFirst(LRU())
    for policy in (bare, wrapped):
        for chain in "ab":
            for depth in reversed(range(4)):
                parent = key(f"{chain}{depth - 1}") if depth else None
                policy.insert(key(f"{chain}{depth}"), Use(0.0, parent, depth))
    assert list(bare.victims()) == list(wrapped.victims())


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from([0, 35, 80]), st.sampled_from([5.0, math.inf])
        ),
        max_size=30,
    )
)
@settings(max_examples=200)
def test_priorities_against_sorting(uses: list[tuple[int, int, float]]) -> None:
    """A slow twin: by the priority that holds now, then by age."""
    it = Banded(LRU)
    twin: dict[Key, tuple[float, int, float]] = {}  # last use, priority, expiry
    for now, (number, priority, ttl) in enumerate(uses, 1):
        told = key(number)
        if told in it:
            it.remove(told)
        it.insert(told, Use(float(now), priority=priority, expires=now + ttl))
        twin[told] = float(now), priority, now + ttl
        at = now + 1.0

        def band(k: Key, at: float = at) -> int:
            _, own, expires = twin[k]
            return own if expires > at else DEFAULT_PRIORITY

        offered = list(it.victims(at))
        assert [band(k) for k in offered] == sorted(band(k) for k in twin)
        for priority_now in (0, 80):
            mine = [k for k in offered if band(k) == priority_now]
            assert mine == sorted(mine, key=lambda k: twin[k][0])
        it.check()


def test_a_workload_that_comes_back_soon_stays() -> None:
    """Blocks of `chat` are used again after 10 s, blocks of `once` never; both are as old."""
    it = make("workload")
    now = 0.0
    for i in range(60):
        now += 10.0
        told = key(f"chat{i % 3}")
        if told in it:
            it.remove(told)
        it.insert(told, Use(now, workload="chat"))
        it.insert(key(f"once{i}"), Use(now, workload="once"))
        if len(it) > 8:
            victim = next(it.victims(now))
            it.evict(victim)
            if i > 20:
                assert name(victim).startswith("once")


def test_a_workload_that_was_thought_useless_is_seen_to_be_of_use() -> None:
    """`late` is not used again for long, so it goes first; from then on it is all that is asked."""
    cache = Cache(POLICIES["workload"](), 20)
    for i in range(3000):
        cache.access(f"kept{i % 15}", workload="kept")
        for j in range(4):
            cache.access(f"late{i}-{j}", workload="late")
    hits = [cache.access(f"new{i % 15}", workload="late") for i in range(900)]
    assert sum(hits[-90:]) == 90


def test_unknown_uses_are_fine_everywhere() -> None:
    for policy in NAMES:
        it = make(policy)
        it.insert(key(1))
        it.insert(key(2), UNKNOWN)
        assert set(it.victims()) == {key(1), key(2)}


@pytest.mark.parametrize("policy", ["clock", "sieve"])
def test_a_leaf_out_of_turn_does_not_move_the_hand(policy: str) -> None:
    """`old` is next, but its child goes first: what the hand has not passed keeps its bit."""
    it = make(policy)
    for told in ("old", "used"):
        it.insert(key(told))
    it.insert(key("child"), Use(0.0, key("old"), 1))
    it.touch(key("used"))
    assert next(it.victims()) == key("child")
    it.evict(key("child"))
    it.insert(key("new"))
    assert [name(k) for k in it.victims()] == ["old", "new", "used"]


def test_sieves_hand_starts_again_before_newer_keys() -> None:
    """The hand has passed the newest of all; what comes now is not the next to be looked at."""
    cache = Cache(POLICIES["sieve"](), 2)
    for wanted in "a b a c d e".split():  # c pushes b out, which was the newest
        cache.access(wanted)
    assert cache.gone == ["b", "a", "c"]


def test_lirs_keeps_what_comes_back_soon_through_a_scan() -> None:
    cache = Cache(POLICIES["lirs"](), 10)
    for _ in range(3):
        for wanted in range(8):
            cache.access(wanted)
    for wanted in range(100, 160):
        cache.access(wanted)
    assert all(cache.access(wanted) for wanted in range(8))


def test_w_tinylfu_does_not_let_a_scan_in() -> None:
    cache = Cache(POLICIES["w-tinylfu"](), 10)
    for _ in range(4):
        for wanted in range(8):
            cache.access(wanted)
    for wanted in range(100, 140):
        cache.access(wanted)
    assert sum(cache.access(wanted) for wanted in range(8)) >= 7


def test_lhd_learns_that_one_kind_of_key_never_comes_back() -> None:
    """Keys that were used often come back, those of a scan do not; LRU would keep the scan."""
    rng = random.Random(0)
    mine, lru = (Cache(POLICIES[name](), 60) for name in ("lhd", "lru"))
    for cache in (mine, lru):
        rng.seed(0)
        for step in range(4000):
            cache.access(rng.randrange(50) if step % 3 == 0 else 1000 + step)
    hits = [sum(cache.access(rng.randrange(50)) for _ in range(50)) for cache in (mine, lru)]
    assert hits[0] > hits[1] + 10


def test_an_allow_list_lets_the_others_go_first() -> None:
    it = parse("allow:chat,qa")()
    for told, workload in zip("abcd", ["chat", "bulk", "qa", ""], strict=True):
        it.insert(key(told), Use(workload=workload))
    assert [name(k) for k in it.victims()] == ["b", "d", "a", "c"]
    it.touch(key("d"), Use(workload="qa"))
    assert [name(k) for k in it.victims()] == ["b", "a", "c", "d"]


def test_a_small_quota_is_not_gone_before_a_large_one_has_shrunk() -> None:
    it = parse("quota:chat=20,qa=2")()
    for n in range(20):
        it.insert(key(f"chat{n}"), Use(workload="chat"))
    for n in range(2):
        it.insert(key(f"qa{n}"), Use(workload="qa"))
    assert sum(name(k).startswith("qa") for k in list(it.victims())[:11]) == 1


def test_a_quota_takes_from_whose_part_is_the_fullest() -> None:
    it = parse("quota:chat=3,qa=1")()
    for n in range(4):
        it.insert(key(f"chat{n}"), Use(workload="chat"))
        it.insert(key(f"qa{n}"), Use(workload="qa"))
    # Of eight keys chat may have six and qa two; qa has four. Then both lose in their proportion.
    assert [name(k) for k in it.victims()][:2] == ["qa0", "qa1"]
    it.insert(key("other"), Use(workload="bulk"))
    assert "other" in [name(k) for k in it.victims()][:3]


def test_times_to_live_are_told_or_learnt() -> None:
    it = parse("ttl:chat=100,*=10")()
    it.insert(key("chat"), Use(0.0, workload="chat"))
    it.insert(key("tool"), Use(50.0, workload="tool"))
    assert [name(k) for k in it.victims()] == ["tool", "chat"]  # 60 s, 100 s
    learnt = POLICIES["ttl"]()
    for now in range(0, 100, 10):
        for told in ("chat", "tool"):
            if (told == "tool" and now % 50) or key(told) not in learnt:
                continue
            learnt.touch(key(told), Use(float(now), workload=told))
        if now == 0:
            learnt.insert(key("chat"), Use(0.0, workload="chat"))
            learnt.insert(key("tool"), Use(0.0, workload="tool"))
    seconds = {told: learnt.seconds(told) for told in ("chat", "tool")}  # type: ignore[attr-defined]
    assert seconds["chat"] == pytest.approx(10 * math.log(10))
    assert seconds["tool"] == pytest.approx(50 * math.log(10))
    assert seconds["chat"] < learnt.seconds("new")  # type: ignore[attr-defined]


def test_sessions_that_go_on_are_kept() -> None:
    """Every session asks once and a few go on for long: their blocks outlive younger first ones."""
    it = make("session")
    now = 0.0
    for i in range(200):
        now += 1.0
        long = key(f"long{i % 4}")
        if long in it:
            it.remove(long)
        it.insert(long, Use(now, session=f"long{i % 4}"))
        it.insert(key(f"once{i}"), Use(now, session=f"once{i}"))
        while len(it) > 12:
            it.evict(next(it.victims(now)))
    now += 30.0
    assert all(name(k).startswith("once") for k in list(it.victims(now))[:8])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mru", "'mru' is not one of"),
        ("allow", "'allow' is not one of|allow: "),
        ("allow: ,", "holds no names"),
        ("quota:chat", "'chat' is not a name with a positive number"),
        ("quota:chat=0", "'chat=0' is not a name"),
        ("quota:chat=nan", "'chat=nan' is not a name"),
        ("quota:=1", "'=1' is not a name"),
        ("ttl:", "'' is not a name"),
        ("lru:3", "takes no settings, but has '3'"),
    ],
)
def test_bad_settings_are_told(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(spec)
