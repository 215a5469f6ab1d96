"""The idea of each eviction policy, on the smallest case that shows it."""

from __future__ import annotations

import math
import random

import pytest

from tests.kv.evicting import Cache, key, name
from vllm.kv.evict import POLICIES, make, parse
from vllm.kv.evict.policy import Use


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
