"""Over tiers that fail, hang and are late, any schedule gives requests what they get alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from vllm.core.retention import NO_HINTS, CacheHints, Retention
from vllm.kv.evict import POLICIES
from vllm.kv.sessions import VERBS

from .drive import BASES, some_prompt
from .tiered import TieredDrive

HINTS = [
    NO_HINTS,
    NO_HINTS,
    CacheHints(session="x"),
    CacheHints((Retention(priority=80, ttl=9.0),), "chat", "y"),
    CacheHints((Retention(0, 4, 10), Retention(4, None, 60)), "qa"),
]


def beginning_in_front() -> TieredDrive:
    """20 blocks are in the tier alone; the first 8 are computed in two steps, the rest loaded."""
    drive = TieredDrive(random.Random(0), 40, 0, True, blocks=64, size=2, seqs=2, budget=10)
    drive.transfer = lambda count: None
    drive.kv.tiers.cost.front = lambda *args, **more: 16
    drive.add(BASES[0][:41], max_tokens=1)
    drive.run()
    while drive.kv.tiers.tidy():
        drive.settle()
    assert drive.kv.pool.forget_cached()
    drive.add(BASES[0][:41], "again", max_tokens=1)
    plans = [drive.step(), drive.step()]
    assert [(int(p.starts[0]), int(p.counts[0])) for p in plans] == [(0, 10), (10, 6)]
    return drive


def test_computed_from_the_front_while_the_end_is_loaded():
    drive = beginning_in_front()
    drive.mover.finish()
    last = drive.step()
    drive.verify()
    assert (int(last.starts[0]), int(last.counts[0])) == (40, 1)
    assert drive.totals.step_tokens[-3:] == [10, 6, 1]
    assert drive.told["again", 0].cached == 24
    assert drive.totals.tier_hits == {"host": 24}
    assert drive.kv.reset()


@pytest.mark.parametrize("ended", ["late", "failed"])
def test_an_end_that_does_not_come_in_time(ended):
    drive = beginning_in_front()
    if ended == "failed":
        drive.tiers[0].reads.append("os")
        drive.mover.finish()
    counts = [int(drive.step().counts[0]) for _ in range(2)]
    # While it may still come, the front goes on in small parts.
    assert counts == ([2, 2] if ended == "late" else [10, 10])
    drive.run()
    drive.settle()
    drive.verify()
    assert drive.told["again", 0].cached == 0
    assert drive.kv.reset()


@pytest.mark.parametrize("window", [1, 3])
def test_nobody_waits_for_more_than_that_many_younger(window):
    """Also where what is cached lies in tiers that fail, and loads end in any order."""
    for seed in range(12):
        rng = random.Random(seed)
        drive = TieredDrive(
            rng, 30, 20, True, blocks=20, size=2, seqs=2, budget=40, window=window, swap=seed % 2
        )
        scheduler, overtakers = drive.scheduler, {}
        for _ in range(60):
            op = rng.random()
            if op < 0.5:
                drive.add(some_prompt(rng, 20), max_tokens=rng.randint(1, 4))
            elif op < 0.6:
                rng.choice(drive.tiers).reads.extend(rng.choices(["ok", "os"], k=2))
            elif op < 0.65 and scheduler.running:
                scheduler._preempt(rng.choice(scheduler.running))
            if scheduler.has_work:
                for old, young in drive.overtaking():
                    overtakers.setdefault(old, set()).add(young)
        assert all(len(younger) <= window - 1 for younger in overtakers.values())
        drive.finish()


def anyhow(admit: Callable[..., int | None], *args: Any, alone: bool) -> int | None:
    return admit(*args, alone=True)


@pytest.mark.parametrize("part", range(4))
def test_random_lives_with_ends_that_are_loaded_meanwhile(part):
    for seed in range(10 * part, 10 * part + 10):
        rng = random.Random(seed)
        size = rng.randint(1, 3)
        drive = TieredDrive(
            rng, 30, 20, True, blocks=30, size=size, seqs=3, budget=rng.choice([5, 9, 40])
        )
        drive.kv.tiers.cost.front = lambda n, *a, size=size, rng=rng, **m: (
            rng.randrange(n // size) * size
        )
        admission = drive.scheduler._admission
        admission.admit = partial(anyhow, admission.admit)
        admission._may_meet = lambda sequence, running: True
        for _ in range(60):
            op = rng.random()
            if op < 0.5:
                n = rng.choice([1, 1, 2])
                drive.add(some_prompt(rng, 12 * size), n=n, max_tokens=rng.choice([1, 3]))
            elif op < 0.55 and drive.requests:
                drive.abort(rng.choice(sorted(drive.requests)[-3:]))
            elif op < 0.65:
                drive.misbehave()
            elif op < 0.7:
                drive.clock.now += rng.choice([0.5, 3.0, 70.0])
            elif op < 0.8 and drive.scheduler.running:
                drive.scheduler._preempt(rng.choice(drive.scheduler.running))
            elif not drive.scheduler.has_work:
                while drive.kv.tiers.tidy():
                    drive.settle()
                drive.kv.pool.forget_cached()
            for _ in range(rng.choice([0, 1, 6])):
                if drive.scheduler.has_work:
                    drive.step()
        drive.finish()


@pytest.mark.parametrize("part", range(8))
def test_random_lives(part):
    for seed in range(15 * part, 15 * part + 15):
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
            drive.misbehave()
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
    drive.finish()
