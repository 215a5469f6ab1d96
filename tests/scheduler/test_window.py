"""Prefix-aware order: cached first, nobody waits for ever, a common prefix is computed once."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from .drive import Drive


def started(drive: Drive) -> list[str]:
    """Runs to the end; request ids in the order in which they first started."""
    order: list[str] = []
    while drive.scheduler.has_work:
        drive.step()
        for sequence in sorted(drive.scheduler.running, key=lambda s: s.scheduled):
            if sequence.request.request_id not in order:
                order.append(sequence.request.request_id)
        for request_id, _ in drive.finished:
            if request_id not in order:
                order.append(request_id)
    return order


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_nobody_is_overtaken_more_often_than_allowed(window, policy):
    for seed in range(40):
        rng = random.Random(seed)
        drive = Drive(blocks=16, size=2, seqs=1, budget=64, window=window, policy=policy)
        bases = [[b] * 16 for b in range(3)]
        most: Counter[str] = Counter()
        for _ in range(40):
            if rng.random() < 0.5:
                base = rng.choice(bases)[: rng.randint(1, 16)]
                drive.add(base, max_tokens=rng.randint(1, 3), priority=rng.choice([0, 0, 1]))
            if not drive.scheduler.has_work:
                continue
            most.update(old.request.request_id for old, _ in drive.overtaking())
        assert max(most.values(), default=0) <= window - 1
        drive.run()
        drive.verify()


def test_what_is_cached_goes_first():
    drive = Drive(blocks=32, size=4, seqs=1, window=4)
    drive.add([1] * 12, "warm", max_tokens=1)
    drive.run()
    for name, token in (("a", 2), ("b", 1), ("c", 3)):
        drive.add([token] * 12, name, max_tokens=2)
    assert started(drive) == ["b", "warm", "a", "c"]  # warm had finished before
    drive.verify()


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_common_prefix_is_computed_once(policy):
    drive = Drive(blocks=128, size=4, seqs=8, budget=256, window=16, policy=policy)
    common = list(range(40))
    for i in range(8):
        drive.add([*common, 41 + i, 0], max_tokens=2, priority=i % 2)
    drive.run()
    drive.verify()
    assert drive.totals.computed_prompt_tokens == 40 + 8 * 2


def test_in_a_window_of_one_all_compute_at_once():
    drive = Drive(blocks=128, size=4, seqs=8, budget=512, window=1)
    for i in range(8):
        drive.add([*range(40), 41 + i, 0], max_tokens=2)
    drive.run()
    drive.verify()
    assert drive.totals.computed_prompt_tokens == 8 * 42


def test_when_the_leader_goes_another_leads():
    drive = Drive(blocks=128, size=4, seqs=8, budget=16, window=16)
    for i in range(4):
        drive.add([*range(40), 41 + i, 0], f"r{i}", max_tokens=2)
    drive.step()
    assert [s.request.request_id for s in drive.scheduler.running] == ["r0"]
    drive.abort("r0")
    drive.step()
    assert [s.request.request_id for s in drive.scheduler.running] == ["r1"]
    drive.run()
    drive.verify()
    assert sum(drive.totals.step_tokens) <= 40 + 4 * 3 + 8


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_progress_when_leaders_are_preempted(policy):
    drive = Drive(blocks=14, size=2, seqs=4, budget=8, window=4, policy=policy)
    for i in range(6):
        drive.add([*range(12), 20 + i], max_tokens=10, priority=i % 3)
    drive.run(2000)
    drive.verify()
    assert drive.totals.preemptions > 0
